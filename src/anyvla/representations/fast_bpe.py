"""Byte-pair encoding of integers, and the folder of a FAST tokenizer (`physical-intelligence/fast` on the hub).

An integer becomes the character whose code is its distance from the lowest integer, a row of integers becomes a text,
and the text becomes tokens of a byte-level BPE. No code of the folder is run: the tokenizer is JSON.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from anyvla.files.documents import read_object, regular_size
from anyvla.representations.codec import CodecError

PROCESSOR, TOKENIZER, TOKENIZER_CONFIG = "processor_config.json", "tokenizer.json", "tokenizer_config.json"
# The code stays at the hub: `AutoProcessor` finds it there, for those who trust it.
CLASS = "physical-intelligence/fast--processing_action_tokenizer.UniversalActionProcessor"
UNREADABLE = 0xD800  # codes from here on (surrogates, U+FFFD) come from bytes that are no text
LARGEST = 1 << 28  # bytes of a tokenizer
MOST_TOKENS = 2**20
FINEST = 10_000.0  # the largest scale
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class IntegerBPE:
    """Integers of -bound .. bound <-> tokens 0 .. size - 1."""

    def __init__(self, tokenizer: Tokenizer, lowest: int, bound: int) -> None:
        """`lowest`: the integer that is character 0. Raises CodecError if the tokenizer can write no integer."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer, self.lowest, self.bound = tokenizer, lowest, bound
        self.size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if self.size > MOST_TOKENS:
            raise CodecError(f"the tokenizer has {self.size:,} tokens, more than the {MOST_TOKENS:,} that one may have")
        codes = np.arange(max(-bound, lowest), min(bound, lowest + UNREADABLE - 1) + 1) - lowest
        texts = [chr(code) for code in codes]
        alone = tokenizer.encode_batch_fast(texts)
        # A character outside the alphabet vanishes silently, and all later ones would move up.
        returned = tokenizer.decode_batch([e.ids for e in alone], skip_special_tokens=False)
        self.written = codes[[a == b for a, b in zip(texts, returned, strict=True)]] + lowest  # ascending
        if not len(self.written):
            raise CodecError(f"this is no tokenizer of FAST: it has no character for any of {-bound} .. {bound}")
        middles = (self.written[:-1] + self.written[1:]) / 2
        self._nearest = self.written[np.searchsorted(middles, np.arange(-bound, bound + 1))]

    @classmethod
    def learn(cls, rows: Int64[np.ndarray, "K X"], vocabulary: int, bound: int) -> IntegerBPE:
        """Learn a tokenizer as published: an alphabet from the lowest to the highest integer, pairs seen twice merged.

        Raises CodecError if `vocabulary` is too small for the alphabet.
        """
        lowest, highest = int(rows.min()), int(rows.max())
        alphabet = highest - lowest + 1
        if alphabet <= vocabulary:
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
            trainer = BpeTrainer(
                vocab_size=vocabulary,
                min_frequency=2,
                show_progress=False,
                special_tokens=[],
                initial_alphabet=[chr(code) for code in range(alphabet)],
                max_token_length=10_000,
            )
            tokenizer.train_from_iterator(iter(_as_texts(rows - lowest)), trainer=trainer)
            alphabet = max(alphabet, tokenizer.get_vocab_size() - _count_merges(tokenizer))  # bytes
        if alphabet > vocabulary:
            raise CodecError(
                f"coefficients from {lowest} to {highest} need {alphabet} tokens before any can be merged, more than "
                f"vocabulary {vocabulary}: give a larger vocabulary, or a smaller scale"
            )
        return cls(tokenizer, lowest, bound)

    @property
    def merges(self) -> int:
        """The number of tokens that were merged from several bytes."""
        return _count_merges(self.tokenizer)

    def encode(self, rows: Int64[np.ndarray, "M X"]) -> tuple[list[list[int]], int]:
        """Return the tokens of each row, and how many integers were moved to the nearest one that can be encoded."""
        nearest = self._nearest[np.clip(rows, -self.bound, self.bound) + self.bound]
        encoded = self.tokenizer.encode_batch_fast(_as_texts(nearest - self.lowest))
        return [e.ids for e in encoded], int((nearest != rows).sum())

    def decode(self, rows: Sequence[Sequence[int]]) -> list[tuple[Int64[np.ndarray, "X"], int]]:
        """Return the integers of each row before the first unreadable one, and how many follow from there on."""
        out = []
        for text in self.tokenizer.decode_batch(rows, skip_special_tokens=False):
            codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.int64)
            bad = codes >= UNREADABLE
            readable = int(bad.argmax()) if bad.any() else len(codes)
            out.append((codes[:readable] + self.lowest, len(codes) - readable))
        return out


