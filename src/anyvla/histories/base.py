"""The base class of histories: which steps of a window share a sequence of the backbone, and what a session keeps.

Windows begin at their first step, and masked steps come last. All later parts are causal, so step k of a training
window equals step k of a session.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from anyvla.backbones.base import Backbone
from anyvla.backbones.continuation import Continuation
from anyvla.sequence.cache import Cache
from anyvla.sequence.layout import lay_out
from anyvla.sequence.tokens import TokenSequence
from anyvla.sequence.valid_steps import ValidSteps
from anyvla.transfer import send

HistoryState = Any  # what a history keeps for one session; each history has its own type


@dataclass(frozen=True)
class StepInputs:
    """The inputs of a backbone for M steps. Each step has Q embeddings besides its tokens, in this order:

    - `before` embeddings of the previous chunk, before the tokens of the step (`Decoder.embed_chunks`),
    - the proprio token, if there is one, after the tokens,
    - the R queries, whose hidden states are the readouts.
    """

    images: UInt8[Tensor, "M V H W 3"]
    instructions: Sequence[str]  # M of them
    embeddings: Float[Tensor, "M Q D"]
    readouts: int  # R
    before: int = 0


@dataclass(frozen=True)
class WindowReadouts:
    """The readouts of the windows of B episodes or sessions."""

    readouts: Float[Tensor, "B T R D"]
    counts: Sequence[int]  # B numbers of valid steps, which come first in each row
    continuation: Continuation | None  # after each valid step (whole windows), or after the newest step (sessions)


class History(ABC):
    """Decides how many steps the policy sees, and where they are fused."""

    Config: ClassVar[type]
    needs: frozenset[str] = frozenset()  # required capabilities of the backbone
    fuses: ClassVar[bool] = True  # whether a window has several steps, fused by the backbone or the fuser
    in_backbone: ClassVar[bool] = False  # whether the backbone fuses the steps
    sees_past: bool = False  # whether a step sees the readouts and chunks of earlier steps
    # Whether the memory of a session is the state of the fuser, from its first step on. Then rows of training begin
    # where a session begins, `window` is the most steps of a row, and `read_step` returns those of the new step only.
    carries_state: ClassVar[bool] = False
    instead: str = "history: policy_head"  # suggested for a backbone that lacks a capability

    def __init__(self, window: int) -> None:
        self.window = window

    @property
    def kept_steps(self) -> int:
        """The number of steps that a session keeps, the current one included."""
        return 1 if self.carries_state else self.window

    def describe(self) -> str:
        """Return the memory of a session in words."""
        return "state carried over the session" if self.carries_state else f"window {self.window}"

    @abstractmethod
    def start(self) -> HistoryState:
        """Return the state of a new session."""

    @abstractmethod
    def copy_states(self, states: Sequence[HistoryState]) -> list[HistoryState]:
        """Return copies that can take further steps without a change to `states`."""

    def separate(self, state: HistoryState) -> HistoryState:
        """Return a state without memory that it shares with other sessions of its last call, which stays in use."""
        return state

    def count_seen_steps(self, backbone: Backbone, calls: int) -> list[int]:
        """Return the number of steps that a session sees at each of its first `calls` calls, the newest included."""
        return [min(call + 1, self.window) for call in range(calls)]

    @abstractmethod
    def read_windows(
        self, backbone: Backbone, steps: StepInputs, valid: ValidSteps, *, keep_cache: bool
    ) -> WindowReadouts:
        """Return the readouts (and continuation, if `keep_cache`) of whole windows; `steps`: the valid ones."""

    @abstractmethod
    def read_step(
        self, backbone: Backbone, steps: StepInputs, states: Sequence[HistoryState], *, keep_cache: bool
    ) -> WindowReadouts:
        """Add one new step to the states of B sessions, and return the readouts of their windows."""


def read_steps(
    backbone: Backbone, steps: StepInputs, counts: Sequence[int], *, keep_cache: bool, past: bool = True
) -> tuple[Float[Tensor, "M R D"], Continuation | None]:
    """Run the backbone over sequences of `counts` steps. Return the readouts and, with `keep_cache`, a continuation.

    With `past`, a step sees the readouts of earlier steps of its sequence.
    """
    block = backbone.tokenize(steps.images, steps.instructions)
    each = steps.embeddings.shape[1]
    sequence = lay_out(block, counts, each, pad_id=backbone.pad_id, query_id=backbone.query_id, before=steps.before)
    if not past and max(counts) > 1:
        step = sequence.step_ids
        others = get_readout_mask(sequence, steps)[:, None] & (step[:, :, None] != step[:, None])  # (S, L, L)
        sequence = replace(sequence, block_mask=~others)
    cache = Cache() if keep_cache else None
    hidden = backbone(sequence, steps.embeddings, cache)  # (M, Q, D)
    after = None if cache is None else _continue_each_step(backbone, cache, sequence, steps, counts, past)
    return hidden[:, each - steps.readouts :], after


def get_readout_mask(sequence: TokenSequence, steps: StepInputs) -> Bool[Tensor, "S L"]:
    """Return a mask of the positions of the readouts: the last R query positions of each step."""
    places = sequence.find_queries().view(-1, steps.embeddings.shape[1])
    out = torch.zeros_like(sequence.query_mask).flatten()
    return out.index_fill(0, places[:, -steps.readouts :].flatten(), True).view_as(sequence.query_mask)


def _continue_each_step(
    backbone: Backbone, cache: Cache, sequence: TokenSequence, steps: StepInputs, counts: Sequence[int], past: bool
) -> Continuation:
    assert cache.valid is not None
    assert cache.positions is not None
    readout = get_readout_mask(sequence, steps)
    numbers = [np.repeat(np.arange(len(counts)), counts), np.concatenate([np.arange(n) for n in counts])]
    row, number = send(np.stack(numbers), readout.device)  # (M,) each
    number = number[:, None]
    step = sequence.step_ids[row]  # (M, L)
    hidden = readout[row] & ((step == number) | (not past))
    visible = cache.valid[row] & (step <= number) & ~hidden
    first = (readout[row] & (step == number)).int().argmax(1)  # a suffix takes the positions of the readouts
    positions = cache.positions[row, first]
    return Continuation(backbone, cache, tuple(counts), visible, positions)


def stack_windows(windows: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """Stack windows (t, ...) of different lengths to (B, T, ...), zeros past the end. Return it and the lengths."""
    return torch.nn.utils.rnn.pad_sequence(list(windows), batch_first=True), [len(w) for w in windows]
