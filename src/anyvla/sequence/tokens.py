"""Token sequences: the tokens of single steps, and steps laid out in sequences, as a backbone reads them.

Letters in shapes: see `anyvla.types`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True)
class StepTokens:
    """The tokens of M steps, one list a step, image places included, without padding."""

    prefix: Sequence[int]  # what opens a sequence, once (BOS)
    tokens: Sequence[Sequence[int]]  # M lists
    images: UInt8[Tensor, "M V H W 3"]


@dataclass(frozen=True)
class TokenSequence:
    """S token sequences that hold M steps in all, right-padded. Row-major order of steps and images."""

    input_ids: Int64[Tensor, "S L"]
    attention_mask: Bool[Tensor, "S L"]  # False at padding
    query_mask: Bool[Tensor, "S L"]  # True at the M*R places of queries
    step_ids: Int64[Tensor, "S L"]  # which step of its sequence a place belongs to, from 0; -1 at prefix and padding
    images: UInt8[Tensor, "M V H W 3"]
    block_mask: Bool[Tensor, "S L K"] | None = (
        None  # False hides place k from place l; K: remembered places, then these L
    )
    block_mask_only: bool = False  # the mask alone says who sees whom, later places included; else it only takes away
    positions: Int64[Tensor, "S L"] | None = None  # where places do not simply go on after what is remembered
