"""Memory beyond a window: the state of the fuser, carried over the whole session.

Each step is a sequence of its own, as with `policy_head`, but a session keeps no earlier steps: it keeps the state of a
recurrent fuser, so its memory has no limit in steps and takes constant space. Rows of training begin where a session
begins and have all steps to the end of the episode. Gradients pass through all of them: backpropagation that is cut, or
begins from zero or old states in the middle of an episode, would train on states that no session has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from anyvla.backbones.base import Backbone
from anyvla.config import STRICT
from anyvla.histories.base import (
    History,
    HistoryState,
    StepInputs,
    WindowReadouts,
    read_steps,
)
from anyvla.limits import STEPS
from anyvla.sequence.valid_steps import ValidSteps
from anyvla.transfer import send


class Recurrent(History):
    """Each step is its own sequence, and the state of the fuser is the memory of a session."""

    carries_state = True

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `history: {name: recurrent}`."""

        # of the longest row of training, a whole episode with one step for each prediction; longer ones are refused
        steps: int = Field(default=128, ge=2, le=STEPS)
        # steps of each row that the backbone reads at once in training; its activations are computed again for the
        # gradients. null: all steps at once, as in any case with decoders that read the backbone's cache
        at_once: int | None = Field(default=None, ge=1, le=STEPS)

    def __init__(self, config: Config) -> None:
        super().__init__(config.steps)
        self.at_once = config.at_once

    def start(self) -> HistoryState:
        return None

    def copy_states(self, states: Sequence[HistoryState]) -> list[HistoryState]:
        return list(states)

    def count_seen_steps(self, backbone: Backbone, calls: int) -> list[int]:
        return list(range(1, calls + 1))

    def read_windows(
        self, backbone: Backbone, steps: StepInputs, valid: ValidSteps, *, keep_cache: bool
    ) -> WindowReadouts:
        if keep_cache or self.at_once is None or valid.length <= self.at_once:
            count = len(steps.instructions)
            readouts, continuation = read_steps(backbone, steps, (1,) * count, keep_cache=keep_cache)
            return WindowReadouts(valid.scatter(readouts), valid.counts, continuation)
        piece = np.concatenate([np.arange(count) for count in valid.counts]) // self.at_once  # of each step
        pieces = [np.flatnonzero(piece == number) for number in range(-(-valid.length // self.at_once))]
        readouts = torch.cat([_read_piece(backbone, steps, own) for own in pieces if len(own)])
        order = send(np.concatenate(pieces).argsort(), readouts.device)
        return WindowReadouts(valid.scatter(readouts.index_select(0, order)), valid.counts, None)

    def read_step(
        self, backbone: Backbone, steps: StepInputs, states: Sequence[HistoryState], *, keep_cache: bool
    ) -> WindowReadouts:
        readouts, continuation = read_steps(backbone, steps, (1,) * len(steps.instructions), keep_cache=keep_cache)
        return WindowReadouts(readouts[:, None], (1,) * len(readouts), continuation)


def _read_piece(backbone: Backbone, steps: StepInputs, own: Int64[np.ndarray, "m"]) -> Float[Tensor, "m R D"]:
    """Return the readouts of some of the steps. Only their inputs are kept for the backward pass."""
    rows = send(own, steps.images.device)
    images, instructions = steps.images[rows], [steps.instructions[number] for number in own.tolist()]

    def read(embeddings: Float[Tensor, "m Q D"]) -> Float[Tensor, "m R D"]:
        piece = replace(steps, images=images, instructions=instructions, embeddings=embeddings)
        return read_steps(backbone, piece, (1,) * len(embeddings), keep_cache=False)[0]

    embeddings = steps.embeddings[rows]
    return checkpoint(read, embeddings, use_reentrant=False) if torch.is_grad_enabled() else read(embeddings)
