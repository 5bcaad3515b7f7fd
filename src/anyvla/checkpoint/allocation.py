"""A limit on the memory that building a model allocates: a few bytes of configuration can describe a huge model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class AllocationError(ValueError):
    """More memory was requested than allowed."""


class AllocationLimit(TorchDispatchMode):
    """Within `with`, raises AllocationError before more than `tensors` tensors or `size` bytes are made.

    Freed tensors count too. `what` begins the message: "config.yaml describes a model".
    """

    def __init__(self, size: int, tensors: int, what: str) -> None:
        super().__init__()
        self.size, self.tensors, self.what = size, tensors, what
        self.used = self.made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], list | tuple) and all(isinstance(n, int) for n in args[0]):  # a shape
            kind, device = kwargs.get("dtype") or torch.get_default_dtype(), kwargs.get("device")
            if device is None or torch.device(device).type != "meta":
                self._count(math.prod(args[0]) * kind.itemsize)
            return func(*args, **kwargs)
        made = func(*args, **kwargs)
        new = not func.is_view and not func._schema.is_mutable
        if new and isinstance(made, Tensor) and made.device.type != "meta":
            self._count(made.numel() * made.element_size())
        return made

    def _count(self, size: int) -> None:
        self.used += max(size, 0)
        self.made += 1
        if self.used > self.size or self.made > self.tensors:
            far = f"{self.size / 2**20:,.0f} MiB" if self.used > self.size else f"{self.tensors:,} tensors"
            raise AllocationError(
                f"{self.what} of more than {far}, far more than its weights: one of its sizes is wrong"
            )
