"""History in the backbone: the steps of a window follow each other in one sequence (RoboVLMs, arXiv 2412.14058).

A block mask decides which positions of earlier steps a step sees: always their tokens; their readouts and chunks only
with `past: visible` (to study the copycat problem: a policy that copies its last action, arXiv 1905.11979).

A session keeps the KV cache, so it reads only new steps. Cached keys and values depend on all earlier positions, so old
steps cannot be dropped from the front. A session therefore keeps two cached windows that begin half a window apart. The
older one acts; when it has T steps, the younger one replaces it. Each is a window exactly as in training, of T/2 + 1 to
T steps once the episode is long enough, so the cache stays bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from anyvla.backbones.base import Backbone
from anyvla.backbones.continuation import Continuation
from anyvla.config import STRICT
from anyvla.histories.base import (
    History,
    HistoryState,
    StepInputs,
    WindowReadouts,
    get_readout_mask,
    read_steps,
    stack_windows,
)
from anyvla.limits import STEPS
from anyvla.sequence.cache import Cache, concat_caches, extract_rows
from anyvla.sequence.layout import lay_out
from anyvla.sequence.tokens import StepTokens
from anyvla.sequence.valid_steps import ValidSteps
from anyvla.transfer import send


@plain_dataclass
class CachedWindow:
    """A window that a session reads step by step."""

    cache: Cache | None = None  # shared with the windows that were read in the same call
    row: int = 0  # of that cache
    readouts: list[Tensor] = field(default_factory=list)  # (R, D) of each step


@plain_dataclass(frozen=True)
class PastStep:
    """The inputs of a past step, for backbones without a cache, which read the window again."""

    image: Tensor  # (V, H, W, 3)
    embeddings: Tensor  # (Q, D)


class Interleaved(History):
    """The steps of a window share one sequence, so the backbone fuses them."""

    in_backbone = True

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `history: {name: interleaved}`."""

        window: int = Field(default=8, ge=2, le=STEPS)  # steps, the current one included
        past: Literal["hidden", "visible"] = "hidden"  # readouts and chunks of earlier steps
        cache: bool = True  # False: read the whole window again at each step, as with backbones without a cache

    def __init__(self, config: Config) -> None:
        super().__init__(config.window)
        self.cache = config.cache
        self.sees_past = config.past == "visible"
        self.needs = frozenset({"interleave"} if self.sees_past else {"interleave", "block_mask"})
        if not self.sees_past:
            self.instead = "history: policy_head (or past: visible, if block_mask is all it lacks)"

    def start(self) -> HistoryState:
        return []

    def copy_states(self, states: Sequence[HistoryState]) -> list[HistoryState]:
        windows = [item for state in states for item in state if isinstance(item, CachedWindow)]
        # Windows that share a cache share its copy.
        caches = {id(cached.cache): cached.cache.fork() for cached in windows if cached.cache is not None}

        def copied(item: CachedWindow | PastStep) -> CachedWindow | PastStep:
            if isinstance(item, PastStep):
                return item
            return CachedWindow(caches.get(id(item.cache)), item.row, list(item.readouts))

        return [[copied(item) for item in state] for state in states]

    def separate(self, state: HistoryState) -> HistoryState:
        return [
            CachedWindow(item.cache.extract_row(item.row), 0, list(item.readouts))
            if isinstance(item, CachedWindow) and item.cache is not None
            else item
            for item in state
        ]

    def count_seen_steps(self, backbone: Backbone, calls: int) -> list[int]:
        if not self._keeps_caches(backbone):
            return super().count_seen_steps(backbone, calls)
        lengths: list[int] = []  # of the cached windows
        seen = []
        for _ in range(calls):
            drop, begin = self._plan_windows(lengths)
            lengths = [length + 1 for length in [*lengths[drop:], *[0] * begin]]
            seen.append(lengths[0])
        return seen

    def _keeps_caches(self, backbone: Backbone) -> bool:
        return self.cache and "cache" in backbone.capabilities

    def _plan_windows(self, lengths: Sequence[int]) -> tuple[bool, bool]:
        """Return, from the lengths of a session's cached windows, whether to drop the first and to begin another."""
        drop = bool(lengths) and lengths[0] == self.window
        left = lengths[drop:]
        return drop, not left or (len(left) == 1 and left[0] >= self.window // 2)

    def read_windows(
        self, backbone: Backbone, steps: StepInputs, valid: ValidSteps, *, keep_cache: bool
    ) -> WindowReadouts:
        steps = replace(steps, embeddings=_zero_missing_chunks(steps, valid.first_steps()))
        readouts, after = read_steps(backbone, steps, valid.counts, keep_cache=keep_cache, past=self.sees_past)
        return WindowReadouts(valid.scatter(readouts), valid.counts, after)

    def read_step(
        self, backbone: Backbone, steps: StepInputs, states: Sequence[HistoryState], *, keep_cache: bool
    ) -> WindowReadouts:
        if not self._keeps_caches(backbone):
            return self._reread_windows(backbone, steps, states, keep_cache)
        for state in states:
            drop, begin = self._plan_windows([len(cached.readouts) for cached in state])
            state[:] = [*state[drop:], *[CachedWindow()] * begin]
        windows = [(session, cached) for session, state in enumerate(states) for cached in state]
        new = [(session, cached) for session, cached in windows if cached.cache is None]
        begun = [(session, cached) for session, cached in windows if cached.cache is not None]
        for group in (new, begun):
            if group:
                self._extend_windows(backbone, steps, group)
        window, counts = stack_windows([torch.stack(state[0].readouts) for state in states])
        after = self._continue_newest(backbone, [state[0] for state in states], steps.readouts) if keep_cache else None
        return WindowReadouts(window, counts, after)

    def _extend_windows(self, backbone: Backbone, steps: StepInputs, group: Sequence[tuple[int, CachedWindow]]) -> None:
        """Read one new step of windows that are all empty or all begun."""
        rows = send(np.array([session for session, _ in group]), steps.embeddings.device)
        part = replace(
            steps,
            images=steps.images[rows],
            instructions=[steps.instructions[session] for session, _ in group],
            embeddings=steps.embeddings[rows],
        )
        block = backbone.tokenize(part.images, part.instructions)
        if group[0][1].cache is None:
            cache = Cache()
            part = replace(part, embeddings=_zero_missing_chunks(part, np.arange(len(group))))
        else:
            cache = _join_caches([cached for _, cached in group])
            block = StepTokens([], block.tokens, block.images)
        sequence = lay_out(
            block,
            (1,) * len(group),
            part.embeddings.shape[1],
            pad_id=backbone.pad_id,
            query_id=backbone.query_id,
            before=steps.before,
        )
        new = get_readout_mask(sequence, part)
        hidden = cache.hidden_by_history
        if hidden is not None and not self.sees_past:
            length = new.shape[1]
            earlier = ~hidden[:, None].expand(-1, length, -1)
            sequence = replace(sequence, block_mask=torch.cat([earlier, new.new_ones(len(new), length, length)], 2))
        readouts = backbone(sequence, part.embeddings, cache)[:, -steps.readouts :]
        cache.hidden_by_history = new if hidden is None else torch.cat([hidden, new], 1)
        for row, ((_, cached), readout) in enumerate(zip(group, readouts, strict=True)):
            cached.cache, cached.row = cache, row
            cached.readouts.append(readout.clone())  # a view would keep the readouts of the whole batch

    def _continue_newest(self, backbone: Backbone, windows: Sequence[CachedWindow], readouts: int) -> Continuation:
        """Return the continuation after the newest step of each window."""
        cache = concat_caches(
            extract_rows([(cached.cache, cached.row) for cached in windows if cached.cache is not None])
        )
        assert cache.valid is not None
        assert cache.positions is not None
        assert cache.hidden_by_history is not None
        position = torch.arange(cache.valid.shape[1], device=cache.valid.device)
        first = cache.valid.sum(1, keepdim=True) - readouts  # the readouts of the newest step come last
        visible = cache.valid & (position < first)
        if not self.sees_past:
            visible = visible & ~cache.hidden_by_history
        positions = cache.positions.gather(1, first).squeeze(1)
        return Continuation(backbone, cache, (1,) * len(windows), visible, positions)

    def _reread_windows(
        self, backbone: Backbone, steps: StepInputs, states: Sequence[HistoryState], keep_cache: bool
    ) -> WindowReadouts:
        instructions, seen = [], []
        for state, image, embeddings, text in zip(
            states, steps.images, steps.embeddings, steps.instructions, strict=True
        ):
            if state and state[-1].image.shape != image.shape:
                before, now = ("x".join(map(str, i.shape[1:3])) for i in (state[-1].image, image))
                raise ValueError(
                    f"the images of a session must keep their size, {before} became {now}: start() another session, or "
                    "train with model.view.size"
                )
            state.append(PastStep(image.clone(), embeddings.clone()))  # views would keep the whole batch
            del state[: -self.window]
            instructions += [text] * len(state)
            seen += state
        whole = replace(
            steps,
            images=torch.stack([s.image for s in seen]),
            instructions=instructions,
            embeddings=torch.stack([s.embeddings for s in seen]),
        )
        counts = [len(state) for state in states]
        valid = ValidSteps(counts, max(counts), steps.embeddings.device)
        reading = self.read_windows(backbone, whole, valid, keep_cache=keep_cache)
        if reading.continuation is None:
            return reading
        return replace(reading, continuation=reading.continuation.select((np.cumsum(counts) - 1).tolist()))


def _join_caches(windows: Sequence[CachedWindow]) -> Cache:
    """Return one cache whose rows are these windows, without a copy if they already share one in this order."""
    caches = [cached.cache for cached in windows if cached.cache is not None]
    first = caches[0]
    assert first.valid is not None
    if all(c is first for c in caches) and [cached.row for cached in windows] == list(range(len(first.valid))):
        return first
    return concat_caches(extract_rows([(cache, cached.row) for cache, cached in zip(caches, windows, strict=True)]))


def _zero_missing_chunks(steps: StepInputs, first: Int64[np.ndarray, "B"]) -> Float[Tensor, "M Q D"]:
    """Return the embeddings of steps with zeros for the previous chunk at the `first` steps of windows."""
    if not steps.before:
        return steps.embeddings
    continues = np.ones((len(steps.embeddings), 1, 1), bool)
    continues[first] = False
    seen = steps.embeddings[:, : steps.before] * send(continues, steps.embeddings.device)
    return torch.cat([seen, steps.embeddings[:, steps.before :]], 1)
