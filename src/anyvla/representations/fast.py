"""FAST: a chunk is the rounded coefficients of a cosine transform over time, shortened by byte-pair encoding.

Pertsch et al., arXiv 2501.09747. Smooth motion leaves few coefficients that are not 0, and these stand first: a chunk
takes few tokens, most of them rich. The folder of a fitted codec is a FAST tokenizer as published, and any published
one can be used.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from anyvla.config import STRICT
from anyvla.files.documents import read_object
from anyvla.representations.codec import Codec, CodecError
from anyvla.representations.fast_bpe import FINEST, IntegerBPE, Processor, read, write
from anyvla.robot.chunks import pad_with_last_action
from anyvla.robot.space import ActionSpace

log = logging.getLogger(__name__)

FILE = "fast.json"  # what the published folder has no place for
LONGEST = 2**16  # tokens of a chunk
HEAD_ROOM = 1.25  # T, of the longest chunk fitted to


class FastCodec(Codec):
    """Chunks (N, A) as tokens of their N*A coefficients, low frequencies first, the dims of each side by side.

    The error of each coefficient is at most 0.5 / scale, and so, by an orthonormal transform, is the root mean square
    error of a chunk. T is 1.25 times the longest chunk that the codec was fitted to (N*A if it was not fitted); of a
    chunk that takes more, the last tokens are dropped, which hold the highest frequencies. Both this and coefficients
    that the tokenizer has no character for, which become the nearest it has, are counted.
    """

    ends = True
    clipped: int = 0  # coefficients encoded so far that became the nearest one that can be written
    cut: int = 0  # chunks encoded so far that took more than T tokens

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `representation: {name: fast}`."""

        vocabulary: int = Field(default=1024, ge=2, le=2**16)  # most tokens to learn; with `path`: what lies there
        scale: float = Field(default=10.0, gt=0, le=FINEST)  # the paper's gamma, steps per unit; with `path`: likewise
        path: str | None = None  # a FAST tokenizer to use as it is: a folder, or an id as physical-intelligence/fast

    def __init__(self, config: Config, chunk: int, space: ActionSpace, assets: Path | None = None) -> None:
        """Raises CodecError for a folder without a FAST tokenizer, or one made for other chunks."""
        super().__init__(chunk, space)
        self.config, self.scale = config, config.scale
        self.size, self.length = config.vocabulary, chunk * space.size
        self._basis = _cosines(chunk)  # no buffer: text is made on the CPU, of numbers that are exact
        self._rest = np.zeros(space.size)
        self._bpe: IntegerBPE | None = None
        if assets is not None:
            self._read(assets)
        elif config.path is not None:
            self._read(config.path)

    @property
    def fitted(self) -> bool:
        return self._bpe is not None

    def fit(self, chunks: Float[Tensor, "K N A"], seed: int = 0) -> Mapping[str, Any]:
        """Learn the tokens, unless `path` gives them, and T. Raises CodecError for a vocabulary that is too small."""
        _check(chunks, self.chunk, self.space.size)
        rows = self._coefficients(chunks)
        bpe = self._bpe
        if self.config.path is None or bpe is None:
            bpe = IntegerBPE.learn(rows, self.config.vocabulary, self._bound)
        tokens, clipped = bpe.encode(rows)
        longest = max(map(len, tokens))
        self._bpe, self.size = bpe, bpe.size
        self.length = math.ceil(HEAD_ROOM * longest)
        self._rest = np.median(_exact(chunks).reshape(-1, self.space.size), axis=0)
        return {
            "coefficients": f"{rows.min()} .. {rows.max()}",
            "merged_tokens": bpe.merges,
            "longest_chunk": longest,
            "clipped_coefficients": clipped,
        }

    def encode(self, chunks: Float[Tensor, "M N A"], mask: Bool[Tensor, "M N"] | None = None) -> Int64[Tensor, "M T"]:
        """Tokens, low frequencies first; missing actions hold the last one."""
        bpe = self._fitted()
        rows, clipped = bpe.encode(self._coefficients(pad_with_last_action(chunks, mask)))
        out = np.full((len(rows), self.length), -1)
        for place, row in enumerate(rows):
            out[place, : len(row)] = row[: self.length]
        tokens = torch.from_numpy(out).to(chunks.device)
        if mask is not None:
            tokens = tokens.masked_fill(~mask.any(1, keepdim=True), -1)
        self._count("clipped", clipped, "coefficients have no character in the alphabet and became the nearest one")
        self._count("cut", sum(len(row) > self.length for row in rows), "chunks were cut to the most tokens of a chunk")
        return tokens

    def decode(self, tokens: Int64[Tensor, "M T"]) -> tuple[Float[Tensor, "M N A"], Bool[Tensor, "M"]]:
        """Chunks of the coefficients written. Missing ones, from the first that cannot be read on, are those of a chunk
        that rests (at 0, or at the median of the data where fitted): 0 but for the lowest frequency. Further ones are
        left out. Sequences with all coefficients are valid, and those cut to T tokens.
        """
        bpe = self._fitted()
        ended = (tokens < 0) | (tokens >= self.size)  # (M, T)
        known = (~ended).long().cumprod(1).sum(1).tolist()
        rows = [row[:n] for row, n in zip(tokens.tolist(), known, strict=True)]
        resting = np.zeros((self.chunk, self.space.size))
        resting[0] = self._rest * self.scale * math.sqrt(self.chunk)
        coefficients = np.tile(resting.reshape(-1), (len(rows), 1))  # (M, N*A)
        every = coefficients.shape[1]
        valid = np.ones(len(rows), bool)
        for place, (numbers, unreadable) in enumerate(bpe.decode(rows)):
            coefficients[place, : len(numbers)] = numbers[:every]
            whole = len(numbers) == every and not unreadable
            cut = len(rows[place]) >= self.length and len(numbers) + unreadable <= every and unreadable <= 1
            valid[place] = whole or cut
        spectrum = coefficients.reshape(-1, self.chunk, self.space.size) / self.scale
        chunks = torch.from_numpy(self._basis.T @ spectrum).clamp(-1, 1)
        return chunks.float().to(tokens.device), torch.from_numpy(~valid).to(tokens.device)

    def save(self, folder: Path) -> None:
        """Write a FAST tokenizer as published, and what it has no place for."""
        bpe = self._fitted()
        write(folder, bpe, Processor(self.scale, bpe.lowest, self.chunk, self.space.size))
        (folder / FILE).write_text(json.dumps({"length": self.length, "rest": self._rest.tolist()}), encoding="utf-8")

    @property
    def _bound(self) -> int:
        """No coefficient of a chunk in [-1, 1] is larger: its norm is at most that of a chunk of ones."""
        return math.ceil(self.scale * math.sqrt(self.chunk))

    def _coefficients(self, chunks: Float[Tensor, "M N A"]) -> Int64[np.ndarray, "M X"]:
        return (
            np.rint(self._basis @ _exact(chunks) * self.scale)
            .astype(np.int64)
            .reshape(-1, self.chunk * self.space.size)
        )

    def _fitted(self) -> IntegerBPE:
        self.check_fitted()
        assert self._bpe is not None
        return self._bpe

    def _read(self, source: str | Path) -> None:
        tokenizer, processor = read(source)
        for what, there, here in (
            ("actions a chunk", processor.chunk, self.chunk),
            ("dims", processor.dims, self.space.size),
            ("steps a unit (scale)", processor.scale, processor.scale if self.config.path else self.config.scale),
        ):
            if there not in (None, here):
                raise CodecError(
                    f"the FAST tokenizer at {source} was made for {there} {what}, and these are {here}: leave `path` "
                    "out and run anyvla data fit-codec RECIPE, which makes one for the recipe's data"
                )
        self.scale = processor.scale
        self._bpe = IntegerBPE(tokenizer, processor.lowest, self._bound)
        self.size = self._bpe.size
        file = Path(source) / FILE
        if file.is_file():
            self.length, self._rest = _load(file, self.space.size)

    def _count(self, name: str, more: int, what: str) -> None:
        before = getattr(self, name)
        setattr(self, name, before + more)
        if more and (not before or len(str(before)) < len(str(before + more))):  # the 1st, 10th, 100th ...
            log.warning("FAST: %d %s", before + more, what)


