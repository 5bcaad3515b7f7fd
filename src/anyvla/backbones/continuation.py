"""Decodes further after each of M steps that the backbone has cached.

A decoder that uses the backbone decodes a suffix of C tokens after a step. The suffix sees the tokens of its own step
and of earlier steps of the window, but neither the readouts of its step (the decoder gets them through its input) nor
other suffixes. In training, all steps of a window share one row of the cache, and the suffixes of its steps follow one
after another. Their mask and positions are as if each suffix alone followed its step.

Letters: S rows, T most steps of a row, C tokens of a suffix, TC = T * C, K cached positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from anyvla.backbones.base import Backbone
from anyvla.sequence.cache import Cache
from anyvla.sequence.layout import lay_out
from anyvla.sequence.tokens import StepTokens
from anyvla.transfer import send


@dataclass(frozen=True)
class Continuation:
    """M cached steps in S rows, with `counts` steps per row."""

    backbone: Backbone
    cache: Cache  # of S rows; never changed here
    counts: tuple[int, ...]  # S numbers of steps, M in all
    visible: Bool[Tensor, "M K"]  # cached positions that the suffix of a step sees
    positions: Int64[Tensor, "M"]  # position id of the first token of its suffix

    def fold(self, x: Tensor) -> Tensor:
        """Reshape (M, C, ...) to (S, TC, ...), with zeros after the last step of a row."""
        if max(self.counts) == 1:
            return x
        rows = x.split(self.counts)
        return torch.nn.utils.rnn.pad_sequence([row.flatten(0, 1) for row in rows], batch_first=True)

    def unfold(self, x: Tensor, length: int) -> Tensor:
        """Invert `fold`: reshape (S, TC, ...) to (M, C, ...), C = `length`."""
        if max(self.counts) == 1:
            return x
        return torch.cat([row[: n * length].unflatten(0, (n, length)) for row, n in zip(x, self.counts, strict=True)])

    def get_keys_values(self) -> list[tuple[Float[Tensor, "S h K d"], Float[Tensor, "S h K Dv"]]]:
        """Return the cached keys (rotated by position) and values of each layer, first layer first."""
        return self.backbone.get_keys_values(self.cache)

    def build_cache_mask(self, length: int) -> Bool[Tensor, "S TC K"]:
        """Return the cached positions that the C = `length` tokens of each suffix see."""
        return self.fold(self.visible[:, None].expand(-1, length, -1))

    def build_suffix_mask(self, length: int, *, causal: bool) -> Bool[Tensor, "S TC TC"]:
        """Return which tokens of all suffixes see each other: only of the same suffix, and if `causal` only earlier."""
        steps = max(self.counts)
        number = torch.arange(steps * length, device=self.visible.device)
        step, token = number // length, number % length
        own = step[:, None] == step
        if causal:
            own = own & (token[:, None] >= token)
        return own.expand(len(self.counts), -1, -1)

    def run_suffix(self, embeddings: Float[Tensor, "M C D"], *, causal: bool) -> Float[Tensor, "M C D"]:
        """Return the last hidden states of suffixes with these embeddings; the cache stays unchanged."""
        return self.start_suffix().extend(embeddings, causal=causal)

    def start_suffix(self) -> Suffix:
        """Begin suffixes that are decoded some tokens at a time."""
        return Suffix(self)

    def detach(self) -> Continuation:
        """Return a copy without gradients."""
        return replace(self, cache=self.cache.detach())

    def select(self, steps: Sequence[int]) -> Continuation:
        """Return these steps only, each in its own row."""
        rows = np.repeat(np.arange(len(self.counts)), self.counts)
        numbers = np.array(steps, np.int64)
        row, step = send(np.stack([rows[numbers], numbers]), self.visible.device)
        return Continuation(
            self.backbone, self.cache.select(row), (1,) * len(numbers), self.visible[step], self.positions[step]
        )


class Suffix:
    """A suffix per step, decoded some tokens at a time: each call of `extend` continues the last."""

    def __init__(self, continuation: Continuation) -> None:
        self.steps = continuation
        self.cache = continuation.cache.fork()
        self.length = 0  # tokens of each suffix so far
        self.mask = continuation.build_cache_mask(1)  # (S, T, K'): the positions that the next token of a suffix sees

    def extend(self, embeddings: Float[Tensor, "M C D"], *, causal: bool = True) -> Float[Tensor, "M C D"]:
        """Return the last hidden states of C more tokens of each suffix; if `causal`, they see only earlier ones."""
        steps, length = self.steps, embeddings.shape[1]
        most = max(steps.counts)
        images = torch.zeros(0, 1, 1, 1, 3, dtype=torch.uint8, device=embeddings.device)
        backbone = steps.backbone
        sequence = lay_out(
            StepTokens([], [[]] * len(embeddings), images),
            steps.counts,
            length,
            pad_id=backbone.pad_id,
            query_id=backbone.query_id,
        )
        own = steps.build_suffix_mask(length, causal=causal)  # (S, TC, TC)
        number = torch.arange(self.length, self.length + length, device=embeddings.device)
        sequence = replace(
            sequence,
            block_mask=torch.cat([self.mask.repeat_interleave(length, 1), own], 2),
            block_mask_only=True,
            positions=steps.fold(steps.positions[:, None] + number),
        )
        hidden = backbone(sequence, embeddings, self.cache)
        step = torch.arange(most * length, device=own.device) // length
        mine = torch.arange(most, device=own.device)[:, None] == step  # (T, TC)
        self.mask = torch.cat([self.mask, mine.expand(len(own), -1, -1)], 2)
        self.length += length
        return hidden
