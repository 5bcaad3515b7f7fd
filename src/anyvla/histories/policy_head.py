"""History outside the backbone, the policy head of RoboFlamingo (arXiv 2311.01378) and RoboVLMs (arXiv 2412.14058)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from anyvla.backbones.base import Backbone
from anyvla.config import STRICT
from anyvla.histories.base import (
    History,
    HistoryState,
    StepInputs,
    WindowReadouts,
    read_steps,
    stack_windows,
)
from anyvla.limits import STEPS
from anyvla.sequence.valid_steps import ValidSteps


class SeparateSteps(History):
    """Each step is its own sequence. The fuser joins the readouts, and a session keeps them."""

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `history: {name: policy_head}`."""

        window: int = Field(default=8, ge=2, le=STEPS)  # steps, the current one included

    def __init__(self, config: Config) -> None:
        super().__init__(config.window)

    def start(self) -> deque[Tensor]:
        return deque(maxlen=self.window)

    def copy_states(self, states: Sequence[HistoryState]) -> list[HistoryState]:
        return [state.copy() for state in states]

    def read_windows(
        self, backbone: Backbone, steps: StepInputs, valid: ValidSteps, *, keep_cache: bool
    ) -> WindowReadouts:
        readouts, continuation = read_steps(backbone, steps, (1,) * len(steps.instructions), keep_cache=keep_cache)
        return WindowReadouts(valid.scatter(readouts), valid.counts, continuation)

    def read_step(
        self, backbone: Backbone, steps: StepInputs, states: Sequence[HistoryState], *, keep_cache: bool
    ) -> WindowReadouts:
        readouts, continuation = read_steps(backbone, steps, (1,) * len(steps.instructions), keep_cache=keep_cache)
        for state, readout in zip(states, readouts, strict=True):
            state.append(readout.clone())  # a view would keep the readouts of the whole batch
        return WindowReadouts(*stack_windows([torch.stack(tuple(m)) for m in states]), continuation)


class SingleStep(SeparateSteps):
    """A window of one step: the policy sees the current observation only."""

    fuses = False

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """`history: none` has no options."""

    def __init__(self, config: Config) -> None:
        History.__init__(self, window=1)
