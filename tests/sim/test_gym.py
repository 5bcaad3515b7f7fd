from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import yaml

from anyvla.config import ConfigError
from anyvla.evaluation.suites import open_suite
from anyvla_sim.gym import Gym, SuccessRule
from anyvla_sim.rendering import find_driver

pytestmark = pytest.mark.simulator("gymnasium", "mujoco")

MAPPING: dict[str, Any] = yaml.safe_load("""
cameras: {front: render}
proprio: [{path: ., name: state, size: 10}]
action: [{name: joints, size: 2, kind: joints, mode: delta, unit: Nm}]
control_hz: 50
instruction: [touch the ball, reach the ball]
success: info.reward_dist >= -0.02
horizon: 50
make: {width: 64, height: 48}
""")
ID = "Reacher-v5"


@pytest.fixture(autouse=True)
def driver() -> None:
    find_driver()


def test_a_real_environment() -> None:
    opened = open_suite(f"gym:{ID}", {"mapping": MAPPING})
    assert opened.name == f"gym/{ID}"
    assert opened.embodiment.cameras == ("front",)
    assert opened.suite.tasks[0].instructions == ["touch the ball", "reach the ball"]
    assert opened.benchmark.versions()["gymnasium"]
    environment = opened.benchmark.make(ID)
    starts = []
    for seed in (3, 4, 3):
        environment.reset(ID, seed, {})
        seen = environment.observe()
        assert seen.images["front"].shape == (48, 64, 3)
        assert seen.proprio.shape == (10,)
        for _ in range(5):
            goals = environment.step(np.array([2.0, -0.5], np.float32))  # clipped
        starts.append(environment.observe())
    assert set(goals) == {ID}
    assert np.array_equal(starts[0].proprio, starts[2].proprio)
    assert np.array_equal(starts[0].images["front"], starts[2].images["front"])
    assert not np.array_equal(starts[0].proprio, starts[1].proprio)
    assert environment.limits[1].tolist() == [1, 1]  # type: ignore[attr-defined]
    assert environment.frame(96, 128).shape == (96, 128, 3)
    with pytest.raises(ValueError, match="has no factor 'light': known: none"):
        environment.reset(ID, 0, {"light": "dim"})


