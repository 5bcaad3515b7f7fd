"""The laws of every codec of the registry, so that any decoder can write its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyvla.config import Part, build
from anyvla.registry import representations
from anyvla.representations.codec import Codec, CodecError
from anyvla.robot.chunks import pad_with_last_action
from anyvla.robot.space import ActionSpace, Group
from tests.small import REPRESENTATIONS

N = 8
SPACE = ActionSpace(
    groups=(
        Group(name="hand", size=3, kind="position", mode="delta"),
        Group(name="gripper", size=1, kind="gripper", low=0, high=1),
        Group(name="idle", size=1),
    )
)
A = SPACE.size
NAMES = [n for n in representations if n != "continuous"]
VARIANTS: dict[str, Any] = {n: REPRESENTATIONS.get(n, n) for n in NAMES} | {
    "bins-quantile": {"name": "bins", "kind": "quantile", "bins": 32},
    "bins-mu_law": {"name": "bins", "kind": "mu_law", "bins": 32},
    "vq": {"name": "vq", "codebook": 64, "quantizers": 4, "steps": 50},  # 8 bits are too few for these chunks
}


def sample_smooth_chunks(k: int, seed: int) -> Tensor:
    """(K, N, A): straight movements, a gripper that may close once, a dim that never moves."""
    g = torch.Generator().manual_seed(seed)
    ends = torch.rand(k, 2, 3, generator=g) * 1.6 - 0.8
    hand = torch.lerp(ends[:, :1], ends[:, 1:], torch.linspace(0, 1, N)[:, None])
    closing = torch.randint(-N, 2 * N, (k, 1), generator=g)
    gripper = torch.where(torch.arange(N) < closing, 1.0, -1.0)
    return torch.cat([hand, gripper[..., None], torch.zeros(k, N, 1)], 2)


@dataclass
class Made:
    part: Part
    codec: Codec
    folder: Path

    def again(self, folder: Path | None) -> Codec:
        return self.part.build(N, SPACE, folder)


def fit(part: Part) -> Codec:
    codec: Codec = part.build(N, SPACE)
    codec.fit(sample_smooth_chunks(512, 0), seed=3)
    return codec.eval()


@pytest.fixture(scope="module", params=list(VARIANTS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    keys = VARIANTS[request.param]
    options = dict(keys) if isinstance(keys, dict) else {"name": keys}
    name = options.pop("name")
    try:
        part = Part("representations", name, build(representations[name].Config, options))
        codec = fit(part)
    except ImportError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp(request.param)
    codec.save(folder)
    return Made(part, codec, folder)


def check_chunks(codec: Codec, chunks: Tensor, wrong: Tensor, count: int) -> None:
    assert chunks.shape == (count, N, A)
    assert chunks.dtype == torch.float32
    assert wrong.shape == (count,)
    assert wrong.dtype == torch.bool
    assert torch.isfinite(chunks).all()
    assert chunks.abs().max() <= 1


def test_its_name_and_sizes_are_declared(made: Made) -> None:
    codec = made.codec
    assert codec.kind == "tokens"
    assert codec.size >= 2
    assert codec.length >= 1
    assert codec.fitted


def test_tokens_are_ids_and_nothing_follows_the_end(made: Made) -> None:
    codec, x = made.codec, sample_smooth_chunks(64, 1)
    tokens = codec.encode(x)
    assert tokens.shape == (64, codec.length)
    assert tokens.dtype == torch.int64
    assert tokens.min() >= -1
    assert tokens.max() < codec.size
    written = tokens >= 0
    assert written[:, 0].all()
    if codec.ends:
        assert (written[:, 1:] <= written[:, :-1]).all()
    else:
        assert written.all()


def test_decoding_approximates_the_encoded_chunks(made: Made) -> None:
    x = sample_smooth_chunks(256, 1)
    chunks, wrong = made.codec.decode(made.codec.encode(x))
    check_chunks(made.codec, chunks, wrong, 256)
    assert not wrong.any()
    assert (chunks - x)[..., :3].abs().mean() < 0.3 * x[..., :3].abs().mean()
    assert (chunks - x)[..., 3].abs().mean() < 0.3
    assert (chunks - x)[..., 4].abs().mean() < 0.1


def test_chunks_beyond_the_range_are_clipped(made: Made) -> None:
    x = sample_smooth_chunks(16, 2) * 7
    tokens = made.codec.encode(x)
    assert tokens.max() < made.codec.size
    assert torch.equal(tokens, made.codec.encode(x.clamp(-1, 1)))
    check_chunks(made.codec, *made.codec.decode(tokens), 16)


def test_missing_actions_have_no_token_or_repeat_the_last_one(made: Made) -> None:
    codec, x = made.codec, sample_smooth_chunks(N + 1, 3)
    mask = torch.arange(N) < torch.arange(N + 1)[:, None]  # none, the first, the first two ...
    tokens = codec.encode(x, mask)
    assert (tokens[0] == -1).all()
    whole = codec.encode(pad_with_last_action(x, mask))[1:]
    masked = whole.masked_fill(~mask[1:, :, None].expand(-1, -1, A).flatten(1), -1) if whole.shape[1] == N * A else None
    assert torch.equal(tokens[1:], whole) or (masked is not None and torch.equal(tokens[1:], masked))
    other = torch.where(mask[..., None], x, sample_smooth_chunks(N + 1, 4))
    assert torch.equal(codec.encode(other, mask), tokens)
    assert torch.equal(codec.encode(x, torch.ones_like(mask)), codec.encode(x))


def test_missing_actions_are_padded_with_the_last_one() -> None:
    chunks = torch.tensor([[[1.0, 5.0], [2.0, 6.0], [3.0, 7.0]]]).expand(4, 3, 2)
    mask = torch.tensor([[False] * 3, [True, False, False], [True, True, False], [True] * 3])
    assert pad_with_last_action(chunks, mask)[..., 0].tolist() == [[0, 0, 0], [1, 1, 1], [1, 2, 2], [1, 2, 3]]
    assert pad_with_last_action(chunks, mask)[..., 1].tolist() == [[0, 0, 0], [5, 5, 5], [5, 6, 6], [5, 6, 7]]
    assert pad_with_last_action(chunks, None) is chunks


@settings(max_examples=25)
@given(data=st.data())
def test_any_sequence_decodes_to_a_chunk(made: Made, data: st.DataObject) -> None:
    codec = made.codec
    ids = st.integers(-2, codec.size + 2) | st.sampled_from([-(2**63), 2**63 - 1, codec.size, -1])
    row = st.lists(ids, min_size=codec.length, max_size=codec.length)
    good = codec.encode(sample_smooth_chunks(1, data.draw(st.integers(0, 9))))[0]
    cut = data.draw(st.integers(0, codec.length))
    tokens = torch.tensor(data.draw(st.lists(row, min_size=1, max_size=3)))
    tokens[0, :cut] = good[:cut]  # valid at first, then anything
    chunks, wrong = codec.decode(tokens)
    check_chunks(codec, chunks, wrong, len(tokens))
    outside = (tokens < 0) | (tokens >= codec.size)
    if not codec.ends:
        assert torch.equal(wrong | outside.any(1), wrong)
    after = outside.long().cumsum(1) > 0
    same, too = codec.decode(tokens.masked_fill(after, -1))
    assert torch.equal(same, chunks)
    assert torch.equal(too, wrong)


def test_a_sequence_without_a_token_is_invalid_and_gives_a_still_chunk(made: Made) -> None:
    codec = made.codec
    tokens = torch.tensor([-1, codec.size])[:, None].expand(-1, codec.length)
    chunks, wrong = codec.decode(tokens)
    check_chunks(codec, chunks, wrong, 2)
    assert wrong.all()
    assert torch.equal(chunks[0], chunks[1])
    assert (chunks - chunks[:, :1]).abs().max() < 1e-5


def test_rows_do_not_affect_each_other(made: Made) -> None:
    codec, x = made.codec, sample_smooth_chunks(5, 5)
    mask = torch.ones(5, N, dtype=torch.bool)
    mask[1, 3:], mask[2] = False, False
    tokens = codec.encode(x, mask)
    for row in range(5):
        assert torch.equal(codec.encode(x[row : row + 1], mask[row : row + 1])[0], tokens[row])
    tokens[3] = torch.randint(-3, codec.size + 3, (codec.length,), generator=torch.Generator().manual_seed(0))
    chunks, wrong = codec.decode(tokens)
    for row in range(5):
        alone, bad = codec.decode(tokens[row : row + 1])
        torch.testing.assert_close(alone[0], chunks[row], atol=1e-6, rtol=0)
        assert bad[0] == wrong[row]


def test_an_empty_batch_stays_empty(made: Made) -> None:
    codec = made.codec
    tokens = codec.encode(torch.zeros(0, N, A), torch.zeros(0, N, dtype=torch.bool))
    assert tokens.shape == (0, codec.length)
    chunks, wrong = codec.decode(tokens)
    assert chunks.shape == (0, N, A)
    assert wrong.shape == (0,)


def test_a_saved_codec_is_equal_after_loading(made: Made) -> None:
    codec, x = made.codec, sample_smooth_chunks(32, 6)
    again = made.again(made.folder).eval()
    assert again.fitted
    again.load_state_dict(codec.state_dict())  # as a checkpoint does afterwards
    tokens = codec.encode(x)
    assert torch.equal(again.encode(x), tokens)
    assert torch.equal(again.decode(tokens)[0], codec.decode(tokens)[0])


def test_a_codec_can_be_saved_again_after_loading(made: Made, tmp_path: Path) -> None:
    codec = made.again(made.folder)
    codec.load_state_dict(made.codec.state_dict())
    codec.save(tmp_path)  # as a checkpoint does with a codec of the run folder
    again = made.again(tmp_path if any(tmp_path.iterdir()) else None).eval()
    again.load_state_dict(codec.state_dict())
    x = sample_smooth_chunks(32, 6)
    assert torch.equal(again.encode(x), made.codec.encode(x))


def test_fitting_is_a_pure_function_of_chunks_and_seed(made: Made) -> None:
    torch.manual_seed(99)
    again, x = fit(made.part), sample_smooth_chunks(32, 7)
    assert torch.equal(again.encode(x), made.codec.encode(x))


def test_an_unfitted_codec_is_refused_with_the_command(made: Made) -> None:
    codec = made.again(None)
    if codec.fitted:
        assert torch.equal(codec.encode(sample_smooth_chunks(4, 8)), made.codec.encode(sample_smooth_chunks(4, 8)))
        return
    with pytest.raises(CodecError, match="was not fitted: run anyvla data fit-codec RECIPE"):
        codec.encode(sample_smooth_chunks(1, 8))
    with pytest.raises(CodecError, match="anyvla data fit-codec"):
        codec.decode(torch.zeros(1, codec.length, dtype=torch.int64))
    with pytest.raises(CodecError, match="anyvla data fit-codec"):
        codec.check_fitted()


def test_a_folder_that_holds_no_codec_is_refused(made: Made, tmp_path: Path) -> None:
    if made.again(None).fitted:
        assert made.again(tmp_path).fitted
        return
    with pytest.raises(CodecError, match=str(tmp_path)):
        made.again(tmp_path).check_fitted()


def test_autocast_changes_no_token(made: Made) -> None:
    codec, x = made.codec, sample_smooth_chunks(64, 9)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = codec.encode(x)
        chunks, _ = codec.decode(tokens)
    assert torch.equal(tokens, codec.encode(x))
    assert chunks.dtype == torch.float32
    torch.testing.assert_close(chunks, codec.decode(tokens)[0], atol=1e-5, rtol=0)


def test_a_policys_gradient_does_not_change_it(made: Made) -> None:
    assert not [name for name, p in made.codec.named_parameters() if p.requires_grad]
    x = sample_smooth_chunks(4, 10).requires_grad_()
    assert not made.codec.decode(made.codec.encode(x))[0].requires_grad
