"""The contract of a codec: normalized chunks <-> token sequences.

A codec is fitted once, on the training data (`anyvla data fit-codec`), lies as a folder beside the recipe's run and
travels inside the checkpoint. Using one that was not fitted is an error. What a policy writes need not be a chunk at
all: `decode` always gives a defined one, and says where it had to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from jaxtyping import Bool, Float, Int64
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from anyvla.config import STRICT
from anyvla.robot.space import ActionSpace


class CodecError(ValueError):
    """A codec that is not fitted, or fitted to other chunks."""


class Continuous:
    """No codec: actions are real numbers."""

    kind: ClassVar[Literal["continuous"]] = "continuous"

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """`representation: continuous` has no options."""


class Codec(nn.Module, ABC):
    """Chunks (N, A) in [-1, 1] as at most T tokens 0 .. V-1. Made by `Class(config, chunk, space, assets=None)`.

    `assets`: a folder that `save` wrote. Without it the codec is unfitted, unless it `needs_no_fit`. What it learned
    lies in buffers (part of a checkpoint's weights) or in files of its folder, never in both.
    """

    Config: ClassVar[type]
    kind: ClassVar[Literal["tokens"]] = "tokens"
    size: int  # V
    length: int  # T, the most tokens of a chunk
    elementwise: ClassVar[bool] = False  # each token is one number of the chunk, action by action
    ends: bool = False  # a chunk may take fewer than T tokens: decoders then write an end token, of id V

    def __init__(self, chunk: int, space: ActionSpace) -> None:
        super().__init__()
        self.chunk, self.space = chunk, space

    @property
    @abstractmethod
    def fitted(self) -> bool:
        """Whether it can encode."""

    @abstractmethod
    def fit(self, chunks: Float[Tensor, "K N A"], seed: int = 0) -> Mapping[str, Any]:
        """Learn from normalized chunks. Returns facts to report, the round-trip error not among them."""

    @abstractmethod
    def encode(self, chunks: Float[Tensor, "M N A"], mask: Bool[Tensor, "M N"] | None = None) -> Int64[Tensor, "M T"]:
        """Tokens of each chunk; -1 where there is none: past the end, or nothing to be learned.

        Where `mask` is False, always at the end of a chunk, there is no action: codecs that treat each element by
        itself give -1, others hold the last action. A chunk without any action is all -1.
        """

    @abstractmethod
    def decode(self, tokens: Int64[Tensor, "M T"]) -> tuple[Float[Tensor, "M N A"], Bool[Tensor, "M"]]:
        """Chunks in [-1, 1], and which sequences were invalid; those give the nearest chunk that is defined.

        Tokens from the first one outside of 0 .. V-1 on count as past the end.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what `assets` reads."""

    def check_fitted(self) -> None:
        """Raises CodecError, with the command that mends it, if the codec cannot encode yet."""
        if not self.fitted:
            raise CodecError(
                f"the {type(self).__name__} was not fitted: run anyvla data fit-codec RECIPE, which fits it to the "
                "recipe's data, and train again"
            )
