"""The history: which steps of a window share one sequence of the backbone, and what a session remembers for that.

- `none`: one step. What the policy sees is now.
- `policy_head`: the steps of a window are sequences of their own; the head fuses their readouts (RoboFlamingo,
  arXiv 2311.01378; RoboVLMs, arXiv 2412.14058). A session remembers readouts, so acting reads one new step.
- `interleaved`: the steps of a window stand one after another in ONE sequence, each followed by its readouts
  (RoboVLMs). A session remembers images and reads its window again at each step.

Windows begin at their first step and masked steps stand at the end. All parts after that are causal, so step k of a
training window equals the k-th step of a session: the law of train/act equality.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Bool, Float, UInt8
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from anyvla.config import STRICT
from anyvla.layout import lay_out

if TYPE_CHECKING:
    from anyvla.backbones.base import Backbone

Memory = deque[Tensor]  # what one session keeps, oldest first, at most `window` steps


def stack(memories: Sequence[Memory]) -> tuple[Tensor, Bool[Tensor, "B W"]]:
    """Memories of different lengths as one tensor (B, W, ...), zeros past the end of each, and where it is valid."""
    longest = max(map(len, memories))
    first = memories[0][-1]
    out = first.new_zeros(len(memories), longest, *first.shape)
    mask = torch.zeros(len(memories), longest, dtype=torch.bool, device=first.device)
    for row, memory in enumerate(memories):
        out[row, : len(memory)] = torch.stack(tuple(memory))
        mask[row, : len(memory)] = True
    return out, mask


class History(ABC):
    """How many steps the policy sees and where time is fused."""

    Config: ClassVar[type]
    needs: ClassVar[frozenset[str]] = frozenset()  # capabilities of the backbone
    share: ClassVar[bool] = False  # the steps of a window share one sequence of the backbone

    def __init__(self, window: int) -> None:
        self.window = window

    def start(self) -> Memory:
        """The memory of a new session."""
        return deque(maxlen=self.window)

    def windows(
        self,
        backbone: Backbone,
        queries: Float[Tensor, "R D"],
        images: UInt8[Tensor, "B W V H W 3"],
        instructions: Sequence[str],
        step_mask: Bool[Tensor, "B W"],
    ) -> Float[Tensor, "B W R D"]:
        """The readouts of the valid steps of whole windows; zeros at masked ones."""
        counts = step_mask.sum(1).tolist()
        told = [text for text, count in zip(instructions, counts, strict=True) for _ in range(count)]
        block = backbone.prepare(images[step_mask], told)
        sequence = lay_out(
            block,
            counts if self.share else [1] * len(told),
            len(queries),
            pad_id=backbone.pad_id,
            query_id=backbone.query_id,
        )
        readouts = backbone(sequence, queries)  # (M, R, D)
        out = readouts.new_zeros(*step_mask.shape, *readouts.shape[1:])
        out[step_mask] = readouts
        return out

    @abstractmethod
    def step(
        self,
        backbone: Backbone,
        queries: Float[Tensor, "R D"],
        images: UInt8[Tensor, "B V H W 3"],
        instructions: Sequence[str],
        memories: Sequence[Memory],
    ) -> tuple[Float[Tensor, "B W R D"], Bool[Tensor, "B W"]]:
        """Take one new step of B sessions into their memories. Gives their windows' readouts, and which are valid."""


class PolicyHead(History):
    """Each step is a sequence of its own; the head fuses readouts, and these are what a session remembers."""

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `history: {name: policy_head}`."""

        window: int = Field(default=8, ge=2)  # steps, the current one included

    def __init__(self, config: Config) -> None:
        super().__init__(config.window)

    def step(
        self,
        backbone: Backbone,
        queries: Float[Tensor, "R D"],
        images: UInt8[Tensor, "B V H W 3"],
        instructions: Sequence[str],
        memories: Sequence[Memory],
    ) -> tuple[Float[Tensor, "B W R D"], Bool[Tensor, "B W"]]:
        now = torch.ones(len(images), 1, dtype=torch.bool, device=images.device)
        readouts = self.windows(backbone, queries, images[:, None], instructions, now)[:, 0]  # (B, R, D)
        for memory, readout in zip(memories, readouts, strict=True):
            memory.append(readout)
        return stack(memories)


class NoHistory(PolicyHead):
    """A window of one step."""

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """`history: none` has no options."""

    def __init__(self, config: Config) -> None:
        History.__init__(self, window=1)


class Interleaved(History):
    """The steps of a window share one sequence, so the backbone itself fuses time; a session remembers images."""

    needs = frozenset({"interleave"})
    share = True

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `history: {name: interleaved}`."""

        window: int = Field(default=8, ge=2)  # steps, the current one included

    def __init__(self, config: Config) -> None:
        super().__init__(config.window)

    def step(
        self,
        backbone: Backbone,
        queries: Float[Tensor, "R D"],
        images: UInt8[Tensor, "B V H W 3"],
        instructions: Sequence[str],
        memories: Sequence[Memory],
    ) -> tuple[Float[Tensor, "B W R D"], Bool[Tensor, "B W"]]:
        for memory, seen in zip(memories, images, strict=True):
            memory.append(seen)
        window, mask = stack(memories)
        return self.windows(backbone, queries, window, instructions, mask), mask
