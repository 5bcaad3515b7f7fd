"""A backbone under examination: random input for it, and how its readouts are compared.

What is compared is in units of the readouts' own spread, so that one tolerance serves models of all sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anyvla.backbones.base import CAPABILITIES, Capability
from anyvla.sequence.layout import lay_out
from anyvla.sequence.tokens import StepTokens, TokenSequence

TEXTS = ("open", "close the drawer slowly", "push it", "pick up the red cup", "put it down")
SIDE = 48  # pixels of the random images; the backbone scales them
EXACT, NOTABLE = 2e-4, 1e-3  # of the readouts' spread: what must be equal (in float32), what must differ
ROUNDED = 0.1  # what is equal but for the rounding of half precision, layer after layer


class CheckFailed(Exception):
    """A backbone breaks a promise."""


class NotApplicable(Exception):
    """A check does not concern this backbone."""


@dataclass
class Subject:
    """A backbone under examination."""

    backbone: Any  # a Backbone
    config: Any  # of its class: for building it again
    views: int = 2

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.backbone.parameters()).device

    @property
    def exact(self) -> float:
        """By how much of the readouts' spread equal ones may differ: the weights' dtype rounds."""
        return EXACT if next(self.backbone.parameters()).dtype == torch.float32 else ROUNDED

    def equal(self, one: Tensor, other: Tensor, what: str) -> float:
        """Raises CheckFailed unless both are equal, as far as the weights' dtype can tell."""
        return equal(one, other, what, self.exact)

    def frames(self, steps: int, views: int | None = None, seed: int = 0) -> Tensor:
        """Random images, uint8 (steps, V, H, W, 3)."""
        generator = torch.Generator().manual_seed(seed)
        shape = (steps, views or self.views, SIDE, SIDE, 3)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(self.device)

    def queries(self, count: int, seed: int = 1) -> Tensor:
        """Random queries (R, D), as large as the model's own embeddings."""
        ids = torch.arange(128, device=self.device)[None]
        spread = self.backbone.embedding(ids).detach().float().std()
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, self.backbone.width, generator=generator).to(self.device) * spread

    def sequence(self, block: StepTokens, groups: list[int], readouts: int, padding: int = 0) -> TokenSequence:
        """Lay out steps; `groups` of consecutive ones share a sequence."""
        ids = {"pad_id": self.backbone.pad_id, "query_id": self.backbone.query_id}
        length = lay_out(block, groups, readouts, **ids).input_ids.shape[1] + padding
        context = getattr(self.backbone, "context", None)
        if context is not None and length > context:
            most = f"{max(groups)} steps of {self.views} cameras" if max(groups) > 1 else f"{self.views} cameras"
            raise NotApplicable(f"{most} take {length} tokens, its context is {context}")
        return lay_out(block, groups, readouts, **ids, length=length)

    def read(
        self, images: Tensor, texts: tuple[str, ...], queries: Tensor, groups: list[int] | None = None, padding: int = 0
    ) -> Tensor:
        """Readouts (M, R, D)."""
        block = self.backbone.tokenize(images, list(texts))
        return self.backbone(self.sequence(block, groups or [1] * len(texts), len(queries), padding), queries)

    def needs(self, capability: Capability) -> None:
        """Raises NotApplicable for a backbone without it."""
        if capability not in self.backbone.capabilities:
            raise NotApplicable(f"does not {CAPABILITIES[capability]}")


def difference(one: Tensor, other: Tensor) -> float:
    """The greatest difference, in units of the spread of the first."""
    spread = one.float().std() if one.numel() > 1 else one.float().abs().max()
    return ((one.float() - other.float()).abs().max() / spread.clamp_min(1e-12)).item()


def equal(one: Tensor, other: Tensor, what: str, tolerance: float) -> float:
    """Raises CheckFailed unless both are equal within `tolerance` of the spread."""
    far = difference(one, other)
    if not far <= tolerance:
        raise CheckFailed(f"{what}: differs by {far:.2g} of the spread, allowed is {tolerance:g}")
    return far


def moved(one: Tensor, other: Tensor, what: str) -> float:
    """Raises CheckFailed if both are the same."""
    far = difference(one, other)
    if not far >= NOTABLE:
        raise CheckFailed(f"{what}: the readouts move by only {far:.2g} of their spread")
    return far


def pull(readouts: Tensor) -> None:
    """Backpropagate from all readouts, in a fixed direction (the square of what a norm gives has no gradient)."""
    direction = torch.randn(readouts.shape, generator=torch.Generator().manual_seed(2)).to(readouts)
    (readouts * direction).sum().backward()
