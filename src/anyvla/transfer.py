"""Copies from the CPU to a device that do not wait for the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def send(values: Tensor | np.ndarray, device: torch.device) -> Tensor:
    """Return values of the CPU on a device, through pinned memory, which a GPU copies by itself.

    A copy from other memory makes the host wait until the GPU has done all of its work. On the CPU, the result shares
    the memory of `values`.
    """
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
