"""The base class of codecs: normalized chunks to token sequences and back.

A codec is fitted once, on the training data (`anyvla data fit-codec`), and saved as a folder beside the run and inside
every checkpoint. A policy may write an invalid sequence: `decode` always returns a chunk.
"""

from __future__ import annotations

import hashlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
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
    """Chunks (N, A) in [-1, 1] as at most L tokens 0 .. V-1. Made by `Class(config, chunk, space, assets=None)`.

    `assets`: a folder that `save` wrote. Without it the codec is unfitted, unless it learns nothing from data. What it
    learned is either in buffers, as part of a checkpoint's weights, or in files of its folder, never in both.
    """

    Config: ClassVar[type]
    kind: ClassVar[Literal["tokens"]] = "tokens"
    size: int  # V
    length: int  # L, the most tokens of a chunk
    elementwise: ClassVar[bool] = False  # each token is one number of the chunk, action by action
    bookkeeping: ClassVar[frozenset[str]] = frozenset()  # files of its folder that change no token's meaning
    fitted: bool = False  # whether it can encode
    ends: bool = False  # a chunk may take fewer than L tokens: decoders then write an end token, of id V

    def __init__(self, chunk: int, space: ActionSpace) -> None:
        super().__init__()
        self.chunk, self.space = chunk, space

    @abstractmethod
    def fit(self, chunks: Float[Tensor, "K N A"], seed: int = 0) -> Mapping[str, Any]:
        """Learn from normalized chunks. Return facts to report, without the round-trip error."""

    @abstractmethod
    def encode(self, chunks: Float[Tensor, "M N A"], mask: Bool[Tensor, "M N"] | None = None) -> Int64[Tensor, "M L"]:
        """Return the tokens of each chunk; -1 past its end and where there is nothing to learn.

        Where `mask` is False, always at the end of a chunk, there is no action: codecs that treat each element by
        itself return -1, others pad with the last action. A chunk without any action is all -1.
        """

    def hide_missing(self, tokens: Int64[Tensor, "M L"], mask: Bool[Tensor, "M N"]) -> Int64[Tensor, "M L"]:
        """Return the tokens of padded chunks as `encode` returns them with this mask."""
        if not self.elementwise:
            return tokens.masked_fill(~mask.any(1, keepdim=True), -1)
        of_elements = mask[..., None].expand(-1, -1, tokens.shape[1] // mask.shape[1]).flatten(1)  # (M, L)
        return tokens.masked_fill(~of_elements, -1)

    @abstractmethod
    def decode(self, tokens: Int64[Tensor, "M L"]) -> tuple[Float[Tensor, "M N A"], Bool[Tensor, "M"]]:
        """Return chunks in [-1, 1] on the device of the tokens, and which sequences were invalid, on any device.

        Invalid sequences give the nearest chunk that is defined.

        Tokens from the first one outside of 0 .. V-1 on count as past the end.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the files that `assets` reads."""

    def identity(self) -> str:
        """Return a text that two codecs share only if each token means the same to both."""
        learned = hashlib.sha256()
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder))
            for path in sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.name not in self.bookkeeping):
                learned.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
        groups = ", ".join(f"{g.name} {g.size}" for g in self.space.groups)
        return f"{type(self).__name__} of {self.chunk} actions ({groups}), {learned.hexdigest()[:16]}"

    def check_fitted(self) -> None:
        """Raise CodecError, with the command that fixes it, if the codec cannot encode yet."""
        if not self.fitted:
            raise CodecError(
                f"the {type(self).__name__} was not fitted: run anyvla data fit-codec RECIPE, which fits it to the "
                "recipe's data, and train again"
            )

    def check_chunks(self, chunks: Tensor) -> None:
        """Raise CodecError if the codec cannot be fitted to these chunks."""
        name = type(self).__name__
        shape = (self.chunk, self.space.size)
        if chunks.ndim != 3 or chunks.shape[1:] != shape or not len(chunks):
            raise CodecError(
                f"{name} is fitted to chunks (K, {shape[0]}, {shape[1]}), K at least 1; got {tuple(chunks.shape)}"
            )
        if not bool(torch.isfinite(chunks).all()):
            raise CodecError(f"{name} is fitted to finite chunks; these hold NaN or infinity: fix the data")


def gripper_dims(space: ActionSpace) -> list[int]:
    """Return the dims of all grippers."""
    dims = space.slices()
    return [d for g in space.groups if g.kind == "gripper" for d in range(dims[g.name].start, dims[g.name].stop)]


def reaches_power_of_ten(before: int, now: int) -> bool:
    """Return whether a count reached its first 1, 10, 100, ..., to log a repeated warning seldom."""
    return now > before and (not before or len(str(before)) < len(str(now)))
