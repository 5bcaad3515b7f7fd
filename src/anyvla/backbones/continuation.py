"""What the backbone remembers of M steps, and how to go on reading after each of them.

A decoder that lives in the backbone writes a suffix of T places after a step. It sees the step's own tokens and those
of earlier steps of its window, not the readouts of its step (it has them through the context), and nothing of other
suffixes. In training all steps of a window share a row of the cache, and each row gets the suffixes of its steps one
after another; their mask and their positions make them as if each stood alone after its step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from anyvla.backbones.base import Backbone
from anyvla.sequence.cache import Cache
from anyvla.sequence.layout import lay_out
from anyvla.sequence.tokens import StepTokens


@dataclass(frozen=True)
class Continuation:
    """M steps in S rows, a row's steps in order; `counts` says how many each row has."""

    backbone: Backbone
    cache: Cache  # of S rows; never changed
    counts: tuple[int, ...]  # S of them, M in all
    visible: Bool[Tensor, "M K"]  # which remembered places the suffix of a step sees
    positions: Int64[Tensor, "M"]  # of the first place of its suffix

    def fold(self, x: Tensor) -> Tensor:
        """(M, T, ...) as (S, W*T, ...), zeros after the steps of a row, W the most steps of a row."""
        if max(self.counts) == 1:
            return x
        rows = x.split(self.counts)
        return torch.nn.utils.rnn.pad_sequence([row.flatten(0, 1) for row in rows], batch_first=True)

    def unfold(self, x: Tensor, places: int) -> Tensor:
        """The inverse of `fold`: (S, W*T, ...) as (M, T, ...), T = `places`."""
        if max(self.counts) == 1:
            return x
        return torch.cat([row[: n * places].unflatten(0, (n, places)) for row, n in zip(x, self.counts, strict=True)])

    def get_keys_values(self) -> list[tuple[Float[Tensor, "S h K d"], Float[Tensor, "S h K d"]]]:
        """What each layer of the backbone remembers, first layer first; keys as attention uses them (rotated)."""
        return self.backbone.get_keys_values(self.cache)

    def build_cache_mask(self, places: int) -> Bool[Tensor, "S W*T K"]:
        """Which remembered places the T = `places` places of each suffix see, as rows of `fold`."""
        return self.fold(self.visible[:, None].expand(-1, places, -1))

    def build_suffix_mask(self, places: int, *, causal: bool) -> Bool[Tensor, "S W*T W*T"]:
        """Which places of all suffixes each place sees: those of its own suffix, only earlier ones if `causal`."""
        steps = max(self.counts)
        number = torch.arange(steps * places, device=self.visible.device)
        step, place = number // places, number % places
        own = step[:, None] == step
        if causal:
            own = own & (place[:, None] >= place)
        return own.expand(len(self.counts), -1, -1)

    def run_suffix(self, embeddings: Float[Tensor, "M T D"], *, causal: bool) -> Float[Tensor, "M T D"]:
        """The last hidden states of suffixes of these embeddings. What is remembered stays as it is."""
        return self.start_suffix().extend(embeddings, causal=causal)

    def start_suffix(self) -> Suffix:
        """Begin a suffix that is written some places at a time."""
        return Suffix(self)

    def detach(self) -> Continuation:
        """The same, through which no gradient flows."""
        return replace(self, cache=self.cache.detach())

    def select(self, steps: Int64[Tensor, "m"]) -> Continuation:
        """Only these steps, each in a row of its own."""
        row = torch.repeat_interleave(torch.tensor(self.counts)).to(steps.device)[steps]
        return Continuation(
            self.backbone, self.cache.select(row), (1,) * len(steps), self.visible[steps], self.positions[steps]
        )


class Suffix:
    """A suffix per step, written some places at a time: `extend` reads on where the last call ended."""

    def __init__(self, continuation: Continuation) -> None:
        self.steps = continuation
        self.cache = continuation.cache.fork()
        self.written = 0  # places of each suffix
        self.mask = continuation.build_cache_mask(1)  # (S, W, K'): what any place of a suffix sees so far

    def extend(self, embeddings: Float[Tensor, "M T D"], *, causal: bool = True) -> Float[Tensor, "M T D"]:
        """The last hidden states of T more places of each suffix. They see each other, only backwards if `causal`."""
        steps, places = self.steps, embeddings.shape[1]
        most = max(steps.counts)
        images = torch.zeros(0, 1, 1, 1, 3, dtype=torch.uint8, device=embeddings.device)
        backbone = steps.backbone
        sequence = lay_out(
            StepTokens([], [[]] * len(embeddings), images),
            steps.counts,
            places,
            pad_id=backbone.pad_id,
            query_id=backbone.query_id,
        )
        own = steps.build_suffix_mask(places, causal=causal)  # (S, W*T, W*T)
        number = torch.arange(self.written, self.written + places, device=embeddings.device)
        sequence = replace(
            sequence,
            block_mask=torch.cat([self.mask.repeat_interleave(places, 1), own], 2),
            block_mask_only=True,
            positions=steps.fold(steps.positions[:, None] + number),
        )
        hidden = backbone(sequence, embeddings, self.cache)
        step = torch.arange(most * places, device=own.device) // places
        mine = torch.arange(most, device=own.device)[:, None] == step  # (W, W*T)
        self.mask = torch.cat([self.mask, mine.expand(len(own), -1, -1)], 2)
        self.written += places
        return hidden