@dataclass(frozen=True)
class Processor:
    """The content of `processor_config.json`."""

    scale: float
    lowest: int
    chunk: int | None  # None: any
    dims: int | None


def write_tokenizer(folder: Path, bpe: IntegerBPE, processor: Processor) -> None:
    """Write a folder that the published processor and `read_tokenizer` can read."""
    folder.mkdir(parents=True, exist_ok=True)
    bpe.tokenizer.save(str(folder / TOKENIZER))
    content: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(content, indent=2), encoding="utf-8")
    content = {
        "processor_class": "UniversalActionProcessor",
        "auto_map": {"AutoProcessor": CLASS},
        "scale": processor.scale,
        "vocab_size": bpe.size,
        "min_token": processor.lowest,
        "time_horizon": processor.chunk,
        "action_dim": processor.dims,
    }
    (folder / PROCESSOR).write_text(json.dumps(content, indent=2), encoding="utf-8")


def read_tokenizer(source: str | Path) -> tuple[Tokenizer, Processor]:
    """Return the tokenizer in a folder or of a hub id. Raises CodecError."""
    processor, tokenizer = _find_files(source)
    try:
        content = read_object(processor)
        scale, lowest = content.get("scale", 10), content.get("min_token", 0)
        known = _is_number(scale) and 0 < scale <= FINEST and _is_number(lowest, whole=True)
        shape = [content.get(key) for key in ("time_horizon", "action_dim")]
        if not known or not all(size is None or _is_number(size, whole=True) for size in shape):
            raise ValueError(f"scale {scale!r}, min_token {lowest!r}, time_horizon and action_dim {shape}")
    except ValueError as error:
        raise CodecError(f"{processor} does not describe a FAST tokenizer: {error}") from None
    try:
        if regular_size(tokenizer) > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes")
        return Tokenizer.from_file(str(tokenizer)), Processor(float(scale), lowest, *shape)
    except Exception as error:  # tokenizers raises nothing more specific
        raise CodecError(f"{tokenizer} cannot be read: {error}") from None


def _find_files(source: str | Path) -> tuple[Path, Path]:
    """Return `processor_config.json` and `tokenizer.json`, which newer versions of transformers put a folder deeper."""
    folder = Path(source)
    if folder.is_dir():
        paths = [folder / TOKENIZER, folder / "bpe_tokenizer" / TOKENIZER]
        tokenizer = next((path for path in paths if path.is_file()), None)
        if tokenizer is None or not (folder / PROCESSOR).is_file():
            raise CodecError(f"{folder} holds no FAST tokenizer: it needs {PROCESSOR} and {TOKENIZER}")
        return folder / PROCESSOR, tokenizer
    if not HUB_ID.fullmatch(str(source)):
        raise CodecError(f"there is no folder {source}, and an id of the hub looks like physical-intelligence/fast")
    from transformers.utils import cached_file

    try:
        found = [cached_file(str(source), name) for name in (PROCESSOR, TOKENIZER)]
    except OSError as error:
        raise CodecError(
            f"there is no FAST tokenizer {source} here, and the hub did not provide it; run `hf download {source}` "
            f"where there is a network and give the folder it prints ({error})"
        ) from None
    return Path(found[0]), Path(found[1])


def _as_texts(codes: Int64[np.ndarray, "M X"]) -> list[str]:
    text, width = codes.astype("<u4").tobytes().decode("utf-32-le"), codes.shape[1]
    return [text[begin : begin + width] for begin in range(0, len(text), width)]


def _count_merges(tokenizer: Tokenizer) -> int:
    return len(json.loads(tokenizer.to_str())["model"]["merges"])


def _is_number(value: Any, whole: bool = False) -> bool:
    kinds = (int,) if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
