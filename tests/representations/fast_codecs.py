"""FAST codecs fitted to smooth chunks, and the published algorithm to compare them with."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from scipy.fft import dctn, idctn
from tokenizers import ByteLevelBPETokenizer
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from anyvla.config import build
from anyvla.representations.fast import FastCodec
from anyvla.representations.fast_bpe import PROCESSOR
from anyvla.robot.space import ActionSpace, Group

N = 8
SPACE = ActionSpace(
    groups=(
        Group(name="hand", size=2, kind="position", mode="delta"),
        Group(name="gripper", size=1, kind="gripper", low=0, high=1),
    )
)
A = SPACE.size
seeds = st.integers(0, 2**32 - 1)


def codec(chunk: int = N, assets: Path | None = None, **options: Any) -> FastCodec:
    return FastCodec(build(FastCodec.Config, options), chunk, SPACE, assets)


def smooth(k: int, seed: int = 0, reach: float = 0.9, chunk: int = N) -> Tensor:
    """Straight lines with a little noise, and a gripper that closes once or not."""
    g = torch.Generator().manual_seed(seed)
    ends = (torch.rand(k, 2, A, generator=g) * 2 - 1) * reach
    out = torch.lerp(ends[:, :1], ends[:, 1:], torch.linspace(0, 1, chunk)[:, None])
    out += torch.randn(k, chunk, A, generator=g) * 0.02
    closes = torch.randint(0, 3 * chunk, (k, 1), generator=g)
    out[:, :, 2] = torch.where(torch.arange(chunk) < closes, 1.0, -1.0)
    return out.clamp(-1, 1)


def wild(m: int, seed: int) -> Tensor:
    return torch.rand(m, N, A, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def fitted(**options: Any) -> FastCodec:
    made = codec(**options)
    made.fit(smooth(400))
    return made


FITTED = fitted()


def anew(length: int | None = None) -> FastCodec:
    """`FITTED` with counters at 0, and perhaps another T."""
    own = copy.deepcopy(FITTED)
    own.clipped = own.cut = 0
    own.length = length or own.length
    return own


def rows(tokens: Tensor) -> list[list[int]]:
    return [row[row >= 0].tolist() for row in tokens]


def padded(made: FastCodec, *sequences: list[int]) -> Tensor:
    return torch.tensor([row + [-1] * (made.length - len(row)) for row in sequences])


def spectrum(chunks: Tensor) -> np.ndarray:
    """(M, N*A) coefficients times the scale of 10, not rounded, by scipy."""
    return (10 * dctn(chunks.double().numpy(), axes=[1], norm="ortho")).reshape(len(chunks), -1)


def unambiguous(chunks: Tensor) -> bool:
    """Return whether no coefficient is so close to the middle of two integers that arithmetic decides its rounding."""
    return bool((abs(spectrum(chunks) % 1 - 0.5) > 1e-6).all())


class Published:
    """The published processor, written from its description with scipy and a tokenizer of transformers."""

    def __init__(self, tokenizer: Any, scale: float, lowest: int) -> None:
        self.tokenizer, self.scale, self.lowest = tokenizer, scale, lowest

    @classmethod
    def open(cls, folder: Path) -> Published:
        settings = json.loads((folder / PROCESSOR).read_text())
        return cls(AutoTokenizer.from_pretrained(folder), settings["scale"], settings["min_token"])

    @classmethod
    def fit(cls, chunks: Tensor, scale: float = 10, vocabulary: int = 1024) -> Published:
        numbers = np.around(dctn(chunks.double().numpy(), axes=[1], norm="ortho") * scale).astype(int)
        alphabet = [chr(code) for code in range(np.ptp(numbers) + 1)]
        options = {"min_frequency": 2, "special_tokens": [], "max_token_length": 10000, "show_progress": False}
        trainer = BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, **options)
        bpe = ByteLevelBPETokenizer()
        texts = ("".join(chr(n - numbers.min()) for n in row.flatten()) for row in numbers)
        bpe._tokenizer.train_from_iterator(texts, trainer=trainer)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, clean_up_tokenization_spaces=False)
        return cls(tokenizer, scale, int(numbers.min()))

    def save(self, folder: Path, subfolder: str = "", **settings: Any) -> None:
        self.tokenizer.save_pretrained(folder / subfolder)
        settings = {"scale": self.scale, "min_token": self.lowest, "vocab_size": 1024, **settings}
        (folder / PROCESSOR).write_text(json.dumps({"processor_class": "UniversalActionProcessor", **settings}))

    def ids(self, chunks: Tensor) -> list[list[int]]:
        numbers = np.around(dctn(chunks.double().numpy(), axes=[1], norm="ortho") * self.scale).astype(int)
        texts = ["".join(chr(max(n - self.lowest, 0)) for n in row.flatten()) for row in numbers]
        return [self.tokenizer(text)["input_ids"] for text in texts]

    def actions(self, ids: list[list[int]], chunk: int) -> np.ndarray:
        numbers = [[ord(c) + self.lowest for c in self.tokenizer.decode(row)] for row in ids]
        return idctn(np.array(numbers).reshape(len(ids), chunk, A) / self.scale, axes=[1], norm="ortho")
