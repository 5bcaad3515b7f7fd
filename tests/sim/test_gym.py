from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("gymnasium")
pytest.importorskip("mujoco")

from anyvla.config import ConfigError
from anyvla.evaluation.suites import open_suite
from anyvla_sim.gym import Gym, Success
from anyvla_sim.rendering import find_driver

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
    with pytest.raises(ValueError, match="has no factor 'light': it has none"):
        environment.reset(ID, 0, {"light": "dim"})


def test_a_mapping_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "reacher.yaml").write_text(yaml.safe_dump(MAPPING))
    assert open_suite(f"gym:{ID}", {"mapping": str(tmp_path / "reacher.yaml")}).suite.horizon == 50
    with pytest.raises(ConfigError, match="there is no mapping"):
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


def test_what_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"gym:Reacher-v5 needs a mapping .*--environment.mapping FILE.yaml"):
        open_suite(f"gym:{ID}")
    with pytest.raises(ValueError, match=r"gym:Recher-v5: .*Recher"):
        Gym("Recher-v5", MAPPING)
    with pytest.raises(ImportError, match="No module named 'gym_nowhere'; install what registers it"):
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
    assert Success(written)({"info": info, "terminated": False, "reward": 0.5}) is won


def test_success_that_no_step_tells() -> None:
    with pytest.raises(ValueError, match=r"the step has no 'info\.sucess': did you mean 'success'"):
        Success("info.sucess")({"info": {"success": True}})
