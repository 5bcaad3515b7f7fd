"""The contract of a decoder, and a loss as a sum and a count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """`value` is what to minimise. Over several parts of a batch, add totals and counts before dividing: padding then
    never contributes, and how a batch is split changes nothing.
    """

    total: Float[Tensor, ""]
    count: Float[Tensor, ""]  # valid action elements
    parts: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)  # means to log, detached

    @property
    def value(self) -> Float[Tensor, ""]:
        """The mean over valid elements; 0 if there is none."""
        return self.total / self.count.clamp(min=1)


class Decoder(Protocol):
    """What turns a context into a chunk: an `nn.Module` made by `Class(config, context, chunk, space)`."""

    def loss(
        self, context: Float[Tensor, "B W C"], actions: Float[Tensor, "B W N A"], mask: Bool[Tensor, "B W N"]
    ) -> Loss:
        """Compare with normalised actions where `mask` is True."""

    def sample(self, context: Float[Tensor, "B C"], generator: torch.Generator | None = None) -> Float[Tensor, "B N A"]:
        """A normalised chunk; `generator` is the randomness of decoders that have some."""
