"""The contract between anyvla and a vision-language model.

A `Backbone` tokenizes the images and the instruction of each step (`tokenize`; no network runs) and reads a sequence of
one or more steps (`forward`). At reserved positions of the sequence, learnable query embeddings replace the token
embeddings; the last hidden states at these positions are the readouts. The history (`anyvla.histories.base`) decides
which steps share a sequence.

Most models read token ids; `anyvla.backbones.tokens.TokenBackbone` implements nearly all of the contract for them.
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
    "block_mask": "hide any position of a sequence from any other (`TokenSequence.block_mask`)",
    "continue": "decode further after a sequence (`Cache`), if necessary by reading the sequence again",
    "cache": "decode further without reading the sequence again",
    "keys_values": "return the cached keys and values of its layers (`Backbone.get_keys_values`)",
    "lm_head": "embed and score single tokens of its vocabulary (`Backbone.embed`, `Backbone.compute_logits`)",
}


def capabilities_without(lacks: frozenset[Capability]) -> frozenset[Capability]:
    """Return all capabilities except these and the ones that depend on them."""
    if "continue" in lacks:
        lacks = lacks | {"cache"}
    return frozenset(CAPABILITIES) - lacks - ({"keys_values"} if "cache" in lacks else set())


ModelPart = Literal["vision", "projector", "language", "embeddings"]
MODEL_PARTS: tuple[ModelPart, ...] = get_args(ModelPart)


class Backbone(nn.Module, ABC):
    """A vision-language model as anyvla sees it.

    A subclass has a nested `Config` (a `STRICT` pydantic dataclass) and the constructor `Class(config, assets=None)`.
    Without `assets` it loads or initializes its weights. With `assets`, a folder written by `save_assets`, it is built
    without weights; the caller loads them afterwards (a checkpoint's `model.safetensors`).
    """

    Config: ClassVar[type]
    width: int  # D, of the readouts
    capabilities: frozenset[Capability]
    pad_id: int
    query_id: int  # the token id at the positions of queries; its embedding is never used

    @classmethod
    def find_capabilities(cls, config: Any, assets: Path | None = None) -> frozenset[Capability] | None:
        """Return the capabilities of `cls(config, assets)` without building it; None if only building can tell.

        By default these are the declared ones. Raises ValueError if the model does not exist.
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
        """Return the last hidden states at the query positions, step by step. The vision tower runs once per image.

        `queries` are the same for all steps (R, D) or one set per step (M, R, D). With a `cache` (capability
        "continue"), the sequences continue where the last call with the same cache ended.
        """

    @abstractmethod
    def part_modules(self) -> dict[ModelPart, tuple[nn.Module, ...]]:
        """Return the modules of each part. If they are nested, a parameter belongs to the innermost one.

        Parameters outside all of them belong to the projector, except an untied LM head, which belongs to no part.
        """

    def get_keys_values(self, cache: Cache) -> list[tuple[Float[Tensor, "S h K d"], Float[Tensor, "S h K Dv"]]]:
        """Return the cached keys (after the rotation by position) and values of each layer, first layer first.

        Needs the capability "keys_values".
        """
        raise NotImplementedError(f"{type(self).__name__} cannot {CAPABILITIES['keys_values']}")

    def get_kv_shapes(self) -> list[tuple[int, int, int]]:
        """Return the number of heads and the widths of keys and of values for each layer of `get_keys_values`."""
        raise NotImplementedError(f"{type(self).__name__} cannot {CAPABILITIES['keys_values']}")

    def embed(self, ids: Int64[Tensor, "*batch"]) -> Float[Tensor, "*batch D"]:
        """Return the embeddings of tokens, usable as `queries`. Needs the capability "lm_head"."""
        raise NotImplementedError(f"{type(self).__name__} cannot {CAPABILITIES['lm_head']}")

    def compute_logits(self, hidden: Float[Tensor, "*batch D"], ids: Int64[Tensor, "n"]) -> Float[Tensor, "*batch n"]:
        """Return the LM head's logits of these ids. Needs the capability "lm_head"."""
        raise NotImplementedError(f"{type(self).__name__} cannot {CAPABILITIES['lm_head']}")

    def last_token_ids(self, count: int) -> Int64[Tensor, "n"]:
        """Return the last `count` regular ids of the vocabulary, ascending. Raises ValueError if there are fewer."""
        raise NotImplementedError(f"{type(self).__name__} cannot {CAPABILITIES['lm_head']}")

    def unfreeze_lm_head(self) -> None:
        """Train the LM head, on which no readout depends, if the language model is trained."""
        raise NotImplementedError(f"{type(self).__name__} cannot {CAPABILITIES['lm_head']}")

    @abstractmethod
    def save_assets(self, folder: Path) -> None:
        """Write everything but the weights (configuration, tokenizer, preprocessing), for the constructor to read."""
