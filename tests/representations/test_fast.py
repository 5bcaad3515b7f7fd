"""FAST: bounds of its error, any tokens are a chunk, and bad input is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.fft import idctn
from torch import Tensor

from anyvla.config import ConfigError
from anyvla.representations.codec import CodecError
from anyvla.representations.fast import FILE, HEAD_ROOM
from tests.representations.fast_codecs import (
    FITTED,
    A,
    N,
    anew,
    codec,
    fitted,
    padded,
    rows,
    seeds,
    smooth,
    spectrum,
    unambiguous,
    wild,
)


@given(seed=seeds, reach=st.floats(0, 0.9))
@settings(max_examples=50)
def test_the_error_is_bounded_by_the_rounding(seed: int, reach: float) -> None:
    chunks, before = smooth(4, seed, reach), FITTED.clipped
    tokens = FITTED.encode(chunks)
    assume(FITTED.clipped == before)
    decoded, wrong = FITTED.decode(tokens)
    assert not wrong.any()
    norms = (decoded - chunks).double().square().sum(1).sqrt()  # (M, A)
    assert norms.max() <= math.sqrt(N) * 0.5 / 10 + 1e-5  # an orthonormal transform keeps the norm
    got, true = spectrum(decoded), spectrum(chunks)
    inside = (decoded.abs() < 1).all(1).repeat(1, N).numpy()  # clipping to [-1, 1] changes coefficients
    assert (abs(got - true)[inside] <= 0.5 + 1e-4).all()


@given(seed=seeds)
@settings(max_examples=50)
def test_quantized_chunks_are_unchanged(seed: int) -> None:
    chunks, before = smooth(4, seed, 0.8), FITTED.clipped
    once, _ = FITTED.decode(FITTED.encode(chunks))
    assume(FITTED.clipped == before)
    inside = (once.abs() < 1).all(2).all(1)  # clipping is no quantized chunk
    twice, _ = FITTED.decode(FITTED.encode(once))
    torch.testing.assert_close(twice[inside], once[inside], atol=1e-6, rtol=0)


@given(seed=seeds)
@settings(max_examples=50)
def test_any_chunk_is_encoded_with_the_nearest_coefficients_of_the_alphabet(seed: int) -> None:
    made, chunks = codec(), wild(6, seed)
    made.fit(smooth(30) * 0.5)
    made.length = 2 * N * A  # cuts nothing
    assume(unambiguous(chunks))
    true = np.rint(spectrum(chunks))
    written = made._bpe.written
    assert np.diff(written).max() > 1  # the published fit leaves holes where the data had none
    nearest = written[abs(true[..., None] - written).argmin(-1)]
    assume((nearest != true).any())  # of few seeds, all can be written
    decoded, wrong = made.decode(made.encode(chunks))
    assert not wrong.any()
    expected = idctn(nearest.reshape(-1, N, A) / 10, axes=[1], norm="ortho").clip(-1, 1)
    np.testing.assert_allclose(decoded.numpy(), expected, atol=1e-6)
    assert made.clipped == (nearest != true).sum()


@given(seed=seeds, length=st.integers(1, 30))
@settings(max_examples=50)
def test_a_chunk_that_is_too_long_keeps_its_lowest_frequencies(seed: int, length: int) -> None:
    made, chunks = anew(2 * N * A), wild(6, seed)
    whole = made.encode(chunks)
    made.length = length
    tokens = made.encode(chunks)
    assert torch.equal(tokens, whole[:, :length])
    assert made.cut == int((whole[:, length] >= 0).sum())
    decoded, wrong = made.decode(tokens)
    assert not wrong.any()  # a cut chunk is valid
    for row, chunk, full in zip(rows(tokens), decoded, made.decode(whole)[0], strict=True):
        known = len(made._bpe.decode([row])[0][0])
        if (full.abs() < 1).all() and (chunk.abs() < 1).all():
            rest = spectrum(torch.from_numpy(made._rest).expand(1, N, A))
            expected = np.concatenate([spectrum(full[None])[:, :known], rest[:, known:]], 1)
            np.testing.assert_allclose(spectrum(chunk[None]), expected, atol=1e-4)


@given(
    ids=st.lists(st.lists(st.integers(-3, FITTED.size + 3), max_size=2 * FITTED.length), min_size=1, max_size=5),
)
@settings(max_examples=200)
def test_any_tokens_decode_to_a_chunk(ids: list[list[int]]) -> None:
    wide = max(map(len, ids))
    tokens = torch.tensor([row + [FITTED.size] * (wide - len(row)) for row in ids], dtype=torch.int64)
    chunks, wrong = FITTED.decode(tokens.view(len(ids), wide))
    assert chunks.shape == (len(ids), N, A)
    assert chunks.dtype == torch.float32
    assert wrong.shape == (len(ids),)
    assert chunks.isfinite().all()
    assert (chunks.abs() <= 1).all()


@given(seed=seeds, m=st.integers(2, 8))
@settings(max_examples=30)
def test_rows_do_not_depend_on_their_neighbors(seed: int, m: int) -> None:
    chunks = torch.cat([smooth(m, seed), wild(m, seed)])
    tokens = FITTED.encode(chunks)
    assert torch.equal(tokens, torch.cat([FITTED.encode(chunk[None]) for chunk in chunks]))
    decoded, _ = FITTED.decode(tokens)
    assert torch.equal(decoded, torch.cat([FITTED.decode(row[None])[0] for row in tokens]))


def test_smooth_chunks_are_short_and_noise_is_not() -> None:
    chunks = smooth(500, seed=9, chunk=32)
    made = codec(32)
    made.fit(smooth(1000, chunk=32))
    tokens = (made.encode(chunks) >= 0).sum(1).float().mean()
    assert 32 * A / tokens > 4
    assert made.cut == made.clipped == 0
    noise = torch.rand(50, 32, A, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made.length = 2 * 32 * A
    assert (made.encode(noise) >= 0).sum(1).float().mean() > 3 * tokens


def test_a_higher_sampling_rate_adds_few_tokens() -> None:
    """Sample the same motion four times as often, as in figure 3 of the paper."""
    counts = []
    for chunk in (10, 40):
        made = codec(chunk)
        made.fit(smooth(600, chunk=chunk))
        counts.append(float((made.encode(smooth(200, seed=1, chunk=chunk)) >= 0).sum(1).float().mean()))
    assert counts[1] < 2 * counts[0]


def test_missing_actions_are_padded_with_the_last_one() -> None:
    chunks = smooth(3, seed=2)
    mask = torch.arange(N) < torch.tensor([5, 0, N])[:, None]
    tokens = FITTED.encode(chunks, mask)
    full = chunks.clone()
    full[0, 5:] = full[0, 4]
    assert torch.equal(tokens[0], FITTED.encode(full)[0])
    assert (tokens[1] == -1).all()
    assert torch.equal(tokens[2], FITTED.encode(full)[2])
    chunks[0, 5:], chunks[1] = 9, torch.nan  # masked values are ignored
    assert torch.equal(FITTED.encode(chunks.nan_to_num(), mask), tokens)


def test_the_length_has_head_room_and_is_saved(tmp_path: Path) -> None:
    made = codec()
    facts = made.fit(smooth(400))
    longest = int((made.encode(smooth(400)) >= 0).sum(1).max())
    assert made.length == math.ceil(1.25 * longest)
    assert facts["longest_chunk"] == longest
    made.save(tmp_path)
    again = codec(assets=tmp_path)
    assert (again.length, again.size, again.fitted) == (made.length, made.size, True)
    chunks = torch.cat([smooth(50, seed=3), wild(20, 3)])
    tokens = again.encode(chunks)
    assert torch.equal(tokens, made.encode(chunks))
    for sequences in (tokens, tokens[:, :2], tokens[:, :0]):
        for got, kept in zip(again.decode(sequences), made.decode(sequences), strict=True):
            assert torch.equal(got, kept)


def test_tokens_after_the_end_are_ignored() -> None:
    tokens = FITTED.encode(smooth(4))
    ended = tokens.clone()
    ended[ended < 0] = FITTED.size
    after = ended.clone()
    for row, n in zip(after, (tokens >= 0).sum(1), strict=True):
        row[n + 1 :] = 3
    for other in (ended, after):
        assert torch.equal(FITTED.decode(other)[0], FITTED.decode(tokens)[0])
        assert not FITTED.decode(other)[1].any()


def test_missing_coefficients_come_from_a_resting_chunk() -> None:
    data = smooth(400)
    rest = data.flatten(0, 1).median(0).values
    nothing, wrong = FITTED.decode(torch.full((1, FITTED.length), FITTED.size))
    assert wrong.tolist() == [True]
    torch.testing.assert_close(nothing[0], rest.expand(N, A), atol=1e-3, rtol=0)
    row = [FITTED._bpe.encode(np.array([[7, -5]]))[0][0]]  # the lowest frequency of the first two dims
    chunk, wrong = FITTED.decode(padded(FITTED, *row))
    assert wrong.tolist() == [True]
    expected = torch.tensor([0.7 / math.sqrt(N), -0.5 / math.sqrt(N), float(rest[2])])
    torch.testing.assert_close(chunk[0], expected.expand(N, A), atol=1e-3, rtol=0)


def test_a_tokenizer_that_was_not_fitted_here_rests_at_zero(tmp_path: Path) -> None:
    FITTED.save(tmp_path)
    (tmp_path / FILE).unlink()
    chunk, wrong = codec(assets=tmp_path).decode(torch.full((2, 4), -1))
    assert wrong.all()
    assert not chunk.any()


def test_surplus_coefficients_are_ignored() -> None:
    own = anew(4 * N * A)
    tokens = own.encode(smooth(1))
    (row,) = rows(tokens)
    chunk, wrong = own.decode(padded(own, row + row[:3]))
    assert wrong.tolist() == [True]
    assert torch.equal(chunk, own.decode(tokens)[0])


def test_tokens_after_invalid_bytes_are_ignored() -> None:
    """Characters from 128 on take two bytes, and one of the two alone is invalid."""
    made = codec(16, scale=30.0, vocabulary=2048)
    made.fit(torch.rand(300, 16, A, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    ids = made._bpe.tokenizer.get_vocab()
    lone = next(ids[c] for c in "ÂÃ" if c in ids)
    (front, whole), _ = made._bpe.encode(np.array([[3, 1, 2] * 16] * 2))
    front = front[: len(front) // 2]
    sequences = ([*front, lone, *front], front, [*whole, lone], whole)
    bad, bare, over, full = (made.decode(padded(made, row)) for row in sequences)
    assert [bool(wrong) for _, wrong in (bad, bare, over, full)] == [True, True, True, False]
    assert torch.equal(bad[0], bare[0])
    assert torch.equal(over[0], full[0])
    made.length = len(front) + 1  # cut within a character: all that T tokens can hold
    cut, wrong = made.decode(torch.tensor([[*front, lone]]))
    assert torch.equal(cut, bare[0])
    assert wrong.tolist() == [False]


def test_clipped_coefficients_and_cut_chunks_are_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    narrow = codec()
    narrow.fit(smooth(100) * 0.5)
    narrow.encode(smooth(20) * 0.4)
    assert (narrow.clipped, narrow.cut, caplog.text) == (0, 0, "")
    chunk, wrong = narrow.decode(narrow.encode(torch.ones(2, N, A)))
    highest = narrow._bpe.written[-1]
    torch.testing.assert_close(chunk, torch.full((2, N, A), highest / 10 / math.sqrt(N)), atol=1e-6, rtol=0)
    assert not wrong.any()
    assert narrow.clipped == 2 * A  # the lowest frequency; the others are 0
    assert f"{2 * A} coefficients have no character and became the nearest one that has" in caplog.text
    narrow.length = 1
    narrow.encode(smooth(20) * 0.4)
    assert narrow.cut == 20
    assert "20 chunks were cut to 1 tokens, the most of a chunk" in caplog.text


def test_values_outside_the_range_are_clipped() -> None:
    chunks = torch.full((1, N, A), 1.7)
    assert torch.equal(FITTED.encode(chunks), FITTED.encode(chunks.clamp(-1, 1)))


def test_a_cast_model_and_its_copies_encode_the_same() -> None:
    own, chunks = anew(), smooth(20, seed=1)
    tokens = FITTED.encode(chunks)
    assert not own.state_dict()  # its state is in files
    assert torch.equal(own.bfloat16().encode(chunks), tokens)
    assert torch.equal(own.decode(tokens)[0], FITTED.decode(tokens)[0])


def test_an_empty_batch_stays_empty() -> None:
    tokens = FITTED.encode(torch.zeros(0, N, A))
    assert tokens.shape == (0, FITTED.length)
    assert FITTED.decode(tokens)[0].shape == (0, N, A)


def test_fitting_twice_gives_the_same() -> None:
    made = fitted()
    made.fit(smooth(400))
    assert made._bpe.tokenizer.to_str() == FITTED._bpe.tokenizer.to_str()


def test_the_defaults_are_the_papers_scale_and_vocabulary() -> None:
    assert (codec().config.scale, codec().config.vocabulary, HEAD_ROOM) == (10, 1024, 1.25)


def test_an_unfitted_codec_is_refused(tmp_path: Path) -> None:
    made = codec()
    assert not made.fitted
    for use in (
        lambda: made.encode(smooth(1)),
        lambda: made.decode(torch.zeros(1, 4).long()),
        lambda: made.save(tmp_path),
    ):
        with pytest.raises(CodecError, match="the FastCodec was not fitted: run anyvla data fit-codec RECIPE"):
            use()


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        (torch.zeros(5, N + 1, A), r"FastCodec is fitted to chunks \(K, 8, 3\), K at least 1; got \(5, 9, 3\)"),
        (torch.zeros(0, N, A), r"K at least 1; got \(0, 8, 3\)"),
        (torch.full((5, N, A), torch.nan), "hold NaN or infinity: fix the data"),
    ],
)
def test_invalid_data_for_fitting_is_refused(chunks: Tensor, message: str) -> None:
    with pytest.raises(CodecError, match=message):
        codec().fit(chunks)


@pytest.mark.parametrize("vocabulary", [20, 62])
def test_a_vocabulary_below_the_alphabet_is_refused(vocabulary: int) -> None:
    message = rf"coefficients from -\d+ to \d+ need \d+ tokens .* more than vocabulary {vocabulary}: give a larger"
    with pytest.raises(CodecError, match=message):
        fitted(vocabulary=vocabulary)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": 1}, "vocabulary"),
        ({"scale": 0.0}, "scale"),
        ({"scale": math.inf}, "scale"),
        ({"gamma": 10}, "gamma"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        codec(**options)
