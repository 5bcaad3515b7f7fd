"""Buffers that keep their precision when a model is cast."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

from torch import Tensor, nn


class ExactBuffers(nn.Module):
    """A module whose buffers `exact` move to other devices, but keep their type when a model is cast to bfloat16."""

    exact: ClassVar[tuple[str, ...]]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        tables = {name: getattr(self, name) for name in self.exact}
        super()._apply(fn, recurse)
        for name, table in tables.items():
            setattr(self, name, table.to(getattr(self, name).device))
        return self
