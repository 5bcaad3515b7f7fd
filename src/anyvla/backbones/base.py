"""The contract between anyvla and a vision-language model.

A `Backbone` turns each step's images and instruction into tokens (`tokenize`: no network runs) and reads a sequence of
one or more steps (`forward`): at reserved places of the sequence a learnable query embedding stands instead of a token,
and the last hidden state there is the readout. Which steps share a sequence is not the backbone's business: that is
the history (`anyvla.histories.base`).

Most models read token ids; for them `anyvla.backbones.tokens.TokenBackbone` does all but a few lines.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from anyvla.sequence.cache import Cache
from anyvla.sequence.tokens import StepTokens, TokenSequence

Capability = Literal["interleave", "block_mask", "continue", "cache", "keys_values", "lm_head"]
CAPABILITIES: Mapping[Capability, str] = {
    "interleave": "read several steps in one sequence",
    "block_mask": "hide any place of a sequence from any other (`TokenSequence.block_mask`)",
    "continue": "go on reading after what it has read (`Cache`), if need be by reading that again",
    "cache": "go on reading without reading again what it has read",
    "keys_values": "show what each of its layers remembers (`Backbone.get_keys_values`)",
    "lm_head": "embed and score single tokens of its vocabulary (`Backbone.embed`, `Backbone.compute_logits`)",
}


def capabilities_without(lacks: frozenset[Capability]) -> frozenset[Capability]:
    """All capabilities but these, and but those that need one of these."""
    if "continue" in lacks:
        lacks = lacks | {"cache"}
    return frozenset(CAPABILITIES) - lacks - ({"keys_values"} if "cache" in lacks else set())


ModelPart = Literal["vision", "projector", "language", "embeddings"]
MODEL_PARTS: tuple[ModelPart, ...] = get_args(ModelPart)


class Backbone(nn.Module, ABC):
    """A vision-language model as anyvla sees it.

    A subclass has a nested `Config` (a `STRICT` pydantic dataclass) and the constructor `Class(config, assets=None)`.
    Without `assets` it loads or initializes its weights; with `assets`, a folder that `save_assets` wrote, it is built
    without weights, which the caller then loads (a checkpoint's `model.safetensors`).
    """

    Config: ClassVar[type]
    width: int  # D, of the readouts
    capabilities: frozenset[Capability]
    pad_id: int
    query_id: int  # the token id that keeps the place of a query; its embedding is never used

    @classmethod
    def find_capabilities(cls, config: Any, assets: Path | None = None) -> frozenset[Capability] | None:
        """What `cls(config, assets)` will be capable of, found out without building it; None: only building tells.

        Here: what the class declares. Raises ValueError for a model that is not there.
        """
        declared = getattr(cls, "capabilities", None)
        return declared if isinstance(declared, frozenset) else None

    @abstractmethod
    def tokenize(self, images: UInt8[Tensor, "M V H W 3"], instructions: Sequence[str]) -> StepTokens:
        """Tokenize M steps. Raises ValueError for images that are not uint8 (M, V, H, W, 3)."""

    @abstractmethod
    def forward(
        self, sequence: TokenSequence, queries: Float[Tensor, "*M R D"], cache: Cache | None = None
    ) -> Float[Tensor, "M R D"]:
        """The last hidden states at the queries of all steps, in order. The vision tower runs once per image.

        `queries`: the same for all steps, or those of each step.
        With a `cache` (capability "continue") the sequences go on where those of the last call with it ended.
        """

    @abstractmethod
    def part_modules(self) -> dict[ModelPart, tuple[nn.Module, ...]]:
        """The modules of each part. One may lie inside another: a parameter belongs to the innermost that is named.

        What none of them holds belongs to the projector, but an LM head that is not tied belongs to no part.
        """

    def get_keys_values(self, cache: Cache) -> list[tuple[Float[Tensor, "S h K d"], Float[Tensor, "S h K d"]]]:
        """What each layer remembers, first layer first; keys as its attention uses them. Capability "keys_values"."""
        raise NotImplementedError(f"{type(self).__name__} cannot {CAPABILITIES['keys_values']}")

    def get_kv_shapes(self) -> list[tuple[int, int, int]]:
        """Of what each layer remembers (`keys_values`): heads h, and how wide a key and a value are."""
        raise NotImplementedError(f"{type(self).__name__} cannot {CAPABILITIES['keys_values']}")

    def embed(self, ids: Int64[Tensor, "..."]) -> Float[Tensor, "... D"]:
        """Tokens as `queries` could stand for them. Capability "lm_head"."""
        raise NotImplementedError(f"{type(self).__name__} cannot {CAPABILITIES['lm_head']}")

    def compute_logits(self, hidden: Float[Tensor, "... D"], ids: Int64[Tensor, "n"]) -> Float[Tensor, "... n"]:
        """The LM head's logits of these ids. Capability "lm_head"."""
        raise NotImplementedError(f"{type(self).__name__} cannot {CAPABILITIES['lm_head']}")

    def last_token_ids(self, count: int) -> Int64[Tensor, "n"]:
        """The last `count` regular ids of the vocabulary, ascending. Raises ValueError if it has not so many."""
        raise NotImplementedError(f"{type(self).__name__} cannot {CAPABILITIES['lm_head']}")

    def unfreeze_lm_head(self) -> None:
        """Train the LM head, which no readout depends on, if the language model is trained."""
        raise NotImplementedError(f"{type(self).__name__} cannot {CAPABILITIES['lm_head']}")

    @abstractmethod
    def save_assets(self, folder: Path) -> None:
        """Write all but the weights (configuration, tokenizer, preprocessing), for the constructor to read."""
