"""Dims that never vary: no decoder learns them, and every policy writes back their value."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from anyvla.policy import VLA
from anyvla.robot.normalize import Statistics
from anyvla.robot.shared_layout import Robot
from tests.small import DECODERS, batch, embodiment, fit_codec, generators, model, observation, windowed

STILL = 1  # the action dim, and the proprio dim, that never vary
VALUE = 0.3
POLICIES = {
    "regression": {"decoder": "regression"},
    "flow": {"decoder": "flow"},
    "diffusion": {"decoder": "diffusion"},
    "expert": {"decoder": "expert"},
    "tokens of bins": {"decoder": "tokens", "representation": "bins"},
    "tokens, sampled": {"decoder": DECODERS["tokens"] | {"temperature": 1.0}, "representation": "bins"},
    "tokens of fast": {"decoder": "tokens", "representation": "fast"},
    "lm tokens": {"decoder": "lm_tokens", "representation": "bins"},
    "lm tokens, parallel": {"decoder": {"name": "lm_tokens", "decoding": "parallel"}, "representation": "bins"},
    "lm tokens, interleaved": {
        "decoder": "lm_tokens",
        "representation": "bins",
        "history": {"name": "interleaved", "window": 3},
    },
    "expert with tokens": {"decoder": "expert", "representation": "bins"},
}


def make_robot() -> Robot:
    def of(dims: int) -> dict[str, list[float]]:
        low, high, center, spread = [-2.0] * dims, [2.0] * dims, [0.5] * dims, [2.0] * dims
        low[STILL] = high[STILL] = center[STILL] = VALUE
        spread[STILL] = 1e-9
        return {"q01": low, "q99": high, "min": low, "max": high, "mean": center, "std": spread}

    return Robot(embodiment(), Statistics(of(4), of(3), "f" * 64))


def policy(name: str, folder: Path) -> VLA:
    keys = POLICIES[name]
    codec = fit_codec(keys["representation"], folder) if "representation" in keys else None
    torch.manual_seed(0)
    return VLA(model(**keys), [make_robot()], codec=codec).eval()


@pytest.mark.parametrize("name", POLICIES)
def test_acting_writes_the_constant_exactly(name: str, tmp_path: Path):
    vla, data = policy(name, tmp_path), batch(2, 1)
    [chunk, _] = vla.act([observation(data, row, 0) for row in range(2)], [vla.start("go", seed=i) for i in range(2)])
    assert (chunk.actions[:, STILL] == np.float32(VALUE)).all()


@pytest.mark.parametrize("name", [n for n in POLICIES if n != "tokens of fast"])  # its tokens each contain all dims
def test_no_loss_depends_on_the_constant_dim(name: str, tmp_path: Path):
    vla, data = policy(name, tmp_path), batch(2, window_length(name))
    count = int(data.action_mask.sum()) * 3
    assert vla.count_elements(data) == count
    loss = vla.loss(data, generators(2))
    assert int(loss.count) == count
    last = [m for m in vla.decoder.modules() if isinstance(m, torch.nn.Linear)][-1]
    other = dataclasses.replace(data, actions=data.actions.clone())
    other.actions[..., STILL] += torch.randn_like(other.actions[..., STILL])
    assert vla.loss(other, generators(2)).total == loss.total
    if name == "regression":
        loss.value.backward()
        touched = last.weight.grad.view(4, 4, -1).abs().sum((0, 2)) > 0
        assert touched.tolist() == [True, False, True, True]


@pytest.mark.parametrize("name", ["regression", "tokens of bins", "lm tokens", "lm tokens, interleaved", "expert"])
def test_acting_equals_training(name: str, tmp_path: Path):
    vla, steps = policy(name, tmp_path), window_length(name)
    data = batch(1, steps)
    if name == "lm tokens, interleaved":  # its window sees earlier chunks, which acting predicts itself
        data = dataclasses.replace(data, actions=torch.zeros_like(data.actions))
        steps = 1
    session = vla.start(data.instructions[0])
    for step in range(steps):
        [chunk] = vla.act([observation(data, 0, step)], [session])
        np.testing.assert_allclose(chunk.actions, windowed(vla, data)[0, step], atol=1e-4)


def test_a_constant_proprio_dim_is_not_read():
    vla, data = policy("regression", Path()), batch(1, 1)
    shown = observation(data, 0, 0)
    noisy = dataclasses.replace(shown, proprio=shown.proprio + np.eye(3, dtype=np.float32)[STILL])
    one, other = (vla.act([o], [vla.start("go")])[0].actions for o in (shown, noisy))
    assert (one == other).all()
    assert np.abs(one).max() < 10


def window_length(name: str) -> int:
    return 3 if "interleaved" in name else 1
