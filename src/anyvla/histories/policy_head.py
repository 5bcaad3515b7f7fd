"""History outside the backbone: each step of a window is a sequence of its own, and the fuser joins the steps.

RoboFlamingo (arXiv 2311.01378) and RoboVLMs (arXiv 2412.14058) call it a policy head.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from jaxtyping import Bool
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from anyvla.backbones.base import Backbone
from anyvla.config import STRICT
from anyvla.histories.base import History, Memory, Reading, Steps, in_windows, read, stacked
from anyvla.limits import STEPS


class PolicyHead(History):
    """Each step is a sequence of its own; the head fuses readouts, and these are what a session remembers."""

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `history: {name: policy_head}`."""

        window: int = Field(default=8, ge=2, le=STEPS)  # steps, the current one included

    def __init__(self, config: Config) -> None:
        super().__init__(config.window)

    def start(self) -> deque[Tensor]:
        return deque(maxlen=self.window)

    def length(self, memory: Memory) -> int:
        return len(memory)

    def copied(self, memories: Sequence[Memory]) -> list[Memory]:
        return [memory.copy() for memory in memories]

    def windows(self, backbone: Backbone, steps: Steps, mask: Bool[Tensor, "B W"], *, remember: bool) -> Reading:
        readouts, continuation = read(backbone, steps, (1,) * len(steps.instructions), remember=remember)
        return Reading(in_windows(readouts, mask), mask, continuation)

    def step(self, backbone: Backbone, steps: Steps, memories: Sequence[Memory], *, remember: bool) -> Reading:
        readouts, continuation = read(backbone, steps, (1,) * len(steps.instructions), remember=remember)
        for memory, readout in zip(memories, readouts, strict=True):
            memory.append(readout)
        return Reading(*stacked([torch.stack(tuple(m)) for m in memories]), continuation)


class NoHistory(PolicyHead):
    """A window of one step."""

    fuses = False

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """`history: none` has no options."""

    def __init__(self, config: Config) -> None:
        History.__init__(self, window=1)
