"""An exponential moving average of the trained weights, with which a trained policy acts.

The average has no state but its weights: its decay is a function of the step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from anyvla.config import STRICT
from anyvla.files.sharded_tensors import local
from anyvla.limits import COUNT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EmaConfig:
    """The section `training.ema:` of a recipe."""

    decay: float = Field(default=0.999, ge=0, lt=1)  # weight of the average; the rest is that of the newest weights
    # The decay rises as (1 + t) / (10 + t) over the updates t, so that the average soon forgets the first weights.
    warmup: bool = True
    start: int = Field(default=0, ge=0, le=COUNT)  # steps after which it begins; before, it is the newest weights

    def decay_after(self, done: int) -> float:
        """Return the decay of the update after `done` steps."""
        updates = done - self.start
        if updates <= 0:
            return 0.0
        return min(self.decay, (1 + updates) / (10 + updates)) if self.warmup else self.decay


class Ema:
    """The average of some parameters, in float32 and on their device; of sharded ones, each process has its rows."""

    def __init__(self, config: EmaConfig, parameters: Sequence[nn.Parameter]) -> None:
        self.config, self.parameters = config, list(parameters)
        self.average: list[Tensor] = [weight.float().clone() for weight in self._weights()]

    @torch.no_grad()
    def update(self, done: int) -> None:
        """Average the weights after `done` steps into it."""
        decay = self.config.decay_after(done)
        weights = [weight.float() for weight in self._weights()]
        if decay:
            torch._foreach_lerp_(self.average, weights, 1 - decay)
        else:
            torch._foreach_copy_(self.average, weights)

    @torch.no_grad()
    def take(self) -> None:
        """Set the average to the weights of the parameters, as after they were read from a checkpoint."""
        torch._foreach_copy_(self.average, self._weights())

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Give the parameters the average for the duration of the context, and then their own weights again.

        Values are swapped and not tensors: cuDNN and compiled code keep addresses of weights.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, average in zip(self._weights(), self.average, strict=True):
            own = weight.clone()
            weight.copy_(average)
            average.copy_(own)

    def _weights(self) -> list[Tensor]:
        return [local(p.detach()) for p in self.parameters]
