"""FAST as it is published: the same tokens, and folders that the published processor can read or has written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from anyvla.representations.codec import CodecError
from anyvla.representations.fast import FILE, HEAD_ROOM, FastCodec
from anyvla.representations.fast_bpe import PROCESSOR, TOKENIZER
from tests.representations.fast_codecs import (
    FITTED,
    A,
    N,
    Published,
    codec,
    fitted,
    rows,
    smooth,
)


def test_the_fit_learns_the_published_tokenizer() -> None:
    data = smooth(400)
    reference = Published.fit(data)
    made, theirs = (
        json.loads(FITTED._bpe.tokenizer.to_str()),
        json.loads(reference.tokenizer.backend_tokenizer.to_str()),
    )
    assert made["model"]["vocab"] == theirs["model"]["vocab"]
    assert made["model"]["merges"] == theirs["model"]["merges"]
    assert FITTED.size == len(theirs["model"]["vocab"])
    assert FITTED._bpe.lowest == reference.lowest
    assert rows(FITTED.encode(data)) == reference.ids(data)


@pytest.mark.parametrize("chunk", [1, 2, 5, 8, 50])
def test_a_saved_codec_is_a_published_tokenizer(chunk: int, tmp_path: Path) -> None:
    made = codec(chunk)
    made.fit(smooth(300, chunk=chunk))
    made.save(tmp_path)
    chunks = smooth(40, seed=1, reach=0.7, chunk=chunk)
    ids, reference = rows(made.encode(chunks)), Published.open(tmp_path)
    assert made.clipped == made.cut == 0
    assert ids == reference.ids(chunks)
    decoded = reference.actions(ids, chunk).clip(-1, 1)
    np.testing.assert_allclose(made.decode(made.encode(chunks))[0].numpy(), decoded, atol=1e-6)


def test_the_saved_folder_has_the_keys_of_the_published_processor(tmp_path: Path) -> None:
    FITTED.save(tmp_path)
    saved = json.loads((tmp_path / PROCESSOR).read_text())
    assert saved["processor_class"] == "UniversalActionProcessor"
    owner, _, target = saved["auto_map"]["AutoProcessor"].partition("--")  # the code stays at the hub
    assert (owner, target) == ("physical-intelligence/fast", "processing_action_tokenizer.UniversalActionProcessor")
    assert (saved["scale"], saved["vocab_size"], saved["min_token"]) == (10, FITTED.size, FITTED._bpe.lowest)
    assert (saved["time_horizon"], saved["action_dim"]) == (N, A)
    fitted(scale=25.0).save(tmp_path / "finer")
    assert json.loads((tmp_path / "finer" / PROCESSOR).read_text())["scale"] == 25
    assert codec(path=str(tmp_path / "finer")).scale == 25


@pytest.mark.parametrize("subfolder", ["", "bpe_tokenizer"])  # as transformers 4 wrote it, and as 5 does
def test_a_published_folder_is_used_as_it_is(subfolder: str, tmp_path: Path) -> None:
    reference = Published.fit(smooth(300, seed=4), scale=20, vocabulary=300)
    reference.save(tmp_path, subfolder, time_horizon=None, action_dim=None)
    made = codec(path=str(tmp_path))
    assert made.fitted
    assert made.size == 300
    assert made.length == N * A  # the data is unknown
    chunks = smooth(50, seed=5, reach=0.6)
    ids = reference.ids(chunks)
    assert rows(made.encode(chunks)) == ids
    np.testing.assert_allclose(
        made.decode(made.encode(chunks))[0].numpy(), reference.actions(ids, N).clip(-1, 1), atol=1e-6
    )


def test_characters_of_two_bytes_are_read_as_published(tmp_path: Path) -> None:
    """physical-intelligence/fast has its 0 at character 354."""
    reference = Published.fit(smooth(300), scale=10)
    numbers = np.random.default_rng(0).integers(-354, 354, (3000, 4))
    texts = ["".join(chr(n + 354) for n in row) for row in numbers]
    bpe = ByteLevelBPETokenizer()
    alphabet = [chr(i) for i in range(708)]
    trainer = BpeTrainer(vocab_size=2048, show_progress=False, initial_alphabet=alphabet, max_token_length=10000)
    bpe._tokenizer.train_from_iterator(texts, trainer=trainer)
    reference = Published(PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer), 10, -354)
    reference.save(tmp_path)
    made = codec(path=str(tmp_path))
    chunks = smooth(30, seed=1)
    ids = reference.ids(chunks)
    made.length = max(map(len, ids))
    assert rows(made.encode(chunks)) == ids
    assert made.clipped == 0
    decoded, wrong = made.decode(made.encode(chunks))
    np.testing.assert_allclose(decoded.numpy(), reference.actions(ids, N).clip(-1, 1), atol=1e-6)
    assert not wrong.any()


def test_fitting_a_published_tokenizer_learns_the_length_only(tmp_path: Path) -> None:
    Published.fit(smooth(300, seed=4)).save(tmp_path)
    made = codec(path=str(tmp_path))
    before = made._bpe.tokenizer.to_str()
    facts = made.fit(smooth(200))
    assert made._bpe.tokenizer.to_str() == before
    assert made.length == math.ceil(HEAD_ROOM * facts["longest_chunk"]) < N * A


def test_an_id_of_the_hub_is_fetched_as_two_json_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FITTED.save(tmp_path)
    asked = []

    def cached(source: str, name: str) -> str:
        asked.append((source, name))
        return str(tmp_path / name)

    monkeypatch.setattr("transformers.utils.cached_file", cached)
    made = codec(path="physical-intelligence/fast")
    assert asked == [("physical-intelligence/fast", PROCESSOR), ("physical-intelligence/fast", TOKENIZER)]
    assert torch.equal(rows_of(made, smooth(5)), rows_of(FITTED, smooth(5)))


def rows_of(made: FastCodec, chunks: Tensor) -> Tensor:
    tokens = made.encode(chunks)
    return torch.nn.functional.pad(tokens, (0, N * A - tokens.shape[1]), value=-1)[:, : N * A]


def test_a_folder_that_is_no_fast_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CodecError, match=r"holds no FAST tokenizer: it needs processor_config.json and tokenizer.json"):
        codec(path=str(tmp_path))
    with pytest.raises(CodecError, match=r"there is no folder .*missing.* an id of the hub looks like"):
        codec(path=str(tmp_path / "missing"))


def test_an_unreachable_hub_is_reported_with_the_download_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def cached(source: str, name: str) -> str:
        raise OSError("offline")

    monkeypatch.setattr("transformers.utils.cached_file", cached)
    with pytest.raises(CodecError, match=r"run `hf download somebody/fast` where there is a network .*offline"):
        codec(path="somebody/fast")


def test_missing_keys_have_the_defaults_of_the_published_processor(tmp_path: Path) -> None:
    """UniversalActionProcessor: scale = 10, min_token = 0."""
    FITTED.save(tmp_path)
    (tmp_path / FILE).unlink()
    (tmp_path / PROCESSOR).write_text("{}")
    made = codec(path=str(tmp_path), scale=3.0)
    assert (made.scale, made._bpe.lowest, made.length) == (10, 0, N * A)
    chunks = torch.zeros(1, N, A)
    chunks[..., 1] = 0.3  # 10 * 0.3 * sqrt(8) is 8.49
    decoded, _ = made.decode(made.encode(chunks))
    torch.testing.assert_close(decoded[0], torch.tensor([0, 0.8 / math.sqrt(N), 0]).expand(N, A))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (PROCESSOR, "[]", "does not describe a FAST tokenizer"),
        (PROCESSOR, "{", "does not describe a FAST tokenizer"),
        (PROCESSOR, '{"scale": "10"}', "does not describe a FAST tokenizer: scale '10'"),
        (PROCESSOR, '{"scale": 10, "min_token": 0.5}', "does not describe a FAST tokenizer: .*min_token 0.5"),
        (PROCESSOR, '{"scale": 10, "min_token": 500}', "it has no character for any of -29 .. 29"),
        (PROCESSOR, '{"scale": 10, "time_horizon": 50}', "made for 50 actions a chunk, and these are 8"),
        (PROCESSOR, '{"scale": 10, "action_dim": 7}', "made for 7 dims, and these are 3: .*fit-codec RECIPE"),
        (PROCESSOR, '{"scale": 20}', r"made for 20.0 steps a unit \(scale\), and these are 10.0"),
        (TOKENIZER, "{}", "tokenizer.json cannot be read"),
        (FILE, "{}", "fast.json cannot be read .*fit-codec RECIPE again"),
        (FILE, '{"length": 5, "rest": [0]}', "fast.json cannot be read"),
        (FILE, '{"length": 0, "rest": [0, 0, 0]}', "fast.json cannot be read"),
    ],
)
def test_a_broken_folder_is_refused(file: str, text: str, message: str, tmp_path: Path) -> None:
    FITTED.save(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(CodecError, match=message):
        codec(assets=tmp_path)


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    FITTED.save(tmp_path)
    (tmp_path / "processing_action_tokenizer.py").write_text("raise SystemExit('code of a folder was run')")
    assert codec(path=str(tmp_path)).fitted


def test_truncation_and_padding_of_a_tokenizer_are_turned_off(tmp_path: Path) -> None:
    FITTED.save(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / TOKENIZER))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=60)
    tokenizer.save(str(tmp_path / TOKENIZER))
    chunks = smooth(4)
    assert torch.equal(codec(assets=tmp_path).encode(chunks), FITTED.encode(chunks))
