"""The contract between anyvla and a vision-language model.

A `Backbone` turns each step's images and instruction into tokens (`prepare`: no network runs) and reads a sequence of
one or more steps (`forward`): at reserved places of the sequence a learnable query embedding stands instead of a token,
and the last hidden state there is the readout. Which steps share a sequence is not the backbone's business: that is
the history (`anyvla.structures.history`).

Most models read token ids; for them `anyvla.backbones.tokens.TokenBackbone` does all but a few lines.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from anyvla.types import Block, TokenSequence

Capability = Literal["interleave", "block_mask", "cache"]
CAPABILITIES: Mapping[Capability, str] = {
    "interleave": "read several steps in one sequence",
    "block_mask": "hide any place of a sequence from any other (`TokenSequence.mask`)",
    "cache": "go on reading after what it has read (`Cache`)",
}
Part = Literal["vision", "projector", "language", "embeddings"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass
class Cache:
    """What a backbone remembers of S sequences, so that its next call reads new places only. Begin with `Cache()`.

    Calling a backbone with a cache changes it. Its fields are the backbone's business.
    """

    state: Any = None  # keys and values, of the model's own kind
    valid: Bool[Tensor, "S K"] | None = None  # which remembered places are no padding
    position: Int64[Tensor, "S"] | None = None  # of the next place


class Backbone(nn.Module, ABC):
    """A vision-language model as anyvla sees it.

    A subclass has a nested `Config` (a `STRICT` pydantic dataclass) and the constructor `Class(config, assets=None)`.
    Without `assets` it loads or initialises its weights; with `assets`, a folder that `save_assets` wrote, it is built
    without weights, which the caller then loads (a checkpoint's `model.safetensors`).
    """

    Config: ClassVar[type]
    width: int  # D, of the readouts
    capabilities: frozenset[Capability]
    pad_id: int
    query_id: int  # the token id that keeps the place of a query; its embedding is never used

    @classmethod
    def capabilities_of(cls, config: Any, assets: Path | None = None) -> frozenset[Capability] | None:
        """What `cls(config, assets)` will be capable of, found out without building it; None: only building tells.

        Here: what the class declares. Raises ValueError for a model that is not there.
        """
        declared = getattr(cls, "capabilities", None)
        return declared if isinstance(declared, frozenset) else None

    @abstractmethod
    def prepare(self, images: UInt8[Tensor, "M V H W 3"], instructions: Sequence[str]) -> Block:
        """Tokenise M steps. Raises ValueError for images that are not uint8 (M, V, H, W, 3)."""

    @abstractmethod
    def forward(
        self, sequence: TokenSequence, queries: Float[Tensor, "R D"], cache: Cache | None = None
    ) -> Float[Tensor, "M R D"]:
        """The last hidden states at the queries of all steps, in order. The vision tower runs once per image.

        With a `cache` (capability "cache") the sequences go on where those of the last call with it ended.
        """

    @abstractmethod
    def part_modules(self) -> dict[Part, tuple[nn.Module, ...]]:
        """The modules of each part. One may lie inside another: a parameter belongs to the innermost that is named.

        What none of them holds belongs to the projector, but an LM head that is not tied belongs to no part.
        """

    @abstractmethod
    def save_assets(self, folder: Path) -> None:
        """Write all but the weights (configuration, tokenizer, preprocessing), for the constructor to read."""