def test_a_mapping_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "reacher.yaml").write_text(yaml.safe_dump(MAPPING))
    assert open_suite(f"gym:{ID}", {"mapping": str(tmp_path / "reacher.yaml")}).suite.horizon == 50
    with pytest.raises(ConfigError, match=r"the mapping .* does not exist"):
        open_suite(f"gym:{ID}", {"mapping": str(tmp_path / "none.yaml")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"camera": {}}, "the mapping has no key 'camera': did you mean 'cameras'"),
        ({"success": None}, "the mapping lacks success"),
        ({"success": "won!"}, r"success 'won!': write info.FLAG, terminated, or info.NUMBER >= 0.9"),
        ({"cameras": {"front": "pixels"}}, "the observation has no 'pixels': it is no map: use ."),
        ({"cameras": {"front": "."}}, r"camera front \(\.\) is no picture: float64 \(10,\)"),
        ({"proprio": [{"path": ".", "name": "state", "size": 11}]}, r"proprio has 11 dims, the observation 10"),
        ({"action": [{"name": "joints", "size": 3}]}, "takes Box.* the mapping's action has 3 dims"),
    ],
)
def test_a_mapping_that_does_not_fit(change: dict[str, Any], message: str) -> None:
    mapping = {k: v for k, v in {**MAPPING, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        Gym(ID, mapping)


def test_a_missing_mapping_or_package_is_reported() -> None:
    with pytest.raises(ConfigError, match=r"gym:Reacher-v5 needs a mapping .*--environment.mapping FILE.yaml"):
        open_suite(f"gym:{ID}")
    with pytest.raises(ValueError, match=r"gym:Recher-v5: .*Recher"):
        Gym("Recher-v5", MAPPING)
    with pytest.raises(ImportError, match="No module named 'gym_nowhere'; install the package"):
        Gym(ID, {**MAPPING, "import": "gym_nowhere"})


@pytest.mark.parametrize(
    ("written", "info", "won"),
    [
        ("info.is_success", {"is_success": np.True_}, True),
        ("terminated", {}, False),
        ("info.a.b < 0.5", {"a": {"b": 0.4}}, True),
        ("info.d >= -0.1", {"d": -0.2}, False),
        ("reward > 1e-3", {}, True),
    ],
)
def test_success(written: str, info: dict[str, Any], won: bool) -> None:
    assert SuccessRule(written)({"info": info, "terminated": False, "reward": 0.5}) is won


def test_a_success_rule_without_its_value_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the step has no 'info\.sucess': did you mean 'success'"):
        SuccessRule("info.sucess")({"info": {"success": True}})


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
TOY_ID = "AnyvlaToy-v0"
TOY: dict[str, Any] = yaml.safe_load("""
cameras: {front: render, hand: eyes.hand}
proprio: [{path: arm.joints, name: joints, size: 2, kind: joints}, {path: grip, name: gripper, size: 1, kind: gripper}]
action: [{name: joints, size: 2, kind: joints}, {name: gripper, size: 1, kind: gripper, low: 0, high: 4, open: 4}]
control_hz: 12.5
instruction: push it
success: terminated
horizon: 40
robot: toy
""")


def make_toy(**settings: Any) -> Any:
    """Return an environment that reports its input; its pictures are red and green above, blue below."""
    import gymnasium

    def flag(height: int, width: int) -> np.ndarray:
        image = np.zeros((height, width, 3), np.uint8)
        image[: height // 2], image[height // 2 :] = RED, BLUE
        image[: height // 2, width // 2 :] = GREEN
        return image

    class Env(gymnasium.Env):
        metadata: ClassVar = {"render_modes": ["rgb_array"]}
        action_space = gymnasium.spaces.Box(np.array([-1, -2, 0], np.float32), np.array([1, 2, 4], np.float32))
        observation_space = gymnasium.spaces.Box(0, 1, (1,))

        def __init__(self, render_mode: str, scale: float = 1.0) -> None:
            self.render_mode, self.scale = render_mode, scale

        def _seen(self) -> Any:
            joints, grip = np.array([[0.1, 0.2]]) * self.scale, 0.3
            return {"eyes": {"hand": flag(4, 6)}, "arm": {"joints": joints}, "grip": grip, "seed": self.seed}

        def reset(self, seed: int | None = None, options: Any = None) -> Any:
            self.seed = seed
            return self._seen(), {}

        def step(self, action: np.ndarray) -> Any:
            self.action = action
            ended, truncated = bool(action[0] > 0.5), bool(action[0] < -0.5)
            return self._seen(), float(action[1]), ended, truncated, {"distance": float(action[2])}

        def render(self) -> np.ndarray:
            return flag(8, 12)

    return Env(**settings)


@pytest.fixture
def registered() -> Iterator[None]:
    import gymnasium

    gymnasium.register(TOY_ID, make_toy, disable_env_checker=True, order_enforce=False)
    yield
    del gymnasium.registry[TOY_ID]


def test_pictures_are_rgb_and_upright(registered: None) -> None:
    environment = Gym(TOY_ID, TOY).make(TOY_ID)
    environment.reset(TOY_ID, 0, {})
    images = environment.observe().images
    assert {camera: image.shape for camera, image in images.items()} == {"front": (8, 12, 3), "hand": (4, 6, 3)}
    for image in (*images.values(), environment.frame(16, 36), environment.frame(4, 3)):
        assert [tuple(image[at]) for at in ((0, 0), (0, -1), (-1, 0), (-1, -1))] == [RED, GREEN, BLUE, BLUE]
        assert tuple(image[image.shape[0] // 2 - 1, 0]) == RED
    assert environment.frame(16, 36).shape == (16, 36, 3)


def test_proprio_has_the_groups_in_the_mappings_order(registered: None) -> None:
    proprio = {
        key: Gym(TOY_ID, {**TOY, "make": make}).make(TOY_ID) for key, make in (("one", {}), ("two", {"scale": 2}))
    }
    seen = {}
    for key, environment in proprio.items():
        environment.reset(TOY_ID, 0, {})
        seen[key] = environment.observe().proprio
    assert seen["one"].dtype == np.float32
    assert seen["one"] == pytest.approx([0.1, 0.2, 0.3])
    assert seen["two"] == pytest.approx([0.2, 0.4, 0.3])  # `make` reaches the environment
    described = Gym(TOY_ID, TOY).embodiment(TOY_ID)
    assert described == {
        "name": "toy",
        "cameras": ["front", "hand"],
        "control_hz": 12.5,
        "proprio": {
            "groups": [
                {"name": "joints", "size": 2, "kind": "joints"},
                {"name": "gripper", "size": 1, "kind": "gripper"},
            ]
        },
        "action": {"groups": TOY["action"]},
    }


def test_seeds_reach_the_environment_and_actions_are_clipped_to_its_space(registered: None) -> None:
    environment = Gym(TOY_ID, TOY).make(TOY_ID)
    for seed in (3, 1_000_002):
        environment.reset(TOY_ID, seed, {})
        assert environment.env.unwrapped.seed == seed
    assert [limit.tolist() for limit in environment.limits] == [[-1, -2, 0], [1, 2, 4]]
    for action, executed in (([9, -9, 9], [1, -2, 4]), ([-9, 9, -9], [-1, 2, 0]), ([0.5, -0.25, 3], [0.5, -0.25, 3])):
        environment.step(np.array(action, np.float32))
        assert environment.env.unwrapped.action.tolist() == executed


@pytest.mark.parametrize(
    ("success", "action", "won"),
    [
        ("terminated", [1, 0, 0], True),
        ("terminated", [-1, 0, 0], False),  # truncated, which is no success
        ("reward >= 0.5", [0, 0.5, 0], True),
        ("reward > 0.5", [0, 0.5, 0], False),
        ("info.distance <= 0.25", [0, 0, 0.25], True),
        ("info.distance < 0.25", [0, 0, 0.25], False),
        ("info.distance < 2.5e-1", [0, 0, 0.125], True),
        ("reward >= -0.5", [0, -0.75, 0], False),
    ],
)
def test_success_is_judged_by_the_rule(registered: None, success: str, action: list[float], won: bool) -> None:
    environment = Gym(TOY_ID, {**TOY, "success": success}).make(TOY_ID)
    environment.reset(TOY_ID, 0, {})
    assert environment.step(np.array(action, np.float32)) == {TOY_ID: won}


def test_a_suite_has_the_mappings_horizon_and_episodes(registered: None) -> None:
    suite = Gym(TOY_ID, TOY).suite(TOY_ID)
    assert (suite.horizon, suite.episodes, suite.success_rule, suite.starts) == (40, 50, "reached", None)
    assert [(t.name, list(t.instructions)) for t in suite.tasks] == [(TOY_ID, ["push it"])]
    assert Gym(TOY_ID, {**TOY, "episodes": 7}).suite(TOY_ID).episodes == 7
