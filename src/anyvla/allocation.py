"""Stops code that would allocate more tensors than a file can account for: a few bytes can describe a huge model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class AllocationError(ValueError):
    """More memory asked for than allowed."""


@contextmanager
def at_most(limit: int, what: str) -> Iterator[None]:
    """Raise AllocationError, before it happens, when tensors made in this context take more than `limit` bytes.

    Tensors that are freed meanwhile count too. `what` begins the message: "config.yaml describes a model".
    """
    with _Counting(limit, what):
        yield


class _Counting(TorchDispatchMode):
    def __init__(self, limit: int, what: str) -> None:
        super().__init__()
        self.limit, self.what, self.used = limit, what, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], list | tuple) and all(isinstance(n, int) for n in args[0]):  # a shape
            kind, device = kwargs.get("dtype") or torch.get_default_dtype(), kwargs.get("device")
            if device is None or torch.device(device).type != "meta":
                self._count(math.prod(args[0]) * kind.itemsize)
            return func(*args, **kwargs)
        made = func(*args, **kwargs)
        if isinstance(made, Tensor) and made.device.type != "meta" and not func.is_view and made._base is None:
            self._count(made.numel() * made.element_size())
        return made

    def _count(self, size: int) -> None:
        self.used += max(size, 0)
        if self.used > self.limit:
            raise AllocationError(
                f"{self.what} of more than {self.limit / 2**20:,.0f} MiB, far more than its weights take: one of its "
                "sizes is wrong"
            )
