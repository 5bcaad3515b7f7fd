"""How chains of CALVIN are played and judged, with a replacement of its table: a drawer that the first dim moves."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyvla_sim.calvin import benchmark as calvin
from anyvla_sim.calvin import installation
from anyvla_sim.calvin.benchmark import Calvin, CalvinEnvironment
from anyvla_sim.calvin.sequences import hash_as_pyhash
from tests.sim.calvin import calvin_root
from tests.sim.calvin.fakes import QUARTERS, flag, quarters


class Table:
    """A replacement for `World`."""

    def __init__(self, root: Path) -> None:
        self.drawer = 0.0
        self.commands: list[np.ndarray] = []
        self.start: Any = None

    def reset(self, robot_obs: np.ndarray, scene_obs: np.ndarray) -> None:
        self.drawer, self.start = 0.0, (robot_obs, scene_obs)

    def step(self, action: np.ndarray) -> dict[str, float]:
        self.commands.append(action.copy())
        self.drawer += float(action[0])
        return self.info()

    def info(self) -> dict[str, float]:
        return {"drawer": self.drawer}

    def robot_obs(self) -> np.ndarray:
        return np.arange(15) / 10


class Oracle:
    """Judges a task by two states, as CALVIN's oracle does: has the drawer moved by more than 0.12?"""

    def get_task_info_for_set(self, before: dict[str, float], now: dict[str, float], tasks: set[str]) -> set[str]:
        moved = now["drawer"] - before["drawer"]
        done = {"open_drawer"} if moved > 0.12 else {"turn_on_led"} if moved < -0.12 else set()
        return done & tasks


class Drawn:
    """A replacement for `Screen`."""

    def __init__(self, root: Path, egl: bool) -> None:
        self.root, self.egl, self.shown, self.closed = root, egl, None, False

    def show(self, world: Table) -> None:
        self.shown = world

    def draw_cameras(self) -> dict[str, np.ndarray]:
        return {"static": flag(200, 200), "gripper": flag(84, 84)}

    def draw_static(self, height: int, width: int) -> np.ndarray:
        return flag(height, width)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ANYVLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(installation, "PACKAGES", {})
    monkeypatch.setattr(installation, "find_egl_driver", lambda: "a driver")
    monkeypatch.setattr(calvin, "World", Table)
    monkeypatch.setattr(calvin, "Screen", Drawn)
    monkeypatch.setattr(calvin, "_SCREENS", {})
    oracle = {"instantiate": lambda path: Oracle() if path.name == "new_playtable_tasks.yaml" else None}
    load = {"OmegaConf": types.SimpleNamespace(load=lambda path: path)}
    for name, content in (("hydra", {}), ("hydra.utils", oracle), ("omegaconf", load)):
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return str(calvin_root.write(tmp_path / "calvin"))


@pytest.fixture
def benchmark(root: str) -> Calvin:
    return Calvin(root, render="tiny", chains=20)


@pytest.fixture
def environment(benchmark: Calvin) -> CalvinEnvironment:
    return benchmark.make("ABC-D")


def move(environment: CalvinEnvironment, by: float) -> dict[str, bool]:
    return environment.step(np.array([by, 0, 0, 0, 0, 0, 1], np.float32))


def test_a_task_is_judged_from_its_beginning(environment: CalvinEnvironment) -> None:
    environment.reset("open_drawer", 0, {})
    assert [move(environment, 0.05) for _ in range(2)] == [{"open_drawer": False}] * 2
    assert move(environment, 0.05) == {"open_drawer": True}  # three steps in all, none of which alone is enough
    environment.begin("turn_on_led")  # from 0.15 on
    assert move(environment, -0.1) == {"turn_on_led": False}
    assert move(environment, -0.05) == {"turn_on_led": True}
    environment.begin("open_drawer")  # from 0 on
    assert move(environment, 0.1) == {"open_drawer": False}
    environment.reset("open_drawer", 1, {})
    assert move(environment, 0.1) == {"open_drawer": False}  # the steps before the reset do not count
    assert move(environment, 0.1) == {"open_drawer": True}


def test_only_the_current_task_is_judged(environment: CalvinEnvironment) -> None:
    environment.reset("turn_on_led", 0, {})
    assert move(environment, 0.2) == {"turn_on_led": False}  # though the drawer is open now


