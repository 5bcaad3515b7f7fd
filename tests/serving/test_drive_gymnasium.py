"""The example of the client: a served policy drives a real environment as it does in the same process."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from anyvla.config import build
from anyvla.policy import VLA
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.normalize import Statistics
from anyvla.robot.shared_layout import Robot
from anyvla.serving.protocols.anyvla import AnyvlaProtocol
from anyvla.types import Observation
from anyvla_sim.client import Client, WrongObservation
from anyvla_sim.rendering import find_driver
from tests import small
from tests.serving.clients import Running
from tests.serving.protocols.test_anyvla import KEYS

pytestmark = pytest.mark.simulator("gymnasium", "mujoco")
EXAMPLE = Path(__file__).parents[2] / "examples" / "drive_gymnasium.py"


@pytest.fixture(scope="module")
def policy() -> VLA:
    """Return a policy with random weights for the robot of Reacher."""
    find_driver()
    robot = build(
        Embodiment,
        {
            "name": "reacher",
            "cameras": ["front"],
            "control_hz": 50,
            "proprio": {"groups": [{"name": "state", "size": 10}]},
            "action": {"groups": [{"name": "joints", "size": 2, "kind": "joints", "mode": "delta", "unit": "Nm"}]},
        },
    )

    def of(dims: int, largest: float) -> dict[str, list[float]]:
        low, high = [-largest] * dims, [largest] * dims
        return {"q01": low, "q99": high, "min": low, "max": high, "mean": [0.0] * dims, "std": [1.0] * dims}

    torch.manual_seed(0)
    history, fuser = {"name": "policy_head", "window": 3}, {"name": "lstm", "hidden": 32, "layers": 1}
    config = small.model(history, fuser, decoder="diffusion")
    return small.awake(VLA(config, [Robot(robot, Statistics(of(2, 1), of(10, 30), "f" * 64))]).eval())


def play_in_process(vla: VLA) -> float:
    import gymnasium

    environment = gymnasium.make("Reacher-v5", render_mode="rgb_array", width=64, height=64)
    session, total, left, ended = vla.start("touch the ball", 0), 0.0, [], False
    seen, _ = environment.reset(seed=0)
    while not ended:
        if not left:
            observation = Observation({"front": environment.render()}, seen.astype(np.float32))  # type: ignore[dict-item]
            left = list(vla.act([observation], [session])[0].actions[: vla.config.execute])
        seen, reward, terminated, truncated, _ = environment.step(left.pop(0))
        total, ended = total + float(reward), terminated or truncated
    environment.close()
    return total


def test_the_example_plays_the_same_episode_as_the_policy_in_process(
    policy: VLA, running: Callable[..., Running]
) -> None:
    server = running(policy, protocol=AnyvlaProtocol, mapping=KEYS, robot=policy.robots[0].embodiment)
    reward = runpy.run_path(str(EXAMPLE))["drive"](server.url, "Reacher-v5", "touch the ball")
    assert reward == pytest.approx(play_in_process(policy), abs=1e-4)
    with Client(server.url) as client, pytest.raises(WrongObservation, match=r"proprio \(state 10\) must have 10"):
        client.start("touch it").act({"images": {"front": np.zeros((64, 64, 3), np.uint8)}, "proprio": [0.0] * 4})
