"""The 8-bit linear layer of bitsandbytes, which moves with its parent. Imported only for `quantize: int8`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import bitsandbytes
from torch import Tensor


class Int8Linear(bitsandbytes.nn.Linear8bitLt):
    """A linear layer in 8 bits whose quantized weight and scales follow when a parent module is moved.

    `Module.to` of a parent calls `_apply` of its children, never their `to`, where bitsandbytes moves its state.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = {name: getattr(self.weight, name, None) for name in ("CB", "SCB")}
        super()._apply(fn, recurse)
        for holder, had in ((self.weight, kept), (self.state, vars(self.state))):
            if had["CB"] is not None:
                holder.CB = self.weight.data  # the same numbers, stored once
            if had["SCB"] is not None:
                holder.SCB = had["SCB"].to(self.weight.device)  # float32, whatever the model is cast to
        return self
