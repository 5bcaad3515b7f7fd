"""FAST (Pertsch et al., arXiv 2501.09747): rounded coefficients of a cosine transform over time, byte-pair encoded.

Smooth motion leaves few coefficients that are not 0, and these come first, so a chunk takes few tokens. The folder of a
fitted codec is a FAST tokenizer as published, and any published one can be used.
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
from anyvla.representations.codec import Codec, CodecError, reaches_power_of_ten
from anyvla.representations.fast_bpe import FINEST, IntegerBPE, Processor, read_tokenizer, write_tokenizer
from anyvla.robot.chunks import pad_with_last_action
from anyvla.robot.space import ActionSpace
from anyvla.transfer import send

log = logging.getLogger(__name__)

FILE = "fast.json"  # values that the published format does not hold
LONGEST = 2**16  # tokens of a chunk
HEAD_ROOM = 1.25  # L, relative to the longest chunk fitted to


class FastCodec(Codec):
    """Chunks (N, A) as tokens of their N*A coefficients, low frequencies first, the dims of each side by side.

    The error of each coefficient, and so the root mean square error of a chunk, is at most 0.5 / scale. L is 1.25 times
    the longest chunk that the codec was fitted to (N*A if it was not fitted). A longer chunk loses its last tokens, the
    highest frequencies. A coefficient without a character becomes the nearest one that has. Both are counted.
    """

    ends = True
    bookkeeping = frozenset({FILE})  # the longest chunk and the resting action
    clipped: int = 0  # coefficients so far that became the nearest one that can be encoded
    cut: int = 0  # chunks so far that took more than L tokens

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        """Options of `representation: {name: fast}`."""

        vocabulary: int = Field(default=1024, ge=2, le=2**16)  # most tokens to learn; with `path`, the tokenizer's
        scale: float = Field(default=10.0, gt=0, le=FINEST)  # gamma, steps per unit; with `path`, the tokenizer's
        path: str | None = None  # a FAST tokenizer to use unchanged: a folder, or an id on the hub

    def __init__(self, config: Config, chunk: int, space: ActionSpace, assets: Path | None = None) -> None:
        """Raise CodecError for a folder without a FAST tokenizer, or with one made for other chunks."""
        super().__init__(chunk, space)
        self.config, self.scale = config, config.scale
        self.size, self.length = config.vocabulary, chunk * space.size
        self._basis = _dct_matrix(chunk)  # no buffer: text is made on the CPU, from exact numbers
        self._rest = np.zeros(space.size)
        self._bpe: IntegerBPE | None = None
        if assets is not None:
            self._read(assets)
        elif config.path is not None:
            self._read(config.path)

    def fit(self, chunks: Float[Tensor, "K N A"], seed: int = 0) -> Mapping[str, Any]:
        """Learn L and, unless `path` gives them, the tokens. Raises CodecError for a vocabulary that is too small."""
        self.check_chunks(chunks)
        rows = self._coefficients(chunks)
        bpe = self._bpe
        if self.config.path is None or bpe is None:
            bpe = IntegerBPE.learn(rows, self.config.vocabulary, self._bound)
        tokens, clipped = bpe.encode(rows)
        longest = max(map(len, tokens))
        self._bpe, self.size, self.fitted = bpe, bpe.size, True
        self.length = math.ceil(HEAD_ROOM * longest)
        self._rest = np.median(_as_float64(chunks).reshape(-1, self.space.size), axis=0)
        return {
            "coefficients": f"{rows.min()} .. {rows.max()}",
            "merged_tokens": bpe.merges,
            "longest_chunk": longest,
            "clipped_coefficients": clipped,
        }

    def encode(self, chunks: Float[Tensor, "M N A"], mask: Bool[Tensor, "M N"] | None = None) -> Int64[Tensor, "M L"]:
        """Return tokens, low frequencies first; missing actions are padded with the last one."""
        bpe = self._fitted_bpe()
        rows, clipped = bpe.encode(self._coefficients(pad_with_last_action(chunks, mask)))
        out = np.full((len(rows), self.length), -1)
        for number, row in enumerate(rows):
            out[number, : len(row)] = row[: self.length]
        tokens = torch.from_numpy(out).to(chunks.device)
        if mask is not None:
            tokens = self.hide_missing(tokens, mask)
        before, self.clipped = self.clipped, self.clipped + clipped
        if reaches_power_of_ten(before, self.clipped):
            log.warning("FAST: %d coefficients have no character and became the nearest one that has", self.clipped)
        before, self.cut = self.cut, self.cut + sum(len(row) > self.length for row in rows)
        if reaches_power_of_ten(before, self.cut):
            log.warning("FAST: %d chunks were cut to %d tokens, the most of a chunk", self.cut, self.length)
        return tokens

    def decode(self, tokens: Int64[Tensor, "M L"]) -> tuple[Float[Tensor, "M N A"], Bool[Tensor, "M"]]:
        """Return the chunks of the coefficients.

        Coefficients from the first unreadable one on are those of a resting chunk (at 0 or, where fitted, at the median
        of the data): 0 except for the lowest frequency. Surplus ones are ignored. A sequence is valid if it has all
        coefficients, or was cut to L tokens.
        """
        bpe = self._fitted_bpe()
        ids = tokens.cpu()  # the device is waited for once
        known = ((ids >= 0) & (ids < self.size)).long().cumprod(1).sum(1).tolist()
        rows = [row[:n] for row, n in zip(ids.tolist(), known, strict=True)]
        resting = np.zeros((self.chunk, self.space.size))
        resting[0] = self._rest * self.scale * math.sqrt(self.chunk)
        coefficients = np.tile(resting.reshape(-1), (len(rows), 1))  # (M, N*A)
        count = coefficients.shape[1]
        valid = np.ones(len(rows), bool)
        for number, (integers, unreadable) in enumerate(bpe.decode(rows)):
            coefficients[number, : len(integers)] = integers[:count]
            whole = len(integers) == count and not unreadable
            cut = len(rows[number]) >= self.length and len(integers) + unreadable <= count and unreadable <= 1
            valid[number] = whole or cut
        spectrum = coefficients.reshape(-1, self.chunk, self.space.size) / self.scale
        chunks = torch.from_numpy(self._basis.T @ spectrum).clamp(-1, 1)
        return send(chunks.float(), tokens.device), torch.from_numpy(~valid)

    def save(self, folder: Path) -> None:
        """Write a FAST tokenizer as published, and L and the resting action beside it."""
        bpe = self._fitted_bpe()
        write_tokenizer(folder, bpe, Processor(self.scale, bpe.lowest, self.chunk, self.space.size))
        (folder / FILE).write_text(json.dumps({"length": self.length, "rest": self._rest.tolist()}), encoding="utf-8")

    @property
    def _bound(self) -> int:
        """The largest coefficient of a chunk in [-1, 1], whose norm is at most that of a chunk of ones."""
        return math.ceil(self.scale * math.sqrt(self.chunk))

    def _coefficients(self, chunks: Float[Tensor, "M N A"]) -> Int64[np.ndarray, "M X"]:
        integers = np.rint(self._basis @ _as_float64(chunks) * self.scale).astype(np.int64)
        return integers.reshape(-1, self.chunk * self.space.size)

    def _fitted_bpe(self) -> IntegerBPE:
        self.check_fitted()
        assert self._bpe is not None
        return self._bpe

    def _read(self, source: str | Path) -> None:
        tokenizer, processor = read_tokenizer(source)
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
        self.size, self.fitted = self._bpe.size, True
        file = Path(source) / FILE
        if file.is_file():
            self.length, self._rest = _load(file, self.space.size)


def _dct_matrix(chunk: int) -> Float64[np.ndarray, "N N"]:
    """Return the orthonormal DCT-II: row k is the wave of frequency k."""
    time = (np.arange(chunk) + 0.5) / chunk
    waves = np.cos(np.pi * np.arange(chunk)[:, None] * time) * math.sqrt(2 / chunk)
    waves[0] /= math.sqrt(2)
    return waves


def _as_float64(chunks: Float[Tensor, "M N A"]) -> Float64[np.ndarray, "M N A"]:
    return chunks.detach().cpu().double().clamp(-1, 1).numpy()


def _load(file: Path, dims: int) -> tuple[int, Float64[np.ndarray, "A"]]:
    """Read L and the resting action that `save` wrote. Raises CodecError."""
    try:
        learned = read_object(file)
        length, rest = learned["length"], np.array(learned["rest"], np.float64)
        known = isinstance(length, int) and 1 <= length <= LONGEST
        if not known or rest.shape != (dims,) or np.abs(rest).max(initial=0) > 1:
            raise ValueError(f"length {length}, rest of {rest.shape}")
    except (ValueError, KeyError, TypeError) as error:
        raise CodecError(f"{file} cannot be read ({error!r}): run anyvla data fit-codec RECIPE again") from None
    return length, rest