def _cosines(chunk: int) -> Float64[np.ndarray, "N N"]:
    """The orthonormal DCT-II: row k is the wave of frequency k."""
    time = (np.arange(chunk) + 0.5) / chunk
    waves = np.cos(np.pi * np.arange(chunk)[:, None] * time) * math.sqrt(2 / chunk)
    waves[0] /= math.sqrt(2)
    return waves


def _exact(chunks: Float[Tensor, "M N A"]) -> Float64[np.ndarray, "M N A"]:
    return chunks.detach().cpu().double().clamp(-1, 1).numpy()


def _check(chunks: Tensor, chunk: int, dims: int) -> None:
    if chunks.ndim != 3 or chunks.shape[1:] != (chunk, dims) or not len(chunks):
        raise CodecError(f"FAST is fitted to chunks (K, {chunk}, {dims}), K at least 1; got {tuple(chunks.shape)}")
    if not bool(torch.isfinite(chunks).all()):
        raise CodecError("FAST is fitted to finite chunks; these hold NaN or infinity: mend the data")


def _load(file: Path, dims: int) -> tuple[int, Float64[np.ndarray, "A"]]:
    """T and where to rest, as `save` wrote them. Raises CodecError."""
    try:
        learned = read_object(file)
        length, rest = learned["length"], np.array(learned["rest"], np.float64)
        known = isinstance(length, int) and 1 <= length <= LONGEST
        if not known or rest.shape != (dims,) or np.abs(rest).max(initial=0) > 1:
            raise ValueError(f"length {length}, rest of {rest.shape}")
    except (ValueError, KeyError, TypeError) as error:
        raise CodecError(f"{file} cannot be read ({error!r}): run anyvla data fit-codec RECIPE again") from None
    return length, rest
