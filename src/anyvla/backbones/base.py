"""The contract between anyvla and a vision-language model.

A `Backbone` turns each step's images and instruction into tokens (`prepare`: no network runs) and reads a sequence of
one or more steps (`forward`): at reserved places of the sequence a learnable query embedding stands instead of a token,
and the last hidden state there is the readout. Which steps share a sequence is not the backbone's business: that is
the history (`anyvla.structures.history`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from jaxtyping import Float, UInt8
from torch import Tensor, nn

from anyvla.types import Block, TokenSequence


class Backbone(nn.Module, ABC):
    """A vision-language model as anyvla sees it.

    A subclass has a nested `Config` (a `STRICT` pydantic dataclass) and the constructor `Class(config, assets=None)`.
    Without `assets` it loads or initialises its weights; with `assets`, a folder that `save_assets` wrote, it is built
    without weights, which the caller then loads (a checkpoint's `model.safetensors`).
    """

    Config: ClassVar[type]
    width: int  # D, of the readouts
    capabilities: frozenset[str]  # of: "interleave" (several steps in one sequence)
    pad_id: int
    query_id: int  # the token id that keeps the place of a query; its embedding is never used

    @abstractmethod
    def prepare(self, images: UInt8[Tensor, "M V H W 3"], instructions: Sequence[str]) -> Block:
        """Tokenise M steps. Raises ValueError for images that are not uint8 (M, V, H, W, 3)."""

    @abstractmethod
    def forward(self, sequence: TokenSequence, queries: Float[Tensor, "R D"]) -> Float[Tensor, "M R D"]:
        """The last hidden states at the queries of all steps, in order. The vision tower runs once per image."""

    @abstractmethod
    def save_assets(self, folder: Path) -> None:
        """Write all but the weights (configuration, tokenizer, preprocessing), for the constructor to read."""
