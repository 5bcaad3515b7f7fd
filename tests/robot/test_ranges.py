"""Every recorded action can be commanded, for dims of any distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anyvla.data.robot_statistics import describe
from anyvla.data.statistics import compute_statistics
from anyvla.representations.bins import BinsCodec
from anyvla.robot.normalize import Normalizer
from anyvla.robot.ranges import PRECISION, describe_unusual_dims, quantile_range
from anyvla.robot.space import ActionSpace, Group

ROBOT = torch.zeros(1, dtype=torch.int64)
METHODS = ["quantile", "minmax", "meanstd"]
STEPS = 2000


def make_joints(dims: int) -> ActionSpace:
    return ActionSpace(groups=(Group(name="joints", size=dims, kind="joints"),))


def make_normalizer(rows: np.ndarray, method: str, clip: bool = True, space: ActionSpace | None = None) -> Normalizer:
    space = space or make_joints(rows.shape[1])
    return Normalizer(space, [(space, describe(rows))], method, what="action", clip=clip)


def round_trip(of: Normalizer, rows: np.ndarray) -> np.ndarray:
    y = of.normalize(torch.from_numpy(rows)[None], ROBOT)
    assert torch.isfinite(y).all()
    return of.denormalize(y, ROBOT)[0].double().numpy()


def sample_rare_motion(rng: np.random.Generator, share: float, far: float, noise: float) -> np.ndarray:
    """A dim that rests, with sensor noise, and moves to `far` now and then, once at least."""
    out = rng.normal(0, noise, STEPS) if noise else np.zeros(STEPS)
    out[rng.random(STEPS) < share] = far
    out[STEPS // 3 : STEPS // 3 + 3] = far
    return out


DIMS = {
    "rests exactly": lambda rng, scale: sample_rare_motion(rng, 0.01, 100.0, 0.0) * scale,
    "rests with noise": lambda rng, scale: sample_rare_motion(rng, 0.009, -100.0, 0.01) * scale,
    "moves once": lambda rng, scale: np.eye(1, STEPS, 700)[0] * scale,
    "two levels": lambda rng, scale: rng.choice([-1.0, 1.0], STEPS) * scale,
    "rests on one of two levels": lambda rng, scale: np.where(rng.random(STEPS) < 0.995, -1.0, 1.0) * scale,
    "constant in half": lambda rng, scale: np.where(np.arange(STEPS) < STEPS // 2, 0.25, rng.random(STEPS)) * scale,
    "integers": lambda rng, scale: rng.integers(0, 5, STEPS) * scale,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", DIMS)
@given(seed=st.integers(0, 99), exponent=st.integers(-30, 30), offset=st.sampled_from([0.0, 1.0, -1000.0]))
@settings(max_examples=6, deadline=None)
def test_rare_motion_can_be_commanded(kind: str, method: str, seed: int, exponent: int, offset: float):
    rng, scale = np.random.default_rng(seed), 10.0**exponent
    rows = (DIMS[kind](rng, scale) + offset * scale).astype(np.float32)[:, None]
    back = round_trip(make_normalizer(rows, method), rows)
    if kind == "constant in half" and method == "quantile":  # an ordinary dim: its 2 % outermost values are clipped
        low, high = np.quantile(rows, (0.01, 0.99))
        rows = np.clip(rows, low, high)
    clipped = 0.0
    if kind == "rests with noise" and method == "quantile":  # where its motion is within the quantiles, noise is not
        clipped = 0.06 * scale
    assert np.abs(back - rows).max() <= PRECISION * np.abs(rows).max() + clipped


@pytest.mark.parametrize("method", METHODS)
@given(value=st.floats(-(2.0**100), 2.0**100, width=32), wrong=st.floats(-50, 50, width=32))
@example(value=0.1, wrong=1.0)
def test_a_constant_dim_keeps_its_value_for_any_prediction(method: str, value: float, wrong: float):
    rows = np.stack([np.full(50, value), np.linspace(-1, 1, 50)], 1).astype(np.float32)
    of = make_normalizer(rows, method)
    assert of.learned.tolist() == [[False, True]]
    assert of.denormalize(torch.full((1, 3, 2), wrong), ROBOT)[0, :, 0].tolist() == [rows[0, 0]] * 3
    state = make_normalizer(rows, method, clip=False)
    near = torch.tensor([[value * 1.001 + 1e-3, 0.0]])
    assert state.normalize(near, ROBOT)[0, 0] == 0  # noise of a sensor that never moved is ignored


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1e-7, 3e-9, 1e-20, 1e30])
def test_ranges_are_judged_by_their_own_scale(method: str, size: float):
    rows = (np.linspace(-1, 1, 501)[:, None] * size).astype(np.float32)
    of = make_normalizer(rows, method)
    assert of.learned.all()
    assert of.normalize(torch.from_numpy(rows)[None], ROBOT).abs().max() >= 1
    inside = np.quantile(rows, (0.01, 0.99)) if method == "quantile" else (-np.inf, np.inf)
    assert np.abs(round_trip(of, rows) - np.clip(rows, *inside)).max() <= PRECISION * size


def test_values_that_float32_cannot_tell_apart_are_constant():
    recorded = (1e6 + np.random.default_rng(0).uniform(-0.01, 0.01, (500, 1))).astype(np.float32)
    of = make_normalizer(recorded, "minmax")
    assert not of.learned.any()
    assert np.abs(round_trip(of, recorded) - recorded).max() <= PRECISION * 1e6
    [note] = describe_unusual_dims(make_joints(1), describe(recorded), "minmax", "action")
    assert "never varies in this data (1e+06; float32 shows no differences below 0.48, so subtract an offset)" in note
    coarse = (1e6 + np.random.default_rng(0).uniform(-10, 10, (500, 1))).astype(np.float32)
    of = make_normalizer(coarse, "minmax")
    assert of.learned.all()
    assert np.abs(round_trip(of, coarse) - coarse).max() <= 0.0625  # one float32 value


def test_spikes_do_not_widen_the_range_of_an_ordinary_dim():
    rng = np.random.default_rng(0)
    for column in (rng.normal(size=20_000), rng.laplace(size=20_000), rng.standard_t(3, 20_000)):
        ordinary = tuple(np.quantile(column, (0.01, 0.99)))
        assert quantile_range(column) == ordinary
        spiked = column.copy()
        spiked[[7, 900]] = [1e4, -1e5]
        assert quantile_range(spiked) == pytest.approx(ordinary, rel=0.1)


@pytest.mark.parametrize("reach", [5.0, 7.0, 10.0, 20.0])
@pytest.mark.parametrize("shape", [np.ones(20), np.sin(np.pi * np.linspace(0, 1, 20))])
@pytest.mark.parametrize("side", [-1, 1])
def test_rare_motion_that_stays_near_its_noise_can_be_commanded(reach: float, shape: np.ndarray, side: int):
    noise = np.random.default_rng(0).normal(size=40_000)
    column = noise / np.diff(np.quantile(noise, (0.1, 0.9)))
    for begin in range(0, len(column), 4000):
        column[begin : begin + 20] += side * reach * shape
    assert quantile_range(column) == (column.min(), column.max())


@pytest.mark.parametrize("shape", ["normal", "laplace", "exponential", "logistic", "lognormal"])
@pytest.mark.parametrize("size", [300, 3000, 30_000])
def test_heavy_tails_are_not_motion(shape: str, size: int):
    for seed in range(10):
        column = getattr(np.random.default_rng(seed), shape)(size=size)
        assert quantile_range(column) == tuple(np.quantile(column, (0.01, 0.99)))


def test_a_spike_among_rare_motion_is_left_out():
    column = np.zeros(20_000)
    column[1000:1500] = np.sin(np.linspace(0, 30, 500))
    whole = quantile_range(column)
    assert whole == (column.min(), column.max())
    column[9] = 1e6
    assert quantile_range(column) == whole


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_spike_is_left_out_where_motion_is_one_level(noise: float):
    rng = np.random.default_rng(0)
    column = np.where(rng.random(20_000) < 0.005, 1.0, noise * rng.normal(size=20_000))
    whole = quantile_range(column)
    assert whole == (column.min(), 1.0)
    column[9] = -1e4
    assert quantile_range(column) == pytest.approx(whole)
    column[9:12] = -1e4  # as many frames as count as motion
    assert quantile_range(column) == (-1e4, 1.0)


def test_a_dim_whose_last_digit_changes_rests():
    column = np.where(np.arange(20_000) % 2, np.float32(0.5), np.nextafter(np.float32(0.5), np.float32(1)))
    assert make_normalizer(column[:, None].astype(np.float32), "quantile").learned.tolist() == [[False]]
    column[[70, 71]] = 5.0
    assert quantile_range(column.astype(np.float64)) == (0.5, 5.0)


def test_dims_of_a_rotation_share_one_magnitude():
    """Zeros that a conversion turned into 1e-17 are not motion."""
    rng = np.random.default_rng(0)
    rows = np.stack([rng.uniform(-1, 1, 300), rng.normal(0, 1e-17, 300), rng.uniform(-1, 1, 300)], 1).astype("f4")
    turn = ActionSpace(groups=(Group(name="turn", size=3, kind="rotation", rotation="axis_angle"),))
    assert make_normalizer(rows, "minmax", space=turn).learned.tolist() == [[True, False, True]]
    assert make_normalizer(rows, "minmax").learned.all()


def test_grippers_that_never_move_keep_their_declared_range():
    space = ActionSpace(groups=(Group(name="gripper", size=1, kind="gripper", low=0, high=100),))
    rows = np.full((50, 1), 100, np.float32)
    of = make_normalizer(rows, "quantile", space=space)
    assert of.normalize(torch.tensor([[0.0], [100.0]])[None], ROBOT)[0, :, 0].tolist() == [-1, 1]
    assert describe_unusual_dims(space, describe(rows), "quantile", "action") == [
        "action group 'gripper', dim 0: the gripper never moves in this data; it keeps its declared range"
    ]


def test_notes_name_the_dims():
    rng = np.random.default_rng(0)
    rows = np.stack([rng.normal(size=1000), np.full(1000, 0.3), np.where(np.arange(1000) % 100, 0, 100)], 1)
    space = ActionSpace(groups=(Group(name="arm", size=3, kind="joints", names=("pan", "lift", "grip")),))
    assert describe_unusual_dims(space, describe(rows), "quantile", "action") == [
        "action group 'arm', dim 1 (lift) never varies in this data (0.3): it is not learned, and acting writes 0.3",
        "action group 'arm', dim 2 (grip) rests most of the time: q01 to q99 (0 to 1) would cut off its motion, so it "
        "is scaled by 0 to 100",
    ]
    rows[7, 0] = 1e5
    assert describe_unusual_dims(space, describe(rows), "quantile", "action")[0] == (
        "action group 'arm', dim 0 (pan) has spikes from -3.899 to 1e+05, fewer than one in a thousand steps; it is "
        "scaled by -2.423 to 2.278 and cannot reach them. If they are motion, use normalization minmax"
    )
    assert describe_unusual_dims(space, describe(rows), "meanstd", "proprio") == [
        "proprio group 'arm', dim 1 (lift) never varies in this data (0.3): the policy reads it as 0"
    ]


@pytest.mark.parametrize("kind", ["uniform", "quantile", "mu_law"])
def test_bins_return_every_dim_within_the_width_of_a_bin(kind: str):
    rng, size = np.random.default_rng(0), 64
    rows = np.stack([make(rng, 1.0) for make in DIMS.values()] + [np.full(STEPS, 0.1)], 1).astype(np.float32)
    of = make_normalizer(rows, "quantile")
    chunks = of.normalize(torch.from_numpy(rows)[None], ROBOT)[0].unflatten(0, (-1, 4))  # (K, 4, A)
    codec = BinsCodec(BinsCodec.Config(kind=kind, bins=size), 4, make_joints(rows.shape[1]))
    codec.fit(chunks)
    got, wrong = codec.decode(codec.encode(chunks))
    assert not wrong.any()
    edges = torch.cat([codec.lower, torch.ones(len(codec.lower), 1)], 1)
    width = edges.diff(dim=1).max(1).values + 2 / size  # the last bin of `uniform` decodes as the one before it
    assert ((got - chunks).abs() <= width).all()
    robot = of.denormalize(got.flatten(0, 1)[None], ROBOT)[0].numpy()
    assert (robot[:, -1] == np.float32(0.1)).all()


def test_a_dim_may_be_constant_for_one_robot_and_not_for_the_other():
    space, rng = make_joints(2), np.random.default_rng(0)
    still = np.stack([rng.uniform(-1, 1, 100), np.full(100, 7.0)], 1)
    moving = rng.uniform(-2, 2, (100, 2))
    of = Normalizer(space, [(space, describe(r)) for r in (still, moving)], "minmax", what="action", clip=True)
    assert of.learned.tolist() == [[True, False], [True, True]]
    back = of.denormalize(torch.ones(2, 3, 2), torch.tensor([0, 1]))
    assert back[0, 0, 1] == 7
    assert back[1, 0].tolist() == pytest.approx(moving.max(0).tolist())


def test_statistics_made_without_ranges_contain_the_motion_of_a_resting_dim():
    rows = np.where(np.arange(1000) % 100, 0, 100)[:, None]
    of = Normalizer(make_joints(1), [(make_joints(1), compute_statistics(rows))], "quantile", what="action", clip=True)
    assert of.denormalize(torch.ones(1, 1, 1), ROBOT).item() == 100


def test_a_cast_of_the_model_does_not_round_the_range():
    rows = np.random.default_rng(0).uniform(0.123456, 0.654321, (300, 1))
    of = make_normalizer(rows, "minmax")
    before = of.denormalize(torch.ones(1, 1, 1), ROBOT)
    assert torch.equal(of.to(torch.bfloat16).denormalize(torch.ones(1, 1, 1), ROBOT), before)
