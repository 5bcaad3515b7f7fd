from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyvla.config import ConfigError, build
from anyvla.representations.bins import BinsCodec
from anyvla.representations.codec import CodecError
from anyvla.robot.space import ActionSpace, Group

N = 3
SPACE = ActionSpace(
    groups=(
        Group(name="hand", size=2, kind="position", mode="delta"),
        Group(name="gripper", size=1, kind="gripper", low=0, high=1),
        Group(name="idle", size=1),
    )
)
A = SPACE.size
T = N * A
VOCABULARY = 32_000
numbers = st.floats(-1.5, 1.5, width=32)


def make_codec(**options: Any) -> BinsCodec:
    return BinsCodec(build(BinsCodec.Config, options), N, SPACE)


def sample_demonstrations(k: int = 500, seed: int = 0) -> Tensor:
    """A skewed dim, one clipped at both ends, a binary gripper that is mostly open, and a constant."""
    g = torch.Generator().manual_seed(seed)
    skewed = torch.rand(k, N, 1, generator=g) ** 4 * 1.5 - 0.75
    clipped = (torch.randn(k, N, 1, generator=g) * 0.8).clamp(-1, 1)
    gripper = torch.where(torch.rand(k, N, 1, generator=g) < 0.03, 1.0, -1.0)
    return torch.cat([skewed, clipped, gripper, torch.full((k, N, 1), 0.123)], 2)


def fit_quantile_bins(bins: int) -> BinsCodec:
    made = make_codec(kind="quantile", bins=bins)
    made.fit(sample_demonstrations())
    return made


def repeat_values(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None].expand(-1, N, A)


class Published:
    """OpenVLA's and RoboVLMs' arithmetic, written down from their description: edges, digits, ids, centers."""

    def __init__(self, bins: int) -> None:
        self.edges = np.linspace(-1, 1, bins)
        self.centers = (self.edges[1:] + self.edges[:-1]) / 2

    def ids(self, actions: np.ndarray) -> np.ndarray:
        return VOCABULARY - np.digitize(np.clip(actions, -1.0, 1.0), self.edges)

    def actions(self, ids: np.ndarray) -> np.ndarray:
        return self.centers[np.clip(VOCABULARY - ids - 1, 0, len(self.centers) - 1)]


def list_edge_cases(bins: int) -> np.ndarray:
    """Every edge, every center and their neighbors among the float32 numbers, and values outside."""
    edges = np.linspace(-1, 1, bins).astype(np.float32)
    centers = ((edges[1:] + edges[:-1]) / 2).astype(np.float32)
    points = np.concatenate([edges, centers, np.float32([-3, 3, 0, -0.0])])
    return np.concatenate([points, np.nextafter(points, np.float32(-9)), np.nextafter(points, np.float32(9))])


