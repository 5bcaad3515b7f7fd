"""One policy for several robots: a 4-D arm, a 7-D arm and a 14-D pair of arms in one batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyvla.policy import VLA
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.normalize import Statistics
from anyvla.robot.shared_layout import Robot
from anyvla.robot.space import ActionSpace, Group
from anyvla.types import Batch, Observation
from tests.small import SIZE, fit_codec_to, generators, model

HAND = Group(name="position", size=3, kind="position", mode="delta")


def make_gripper(name: str, low: float, high: float, open: float) -> Group:
    return Group(name=name, size=1, kind="gripper", low=low, high=high, open=open)


def make_joints(side: str) -> Group:
    return Group(name=f"{side}_joints", size=6, kind="joints")


def make_embodiment(
    name: str, cameras: tuple[str, ...], action: tuple[Group, ...], proprio: tuple[Group, ...]
) -> Embodiment:
    return Embodiment(
        name=name,
        cameras=cameras,
        proprio=ActionSpace(groups=proprio),
        action=ActionSpace(groups=action),
        control_hz=10,
    )


TURN = Group(name="rotation", size=3, kind="rotation", mode="delta", rotation="euler")
SMALL = make_embodiment("small", ("corner", "wrist"), (HAND, make_gripper("gripper", -1, 1, -1)), (HAND,))
ARM = make_embodiment("arm", ("corner",), (HAND, TURN, make_gripper("gripper", 0, 1, 1)), (HAND, TURN))
PAIR = make_embodiment(
    "pair",
    ("head", "wrist"),
    (
        make_joints("left"),
        make_gripper("left_gripper", 0, 1, 1),
        make_joints("right"),
        make_gripper("right_gripper", 0, 1, 1),
    ),
    (make_joints("left"), make_joints("right")),
)
ROBOTS = (SMALL, ARM, PAIR)
DECODERS: dict[str, dict[str, Any]] = {
    "regression": {},
    "flow": {"decoder": "flow"},
    "diffusion": {"decoder": "diffusion"},
    "tokens": {"decoder": "tokens", "representation": "bins"},
    "lm_tokens": {"decoder": "lm_tokens", "representation": "fast"},
    "expert": {"decoder": "expert", "history": {"name": "policy_head", "window": 3}},
}


def make_robot(embodiment: Embodiment, reach: float) -> Robot:
    def of(dims: int) -> dict[str, list[float]]:
        low, high = [-reach] * dims, [reach] * dims
        return {"q01": low, "q99": high, "min": low, "max": high, "mean": [0.0] * dims, "std": [reach] * dims}

    return Robot(embodiment, Statistics(of(embodiment.action.size), of(embodiment.proprio.size), embodiment.name))


def policy(tmp_path: Path, **keys: Any) -> VLA:
    robots = [make_robot(e, reach) for e, reach in zip(ROBOTS, (1.0, 2.0, 3.0), strict=True)]
    keys = {"history": {"name": "policy_head", "window": 3}, "fuser": {"name": "gpt", "width": 32, "heads": 2}} | keys
    config = model(**keys)
    whole = VLA(model(), robots).embodiment.action
    codec = fit_codec_to(config, whole, tmp_path / "codec")
    torch.manual_seed(0)
    return VLA(config, robots, codec=codec).eval()


def batch(vla: VLA, seed: int = 0, steps: int = 3) -> Batch:
    """A window of each robot, in the layout that they share."""
    g = torch.Generator().manual_seed(seed)
    whole, count = vla.embodiment, len(ROBOTS)
    views, known, states = (torch.zeros(count, n) for n in (len(whole.cameras), whole.action.size, whole.proprio.size))
    for row, places in enumerate(vla.layout.robots.values()):
        views[row, places.views], known[row, places.action], states[row, places.proprio] = 1, 1, 1
    images = torch.randint(0, 256, (count, steps, len(whole.cameras), SIZE, SIZE, 3), generator=g)
    return Batch(
        images=(images * views[:, None, :, None, None, None]).to(torch.uint8),
        proprio=torch.randn(count, steps, whole.proprio.size, generator=g) * states[:, None],
        instructions=["open the drawer", "close it", "fold the towel, please"],
        actions=(torch.rand(count, steps, 4, whole.action.size, generator=g) * 2 - 1) * known[:, None, None],
        action_mask=torch.ones(count, steps, 4, dtype=torch.bool),
        step_mask=torch.ones(count, steps, dtype=torch.bool),
        robots=torch.arange(count),
    )


def select_row(data: Batch, index: int) -> Batch:
    return data.cut(index, index + 1)


def observation(vla: VLA, data: Batch, index: int, step: int) -> Observation:
    own, places = ROBOTS[index], vla.layout.robots[ROBOTS[index].name]
    images = {c: data.images[index, step, v].numpy() for c, v in zip(own.cameras, places.views, strict=True)}
    return Observation(images, data.proprio[index, step].numpy()[places.proprio])


@pytest.mark.parametrize("name", DECODERS)
def test_acting_equals_training_for_every_robot(name: str, tmp_path: Path):
    vla = policy(tmp_path, **DECODERS[name])
    data = batch(vla)
    sessions = [vla.start(text, robot=e.name) for text, e in zip(data.instructions, ROBOTS, strict=True)]
    for step in range(3):
        chunks = vla.act([observation(vla, data, i, step) for i in range(3)], sessions)
    with torch.inference_mode():
        generators = [torch.Generator().manual_seed(0) for _ in range(9)]
        for i, session in enumerate(sessions):  # the noise of the third chunk of each
            generators[3 * i + 2] = rewind(vla, session.generator)
        robots = data.robots.repeat_interleave(3)
        expected = vla.action_normalizer.denormalize(vla.decoder.sample(vla.read(data), generators), robots)
    for i, (own, chunk) in enumerate(zip(ROBOTS, chunks, strict=True)):
        assert chunk.actions.shape == (4, own.action.size)
        at = vla.layout.robots[own.name].action
        np.testing.assert_allclose(chunk.actions, expected[3 * i + 2].numpy()[:, at], atol=1e-4)


def rewind(vla: VLA, used: torch.Generator) -> torch.Generator:
    """Return a generator as it was before its third chunk."""
    generator = torch.Generator().manual_seed(0)
    shape = getattr(vla.decoder, "shape", None)
    if shape is not None:
        for _ in range(2):
            torch.randn(*shape, generator=generator)
    return generator


@pytest.mark.parametrize("name", DECODERS)
def test_a_loss_is_the_mean_over_the_dims_that_each_robot_has(name: str, tmp_path: Path):
    vla = policy(tmp_path, **DECODERS[name])
    data = batch(vla)
    assert vla.count_elements(data) == 3 * 4 * (4 + 7 + 14)
    with torch.no_grad():
        loss = vla.loss(data, generators(3))
        assert int(loss.count) == vla.count_elements(data)
        assert torch.isfinite(loss.value)
        if name in ("regression", "tokens", "lm_tokens"):  # no noise: the whole is the sum of its rows
            rows = [vla.loss(select_row(data, i)) for i in range(3)]
            torch.testing.assert_close(loss.total, sum(r.total for r in rows), rtol=1e-4, atol=1e-4)
            assert int(loss.count) == sum(int(r.count) for r in rows)


@pytest.mark.parametrize("name", ["regression", "flow", "diffusion", "expert"])
def test_dims_that_a_robot_lacks_change_nothing(name: str, tmp_path: Path):
    """Neither their values in the data nor the noise sampled for them."""
    vla = policy(tmp_path, **DECODERS[name])
    data = batch(vla)
    lacking = ~vla.action_normalizer.known[data.robots]
    other = dataclasses.replace(data, actions=data.actions + 5.0 * lacking[:, None, None])
    with torch.no_grad():
        losses = [vla.loss(d, generators(3)).total for d in (data, other)]
        torch.testing.assert_close(*losses, rtol=0, atol=0)
        chunk = vla.decoder.sample(vla.read(data), generators(9)).view(3, 3, 4, -1)
    if name != "regression":
        assert not chunk[lacking[:, None, None].expand_as(chunk)].any()


def test_gradients_reach_each_robots_own_outputs_only(tmp_path: Path):
    vla = policy(tmp_path).train()
    data = batch(vla)
    vla.loss(select_row(data, 0)).value.backward()
    last = [m for m in vla.decoder.modules() if isinstance(m, torch.nn.Linear)][-1]
    touched = last.weight.grad.view(4, vla.embodiment.action.size, -1).abs().sum((0, 2)) > 0
    assert touched.tolist() == vla.action_normalizer.known[0].tolist()


def test_a_checkpoint_keeps_every_robot(tmp_path: Path):
    vla = policy(tmp_path)
    vla.save(tmp_path / "checkpoint")
    loaded = VLA.load(tmp_path / "checkpoint")
    assert loaded.robots == vla.robots
    data = batch(vla)
    for i, own in enumerate(ROBOTS):
        shown = observation(vla, data, i, 0)
        [one], [two] = (v.act([shown], [v.start("go", robot=own.name)]) for v in (vla, loaded))
        np.testing.assert_allclose(one.actions, two.actions, atol=1e-6)


def test_each_robot_acts_by_its_own_statistics(tmp_path: Path):
    """A policy that predicts +1 in every dim gives the end of each robot's range, in its own units."""
    vla = policy(tmp_path)
    vla.decoder.sample = lambda inputs, generators: torch.ones(len(inputs.context), 4, vla.embodiment.action.size)
    data = batch(vla)
    sessions = [vla.start("go", robot=e.name) for e in ROBOTS]
    chunks = vla.act([observation(vla, data, i, 0) for i in range(3)], sessions)
    assert chunks[0].actions[0].tolist() == [1, 1, 1, -1]  # its gripper is open at -1
    assert chunks[1].actions[0].tolist() == [2, 2, 2, 2, 2, 2, 1]
    assert chunks[2].actions[0].tolist() == [3] * 6 + [1] + [3] * 6 + [1]


def test_start_needs_the_name_of_the_robot(tmp_path: Path):
    vla = policy(tmp_path)
    with pytest.raises(ValueError, match=r"say which robot acts: this policy was trained for small, arm, pair"):
        vla.start("go")
    with pytest.raises(ValueError, match="there is no robot 'amr': this policy was trained for small"):
        vla.start("go", robot="amr")
    shown = Observation({"corner": np.zeros((SIZE, SIZE, 3), np.uint8)}, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"proprio has shape \(3,\), this policy was trained with \(6,\)"):
        vla.act([shown], [vla.start("go", robot="arm")])
    with pytest.raises(ValueError, match="lacks camera 'wrist'"):
        vla.act([shown], [vla.start("go", robot="small")])