def test_the_gripper_opens_above_zero_and_closes_otherwise(environment: CalvinEnvironment) -> None:
    """calvin_agent's policies send the sign; the simulator asserts -1 or 1 (calvin_env/robot/robot.py)."""
    environment.reset("open_drawer", 0, {})
    for gripper in (1.0, 0.01, 0.0, -0.01, -1.0):
        action = np.array([0.1, -0.2, 0.3, -0.4, 0.5, -0.6, gripper], np.float32)
        environment.step(action)
        assert action[6] == np.float32(gripper)  # the caller's array is unchanged
    sent = np.array(environment._world.commands)  # type: ignore[attr-defined]
    assert sent[:, 6].tolist() == [1, 1, -1, -1, -1]
    assert sent[:, :6] == pytest.approx(np.tile([0.1, -0.2, 0.3, -0.4, 0.5, -0.6], (5, 1)))


def test_seed_i_starts_chain_i_of_the_official_list(environment: CalvinEnvironment) -> None:
    """The checkout's chain number k starts with led k, and its list is shuffled by numpy's seed 0."""
    order = list(range(1000))
    np.random.RandomState(0).shuffle(order)
    for seed in (0, 1, 19):
        environment.reset("open_drawer", seed, {})
        scene = np.random.RandomState(hash_as_pyhash(f"dict_values([{order[seed]}])")).uniform(size=24)
        robot_obs, scene_obs = environment._world.start  # type: ignore[attr-defined]
        assert robot_obs.tolist() == [np.pi] * 15
        assert np.array_equal(scene_obs, scene)


def test_an_observation(environment: CalvinEnvironment) -> None:
    environment.reset("open_drawer", 0, {})
    seen = environment.observe()
    assert {name: image.shape for name, image in seen.images.items()} == {
        "static": (200, 200, 3),
        "gripper": (84, 84, 3),
    }
    for image in (*seen.images.values(), environment.frame(30, 50)):
        assert quarters(image) == QUARTERS
    assert (seen.proprio.dtype, seen.proprio.tolist()) == (np.float32, (np.arange(15, dtype=np.float32) / 10).tolist())
    assert environment.frame(30, 50).shape == (30, 50, 3)


def test_a_shared_screen_shows_the_world_of_its_environment(benchmark: Calvin) -> None:
    environments = [benchmark.make("ABC-D"), benchmark.make("ABCD-D")]
    for environment in (*environments, environments[0]):
        environment.reset("open_drawer", 0, {})
        environment.observe()
        assert benchmark.screen().shown is environment._world  # type: ignore[attr-defined]
    screen: Any = benchmark.screen()
    benchmark.close()
    assert screen.closed


@pytest.mark.parametrize(("render", "egl"), [("egl", True), ("tiny", False)])
def test_the_renderer_follows_the_setting(root: str, render: str, egl: bool) -> None:
    benchmark = Calvin(root, render=render)
    assert benchmark.screen().egl is egl  # type: ignore[attr-defined]
    assert (benchmark.driver, benchmark.protocol("ABC-D")["render"]) == ("a driver" if egl else "TinyRenderer", render)


def test_the_defaults_are_as_published(root: str) -> None:
    """1000 chains, drawn with EGL (calvin_agent/evaluation/evaluate_policy.py)."""
    benchmark = Calvin(root)
    assert benchmark.settings == {"root": root, "render": "egl", "chains": 1000, "language": None}
    assert benchmark.protocol("ABCD-D") == {
        "render": "egl",
        "cameras": {"static": [200, 200], "gripper": [84, 84]},
        "trained_in": "ABCD",
        "played_in": "D",
        "other_words": "",
    }


def test_versions_name_both_checkouts(benchmark: Calvin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calvin.metadata, "version", lambda name: f"{name} 1.0")
    monkeypatch.setattr(calvin, "read_git_commit", lambda folder: f"commit of {folder.name}")
    assert benchmark.versions() == {
        "pybullet": "pybullet 1.0",
        "numpy": "numpy 1.0",
        "scipy": "scipy 1.0",
        "calvin": "commit of calvin",
        "calvin_env": "commit of calvin_env",
        "gl": "TinyRenderer",
    }


def test_bad_input_is_refused(environment: CalvinEnvironment) -> None:
    with pytest.raises(ValueError, match="no task 'open_drawers': did you mean 'open_drawer'"):
        environment.reset("open_drawers", 0, {})
    with pytest.raises(ValueError, match="no chain 20: 0 to 19 are played"):
        environment.reset("open_drawer", 20, {})
    with pytest.raises(ValueError, match="no factor 'light'"):
        environment.reset("open_drawer", 0, {"light": "dim"})
    with pytest.raises(ValueError, match=r"shape \(7,\), not \(6,\)"):
        environment.step(np.zeros(6, np.float32))