@pytest.mark.parametrize("bins", [3, 100, 255, 256, 1024])
def test_uniform_ids_and_values_are_the_published_ones(bins: int) -> None:
    reference, own = Published(bins), make_codec(bins=bins)
    values = np.concatenate(
        [list_edge_cases(bins), np.random.default_rng(0).uniform(-1.1, 1.1, 5000).astype(np.float32)]
    )
    values = np.resize(values, (-(-len(values) // T), N, A))
    tokens = own.encode(torch.from_numpy(values))
    last_ids = np.arange(VOCABULARY - bins, VOCABULARY)  # as Backbone.last_token_ids(V) of a vocabulary without others
    ids = reference.ids(values)
    np.testing.assert_array_equal(last_ids[tokens.numpy()], ids.reshape(len(ids), T))
    decoded, wrong = own.decode(tokens)
    np.testing.assert_array_equal(decoded.numpy(), reference.actions(ids).astype(np.float32))
    assert not wrong.any()
    every = torch.arange(bins)[:, None].expand(-1, T)
    np.testing.assert_array_equal(
        own.decode(every)[0].numpy().reshape(bins, T), reference.actions(last_ids[every]).astype(np.float32)
    )


def test_the_highest_value_is_token_0_and_the_lowest_the_last_as_published() -> None:
    assert make_codec().encode(repeat_values(1.0, 0.999, -1.0, -7.0))[:, 0].tolist() == [0, 1, 255, 255]


def test_the_defaults_are_the_published_bins() -> None:
    assert vars(BinsCodec.Config()) == {"kind": "uniform", "bins": 256, "mu": 255.0}


def test_tokens_are_ordered_action_by_action() -> None:
    x = torch.linspace(1, -1, T).view(1, N, A)
    assert make_codec().encode(x).diff().gt(0).all()


@pytest.mark.parametrize("options", [{"bins": b, "kind": k} for b in (3, 16, 256) for k in ("uniform", "mu_law")])
@given(values=st.lists(numbers, min_size=1, max_size=8))
def test_the_error_is_at_most_half_a_bin(options: dict[str, Any], values: list[float]) -> None:
    made, x = make_codec(**options), repeat_values(*values)
    decoded, _ = made.decode(made.encode(x))
    ends = torch.cat([made.lower, torch.ones(A, 1)], 1)
    width = ends.diff()
    bin_ = (made.size - 1 - made.encode(x)).view(-1, N, A)
    error = (decoded - x.clamp(-1, 1)).abs()
    half = width[torch.arange(A), bin_] / 2
    if options["kind"] == "uniform":
        half = torch.full_like(half, 1 / (made.size - 1))  # the highest bin has no width
    assert (error[..., [0, 1, 3]] <= half[..., [0, 1, 3]] + 1e-6).all()
    assert (error[..., 2] <= 1 / (made.size - 1) + 1e-6).all()  # the gripper's


@pytest.mark.parametrize("bins", [2, 5, 32, 256])
@settings(max_examples=30)
@given(values=st.lists(numbers, min_size=1, max_size=8))
def test_quantile_bins_decode_to_the_nearest_value(bins: int, values: list[float]) -> None:
    made, x = _quantile(bins), repeat_values(*values)
    decoded, _ = made.decode(made.encode(x))
    nearest = (x.clamp(-1, 1)[..., None] - made.values).abs().min(-1).values
    torch.testing.assert_close((decoded - x.clamp(-1, 1)).abs(), nearest, atol=1e-6, rtol=0)


_FITTED: dict[int, BinsCodec] = {}


def _quantile(bins: int) -> BinsCodec:
    if bins not in _FITTED:
        _FITTED[bins] = fit_quantile_bins(bins)
    return _FITTED[bins]


@pytest.mark.parametrize("bins", [3, 16, 256, 4096])
@pytest.mark.parametrize("kind", ["uniform", "mu_law", "quantile"])
def test_decoding_and_encoding_gives_the_same_token(kind: str, bins: int) -> None:
    made = fit_quantile_bins(bins) if kind == "quantile" else make_codec(kind=kind, bins=bins)
    first = 1 if kind == "uniform" else 0
    tokens = torch.arange(first, bins)[:, None].expand(-1, T)
    assert torch.equal(made.encode(made.decode(tokens)[0]), tokens)
    if kind == "uniform":  # 1.0 has a token of its own, which is published to decode as the next one
        top, _ = made.decode(torch.zeros(1, T, dtype=torch.int64))
        assert torch.equal(top, made.decode(torch.ones(1, T, dtype=torch.int64))[0])


@pytest.mark.parametrize("mu", [255.0, 20.0, 0.5])
def test_mu_law_is_finer_near_zero_and_as_published(mu: float) -> None:
    made = make_codec(kind="mu_law", bins=64, mu=mu)
    width = made.lower[0].diff()
    assert (width[:31].diff() < 0).all()
    assert (width[32:].diff() > 0).all()
    x = np.linspace(-1, 1, 201)
    compressed = np.sign(x) * np.log(1 + mu * np.abs(x)) / np.log(1 + mu)  # Gato's and G.711's formula
    expected = np.clip(np.floor((compressed + 1) / 2 * 64), 0, 63)
    got = 63 - made.encode(torch.from_numpy(np.broadcast_to(x[:, None, None], (201, N, A)).copy()))[:, 0].numpy()
    np.testing.assert_array_equal(got[1:-1], expected[1:-1])


def test_quantile_bins_follow_the_data() -> None:
    made, data = fit_quantile_bins(64), sample_demonstrations()
    even = make_codec(bins=64)
    fullest, error = {}, {}
    for name, one in (("quantile", made), ("uniform", even)):
        tokens = one.encode(data)
        fullest[name] = torch.bincount(tokens.view(-1, A)[:, 0]).max() / (len(data) * N)
        error[name] = (one.decode(tokens)[0] - data)[..., 0].abs().mean()
    assert fullest["quantile"] < 0.3 * fullest["uniform"]
    assert error["quantile"] < 0.7 * error["uniform"]


@pytest.mark.parametrize("bins", [2, 8, 256])
def test_grippers_constants_and_clipped_ends_are_exact(bins: int) -> None:
    made, data = fit_quantile_bins(bins), sample_demonstrations()
    assert (made.values.diff() > 0).all()
    assert (made.lower.diff() > 0).all()
    decoded, _ = made.decode(made.encode(data))
    torch.testing.assert_close(decoded[..., 2:], data[..., 2:], atol=1e-5, rtol=0)
    ends = data[..., 1].abs() == 1
    torch.testing.assert_close(decoded[..., 1][ends], data[..., 1][ends])


@pytest.mark.parametrize("kind", ["quantile", "mu_law"])
def test_an_open_and_a_closed_gripper_are_exact_for_any_data(kind: str) -> None:
    made = make_codec(kind=kind, bins=16)
    made.fit(torch.rand(50, N, A, generator=torch.Generator().manual_seed(0)) * 0.5)  # never wholly open or closed
    x = repeat_values(-1.0, 1.0)
    assert torch.equal(made.decode(made.encode(x))[0][..., 2], x[..., 2])


@pytest.mark.parametrize("kind", ["quantile", "mu_law"])
def test_each_dim_of_a_gripper_has_even_bins(kind: str) -> None:
    hands = Group(name="hands", size=2, kind="gripper", low=0, high=1)
    space = ActionSpace(groups=(Group(name="arm", size=1), hands, Group(name="other", size=1)))
    made = BinsCodec(build(BinsCodec.Config, {"kind": kind, "bins": 8}), N, space)
    made.fit(torch.rand(50, N, 4, generator=torch.Generator().manual_seed(0)) ** 3 * 0.5)
    even = torch.linspace(-1, 1, 8)
    assert [torch.allclose(values, even) for values in made.values] == [False, True, True, False]


def test_constant_data_leave_other_values_within_reach() -> None:
    made = make_codec(kind="quantile", bins=64)
    made.fit(torch.zeros(10, N, A))
    assert made.values.diff().max() <= 4 / 63
    assert made.values[0, 0] == -1
    assert made.values[0, -1] == 1


def test_masked_actions_have_no_token() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    tokens = make_codec().encode(repeat_values(0.1, 0.2, 0.3), mask).view(3, N, A)
    assert ((tokens >= 0) == mask[..., None]).all()
    assert torch.equal(tokens[0, 0], make_codec().encode(repeat_values(0.1)).view(N, A)[0])


def test_unreadable_tokens_repeat_the_last_value_of_each_dim() -> None:
    made = make_codec()
    x = torch.linspace(-0.9, 0.9, T).view(1, N, A)
    tokens = made.encode(x).repeat(4, 1)
    tokens[1, A + 2] = made.size  # the third dim of the second action
    tokens[2, 1] = -5
    tokens[3] = made.size + 9
    decoded, wrong = made.decode(tokens)
    assert wrong.tolist() == [False, True, True, True]
    whole = decoded[0]
    assert torch.equal(decoded[1, 0], whole[0])
    assert torch.equal(decoded[1, 1], torch.cat([whole[1, :2], whole[0, 2:]]))
    assert torch.equal(decoded[1, 2], decoded[1, 1])
    assert torch.equal(decoded[2], torch.tensor([whole[0, 0], 0, 0, 0]).expand(N, A))
    assert torch.equal(decoded[3], torch.zeros(N, A))


def test_data_beyond_the_range_counts_as_its_ends() -> None:
    far, cut = make_codec(kind="quantile", bins=16), make_codec(kind="quantile", bins=16)
    far.fit(sample_demonstrations() * 3)
    cut.fit((sample_demonstrations() * 3).clamp(-1, 1))
    assert torch.equal(far.values, cut.values)
    assert far.values.abs().max() == 1


def test_fitted_bins_rest_at_the_median() -> None:
    made, data = fit_quantile_bins(32), sample_demonstrations()
    decoded, wrong = made.decode(torch.full((1, T), -1))
    assert wrong.all()
    torch.testing.assert_close(decoded[0], data.flatten(0, 1).quantile(0.5, dim=0).expand(N, A), atol=1e-5, rtol=0)


def test_casting_a_model_does_not_change_the_bins() -> None:
    model = torch.nn.ModuleDict({"codec": make_codec()}).bfloat16()
    x = torch.linspace(-1, 1, T * 40).view(40, N, A)
    assert model["codec"].lower.dtype == torch.float32
    assert torch.equal(model["codec"].encode(x), make_codec().encode(x))
    for made in (fit_quantile_bins(256), make_codec(kind="mu_law")):
        tokens = torch.arange(-1, 255).view(-1, 1).expand(-1, T)  # an unreadable sequence first
        before = made.decode(tokens)[0]
        assert torch.equal(torch.nn.ModuleDict({"codec": made}).bfloat16()["codec"].decode(tokens)[0], before)


def test_fitted_bins_come_back_bit_by_bit(tmp_path) -> None:
    made = fit_quantile_bins(100)
    made.save(tmp_path)
    again = BinsCodec(made.config, N, SPACE, tmp_path)
    for name in ("lower", "values", "rest"):
        assert torch.equal(getattr(again, name), getattr(made, name)), name
    assert not made.state_dict()  # the learned values are in its folder only


def test_fitting_twice_is_the_same_and_uniform_learns_nothing() -> None:
    a, b = fit_quantile_bins(16), fit_quantile_bins(16)
    assert torch.equal(a.values, b.values)
    plain = make_codec()
    before = plain.values.clone()
    assert plain.fit(sample_demonstrations()) == {}
    assert torch.equal(plain.values, before)


def test_bad_input(tmp_path) -> None:
    with pytest.raises(CodecError, match="BinsCodec was not fitted: run anyvla data fit-codec RECIPE"):
        make_codec(kind="quantile").encode(repeat_values(0.0))
    with pytest.raises(CodecError, match="was not fitted"):
        make_codec(kind="quantile").save(tmp_path)
    with pytest.raises(ConfigError, match="2 edges leave one bin: give bins 3 or more"):
        make_codec(bins=2)
    with pytest.raises(ConfigError, match="bins"):
        make_codec(kind="quantile", bins=1)
    made = make_codec(kind="quantile", bins=8)
    with pytest.raises(CodecError, match=r"chunks \(K, 3, 4\), K at least 1; got \(5, 3, 2\)"):
        made.fit(torch.zeros(5, N, 2))
    with pytest.raises(CodecError, match="K at least 1"):
        made.fit(torch.zeros(0, N, A))
    with pytest.raises(CodecError, match="these hold NaN or infinity"):
        made.fit(torch.full((2, N, A), torch.nan))
    with pytest.raises(
        CodecError, match=r"no fitted quantile bins \(bins.json is missing\): run anyvla data fit-codec"
    ):
        BinsCodec(made.config, N, SPACE, tmp_path)
    fit_quantile_bins(16).save(tmp_path)
    with pytest.raises(CodecError, match="holds 16 bins of 4 dims; the recipe has 8 bins and its actions 4 dims"):
        BinsCodec(made.config, N, SPACE, tmp_path)
    for text in ("{", json.dumps({"values": []}), json.dumps([])):
        (tmp_path / "bins.json").write_text(text)
        with pytest.raises(CodecError, match="cannot be read"):
            BinsCodec(made.config, N, SPACE, tmp_path)
