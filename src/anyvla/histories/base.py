"""The history: which steps of a window share one sequence of the backbone, and what a session remembers for that.

- `none`: one step. What the policy sees is now.
- `policy_head`: the steps of a window are sequences of their own; the head fuses their readouts (RoboFlamingo,
  arXiv 2311.01378; RoboVLMs, arXiv 2412.14058). A session remembers readouts, so acting reads one new step.
- `interleaved`: the steps of a window stand one after another in ONE sequence (RoboVLMs); `anyvla.histories.
  interleaved`. A session remembers what the backbone does, so acting reads one new step too.

Windows begin at their first step and masked steps stand at the end. All parts after that are causal, so step k of a
training window equals the k-th step of a session: the law of train/act equality.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from anyvla.backbones.base import Backbone
from anyvla.backbones.continuation import Continuation
from anyvla.sequence.cache import Cache
from anyvla.sequence.layout import lay_out
from anyvla.sequence.tokens import TokenSequence

HistoryState = Any  # what one session keeps, of its history's own kind


@plain_dataclass(frozen=True)
class StepInputs:
    """M steps as a backbone reads them. Each brings Q embeddings of its own, (M, Q, D):

    - `before` of them stand before its tokens: the previous chunk (`VLAConfig.past`),
    - then, after its tokens, proprioception as a token, if it is one,
    - and last its R `readouts`.
    """

    images: UInt8[Tensor, "M V H W 3"]
    instructions: Sequence[str]  # M of them
    embeddings: Float[Tensor, "M Q D"]
    readouts: int  # R
    before: int = 0


@plain_dataclass(frozen=True)
class WindowReadouts:
    """What the backbone read of windows of B episodes or sessions."""

    readouts: Float[Tensor, "B W R D"]
    mask: Bool[Tensor, "B W"]  # valid steps: the first ones of each row
    continuation: Continuation | None  # after all valid steps (whole windows), or after the newest (sessions)


class History(ABC):
    """How many steps the policy sees and where time is fused."""

    Config: ClassVar[type]
    needs: frozenset[str] = frozenset()  # capabilities of the backbone
    fuses: ClassVar[bool] = True  # time, before the fuser does or in it; False: there is one step
    in_backbone: ClassVar[bool] = False  # time is fused by the backbone
    sees_past: bool = False  # steps see the readouts and the chunks of earlier ones
    instead: str = "history: policy_head"  # what to use with a backbone that cannot what it needs

    def __init__(self, window: int) -> None:
        self.window = window

    @abstractmethod
    def start(self) -> HistoryState:
        """The state of a new session."""

    @abstractmethod
    def window_length(self, state: HistoryState) -> int:
        """Of how many steps the window is that a session acted on last; 0 before its first step."""

    @abstractmethod
    def copy_states(self, states: Sequence[HistoryState]) -> list[HistoryState]:
        """Return copies: a step that takes them on leaves these as they are."""

    @abstractmethod
    def read_windows(
        self, backbone: Backbone, steps: StepInputs, mask: Bool[Tensor, "B W"], *, keep_cache: bool
    ) -> WindowReadouts:
        """Read whole windows; `steps` are the valid ones, row by row. `remember`: give a continuation."""

    @abstractmethod
    def read_step(
        self, backbone: Backbone, steps: StepInputs, states: Sequence[HistoryState], *, keep_cache: bool
    ) -> WindowReadouts:
        """Take one new step of B sessions into their states, and give their windows."""


def read_steps(
    backbone: Backbone, steps: StepInputs, counts: Sequence[int], *, keep_cache: bool, past: bool = True
) -> tuple[Float[Tensor, "M R D"], Continuation | None]:
    """Run the backbone over steps laid out in sequences of `counts` steps, and say how to go on if it shall `remember`.

    `past`: steps see the readouts of earlier ones, where they share a sequence.
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
    after = None if cache is None else _continuations_of_steps(backbone, cache, sequence, steps, counts, past)
    return hidden[:, each - steps.readouts :], after


def scatter_to_windows(readouts: Float[Tensor, "M R D"], mask: Bool[Tensor, "B W"]) -> Float[Tensor, "B W R D"]:
    """What was read of the valid steps, row by row, at their places; zeros at the others."""
    out = readouts.new_zeros(*mask.shape, *readouts.shape[1:])
    out[mask] = readouts
    return out


def get_readout_mask(sequence: TokenSequence, steps: StepInputs) -> Bool[Tensor, "S L"]:
    """Where the readouts stand: the last R query places of each step."""
    places = sequence.query_mask.flatten().nonzero().view(-1, steps.embeddings.shape[1])
    out = torch.zeros_like(sequence.query_mask).flatten()
    out[places[:, -steps.readouts :].flatten()] = True
    return out.view_as(sequence.query_mask)


def _continuations_of_steps(
    backbone: Backbone, cache: Cache, sequence: TokenSequence, steps: StepInputs, counts: Sequence[int], past: bool
) -> Continuation:
    assert cache.valid is not None
    assert cache.positions is not None
    readout = get_readout_mask(sequence, steps)
    row = torch.repeat_interleave(torch.tensor(counts)).to(readout.device)  # (M,)
    number = torch.cat([torch.arange(n) for n in counts]).to(readout.device)[:, None]  # (M, 1)
    step = sequence.step_ids[row]  # (M, L)
    hidden = readout[row] & ((step == number) | (not past))
    visible = cache.valid[row] & (step <= number) & ~hidden
    first = (readout[row] & (step == number)).int().argmax(1)  # the suffix stands where the readouts do
    positions = cache.positions[row, first]
    return Continuation(backbone, cache, tuple(counts), visible, positions)


def stack_windows(windows: Sequence[Tensor]) -> tuple[Tensor, Bool[Tensor, "B W"]]:
    """Windows (w, ...) of different lengths as one tensor (B, W, ...), zeros past the end, and where it is valid."""
    out = torch.nn.utils.rnn.pad_sequence(list(windows), batch_first=True)
    return out, make_step_mask([len(w) for w in windows]).to(out.device)


def make_step_mask(lengths: Sequence[int]) -> Bool[Tensor, "B W"]:
    """The mask of windows of these lengths."""
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
