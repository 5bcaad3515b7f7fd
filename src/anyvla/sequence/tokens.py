"""The tokens of single steps, and token sequences of several steps. Letters of shapes: `anyvla.types`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from anyvla.transfer import send


@dataclass(frozen=True)
class StepTokens:
    """The tokens of M steps, one list per step, with image tokens and without padding."""

    prefix: Sequence[int]  # opens each sequence, once (BOS)
    tokens: Sequence[Sequence[int]]  # M lists
    images: UInt8[Tensor, "M V H W 3"]


@dataclass(frozen=True)
class HostTokens:
    """A token sequence on the CPU, where places of tokens are found without waiting for a device."""

    input_ids: Int64[np.ndarray, "S L"]
    attention_mask: Bool[np.ndarray, "S L"]
    query_mask: Bool[np.ndarray, "S L"]

    @cached_property
    def query_places(self) -> Int64[np.ndarray, "n"]:
        """Return the query positions, counted over the flattened (S, L)."""
        return np.flatnonzero(self.query_mask)


@dataclass(frozen=True)
class TokenSequence:
    """S token sequences that hold M steps in all, right-padded. Row-major order of steps and images."""

    input_ids: Int64[Tensor, "S L"]
    attention_mask: Bool[Tensor, "S L"]  # False at padding
    query_mask: Bool[Tensor, "S L"]  # True at the M * R query positions
    step_ids: Int64[Tensor, "S L"]  # the step of each position within its sequence, from 0; -1 at prefix and padding
    images: UInt8[Tensor, "M V H W 3"]
    # False hides key k from position l; K: the cached positions, then these L
    block_mask: Bool[Tensor, "S L K"] | None = None
    block_mask_only: bool = False  # use block_mask alone; otherwise it is combined with the causal mask
    positions: Int64[Tensor, "S L"] | None = None  # position ids; None: consecutive after the cache
    query_places: Int64[Tensor, "n"] | None = None  # the query positions, counted over the flattened (S, L)
    on_host: HostTokens | None = None  # None: it must be read from the device

    def find_queries(self) -> Int64[Tensor, "n"]:
        """Return the query positions, counted over the flattened (S, L)."""
        return self.query_mask.flatten().nonzero().squeeze(1) if self.query_places is None else self.query_places

    def find_tokens(self, token: int) -> Int64[Tensor, "n"]:
        """Return the places of a token, counted over the flattened (S, L)."""
        if self.on_host is None:
            return (self.input_ids == token).flatten().nonzero().squeeze(1)
        return send(np.flatnonzero(self.on_host.input_ids == token), self.input_ids.device)
