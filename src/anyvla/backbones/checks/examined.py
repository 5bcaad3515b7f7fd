"""A backbone under examination: random inputs for it, and comparisons of its readouts.

Differences are in units of the readouts' standard deviation, so that one tolerance serves models of all sizes.
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
EXACT, NOTABLE = 2e-4, 1e-3  # the most by which equal float32 readouts differ; the least that counts as a change
ROUNDED = 0.1  # the most by which equal readouts differ in half precision, which rounds in every layer


class CheckFailed(Exception):
    """A backbone does not meet an expectation."""


class NotApplicable(Exception):
    """A check does not concern this backbone."""


@dataclass
class ExaminedBackbone:
    """A backbone under examination."""

    backbone: Any  # a Backbone
    config: Any  # of its class, to build it again
    views: int = 2

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.backbone.parameters()).device

    @property
    def tolerance(self) -> float:
        """The most by which equal readouts differ in the dtype of the weights."""
        return EXACT if next(self.backbone.parameters()).dtype == torch.float32 else ROUNDED

    def make_images(self, steps: int, views: int | None = None, seed: int = 0) -> Tensor:
        """Return random images, uint8 (steps, V, H, W, 3)."""
        generator = torch.Generator().manual_seed(seed)
        shape = (steps, views or self.views, SIDE, SIDE, 3)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(self.device)

    def make_queries(self, count: int, seed: int = 1) -> Tensor:
        """Return random queries (R, D) with the standard deviation of the model's own embeddings."""
        ids = torch.arange(128, device=self.device)[None]
        spread = self.backbone.embedding(ids).detach().float().std()
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, self.backbone.width, generator=generator).to(self.device) * spread

    def lay_out(self, block: StepTokens, groups: list[int], readouts: int, padding: int = 0) -> TokenSequence:
        """Lay out steps; `groups` are the numbers of consecutive steps that share a sequence."""
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
        """Return the readouts (M, R, D)."""
        block = self.backbone.tokenize(images, list(texts))
        return self.backbone(self.lay_out(block, groups or [1] * len(texts), len(queries), padding), queries)

    def require(self, capability: Capability) -> None:
        """Raise NotApplicable for a backbone without this capability."""
        if capability not in self.backbone.capabilities:
            raise NotApplicable(f"does not {CAPABILITIES[capability]}")


def measure_difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, in units of the standard deviation of the first tensor."""
    spread = one.float().std() if one.numel() > 1 else one.float().abs().max()
    return ((one.float() - other.float()).abs().max() / spread.clamp_min(1e-12)).item()


def require_equal(one: Tensor, other: Tensor, name: str, tolerance: float) -> float:
    """Return the difference. Raise CheckFailed if it exceeds `tolerance`."""
    difference = measure_difference(one, other)
    if not difference <= tolerance:
        raise CheckFailed(f"{name}: differs by {difference:.2g} of the spread, allowed is {tolerance:g}")
    return difference


def require_change(one: Tensor, other: Tensor, name: str) -> float:
    """Return the difference. Raise CheckFailed if both are the same."""
    difference = measure_difference(one, other)
    if not difference >= NOTABLE:
        raise CheckFailed(f"{name}: the readouts move by only {difference:.2g} of their spread")
    return difference


def backpropagate(readouts: Tensor) -> None:
    """Backpropagate from all readouts in a fixed direction: the square of a normalized vector has no gradient."""
    direction = torch.randn(readouts.shape, generator=torch.Generator().manual_seed(2)).to(readouts)
    (readouts * direction).sum().backward()
