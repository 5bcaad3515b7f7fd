"""Tests with CALVIN itself. They need $CALVIN_ROOT and its simulator's packages, and also run in Python 3.8."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyvla_sim.base import BenchmarkUnusable, Observation
from anyvla_sim.calvin import benchmark as calvin
from anyvla_sim.calvin import installation
from anyvla_sim.calvin.benchmark import Calvin, CalvinEnvironment
from tests.sim.calvin import calvin_root

pytestmark = pytest.mark.simulator("calvin")

FIRST = [chain.tasks[0] for chain in calvin_root.OFFICIAL]
LED_OFF = 2  # the chain that starts with the LED off
BUTTON = np.array([-0.12, -0.12, 0.47])  # position of the LED's button, m


def _renderers() -> Iterator[str]:
    yield "tiny"
    try:
        if "CALVIN_ROOT" in os.environ:
            installation.find_egl_driver()
            yield "egl"
    except BenchmarkUnusable:
        pass


@pytest.fixture(scope="module", params=list(_renderers()))
def benchmark(request: Any) -> Iterator[Calvin]:
    patch = pytest.MonkeyPatch()
    patch.setattr(calvin, "load_chains", lambda root: calvin_root.OFFICIAL)  # sampling all takes minutes
    calvin._chains.cache_clear()
    benchmark = Calvin(render=request.param, chains=len(calvin_root.OFFICIAL))
    yield benchmark
    benchmark.close()
    patch.undo()
    calvin._chains.cache_clear()


@pytest.fixture(scope="module")
def environment(benchmark: Calvin) -> Iterator[CalvinEnvironment]:
    environment = benchmark.make("ABC-D")
    yield environment
    environment.close()


def play(environment: CalvinEnvironment, seed: int, steps: int) -> dict[str, np.ndarray]:
    """Play random actions. Return the last observation."""
    environment.reset(FIRST[seed], seed, {})
    random = np.random.RandomState(seed)
    for _ in range(steps):
        environment.step((random.uniform(-1, 1, 7) + [0.3, 0.3, -0.4, 0, 0, 0, 0]).astype(np.float32))
    return flat(environment.observe())


def flat(seen: Observation) -> dict[str, np.ndarray]:
    return {**seen.images, "proprio": seen.proprio}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[key], other[key]) for key in one)


def test_observations_fit_the_embodiment(benchmark: Calvin, environment: CalvinEnvironment) -> None:
    environment.reset(FIRST[0], 0, {})
    seen = environment.observe()
    robot = benchmark.embodiment("ABC-D")
    assert list(seen.images) == robot["cameras"]
    sizes = benchmark.protocol("ABC-D")["cameras"]
    for camera, image in seen.images.items():
        assert (image.dtype, list(image.shape)) == (np.uint8, [*sizes[camera], 3])
        assert image.std() > 20  # not blank
    assert (seen.proprio.dtype, seen.proprio.size) == (np.float32, sum(g["size"] for g in robot["proprio"]["groups"]))
    assert environment.frame(96, 128).shape == (96, 128, 3)


def test_scenes_start_in_the_state_of_their_chain(environment: CalvinEnvironment) -> None:
    for seed, chain in enumerate(calvin_root.OFFICIAL):
        environment.reset(FIRST[seed], seed, {})
        slider, drawer, _, _, bulb, led = environment._world.env.get_state_obs()["scene_obs"][:6]
        assert (slider > 0.2) == (chain.start["slider"] == "left")
        assert (drawer > 0.2) == (chain.start["drawer"] == "open")
        assert (bulb, led) == (chain.start["lightbulb"], chain.start["led"])
        assert environment.observe().proprio[14] == 1  # the gripper is open after any earlier command


def test_an_episode_does_not_depend_on_earlier_ones(benchmark: Calvin, environment: CalvinEnvironment) -> None:
    first = [play(environment, seed, 40) for seed in range(3)]
    assert not same(first[0], first[1])
    other = benchmark.make("ABCD-D")
    order = [0, 0, 2, 1, 1, 2, 0]
    for number, seed in enumerate(order):
        playing = (environment, other)[number % 2]
        assert same(play(playing, seed, 40), first[seed]), f"chain {seed} differs at position {number} of {order}"
        playing.frame(480, 640)
    other.close()


def test_two_environments_do_not_affect_each_other(benchmark: Calvin, environment: CalvinEnvironment) -> None:
    alone = play(environment, 1, 30)
    other = benchmark.make("ABC-D")
    environment.reset(FIRST[1], 1, {})
    other.reset(FIRST[0], 0, {})
    random = np.random.RandomState(1)
    for _ in range(30):
        environment.step((random.uniform(-1, 1, 7) + [0.3, 0.3, -0.4, 0, 0, 0, 0]).astype(np.float32))
        other.step(np.ones(7, np.float32))
        other.observe()
    assert same(flat(environment.observe()), alone)
    other.close()


def test_states_and_pictures_equal_calvins_own(benchmark: Calvin, environment: CalvinEnvironment) -> None:
    """Compare the two physics clients of anyvla with a single one, which simulates and renders, as in CALVIN."""
    from anyvla_sim.calvin.world import Bullet, make_play_table

    if benchmark.render == "egl":
        pytest.skip("a second EGL renderer in a process draws wrongly")
    seen = play(environment, 0, 25)
    whole = make_play_table(benchmark.root, Bullet(), "static_and_gripper", egl=False)
    whole.p.setPhysicsEngineParameter(deterministicOverlappingPairs=1)
    whole.reset(*environment._poses(calvin_root.OFFICIAL[0].start))
    random = np.random.RandomState(0)
    for _ in range(25):
        action = (random.uniform(-1, 1, 7) + [0.3, 0.3, -0.4, 0, 0, 0, 0]).astype(np.float32).astype(float)
        action[6] = np.sign(action[6])
        shown = whole.step(action)[0]
    assert np.array_equal(shown["robot_obs"].astype(np.float32), seen["proprio"])
    for camera in ("static", "gripper"):
        assert np.array_equal(shown["rgb_obs"]["rgb_" + camera], seen[camera])
    whole.close()


def go(environment: CalvinEnvironment, target: np.ndarray, steps: int) -> bool:
    """Move the closed gripper to `target` (3,). Return whether the goal was reached on the way."""
    for _ in range(steps):
        away = (target - environment._world.robot_obs()[:3]) / 0.02
        goals = environment.step(np.concatenate([np.clip(away, -1, 1), np.zeros(3), [-1]]).astype(np.float32))
        if any(goals.values()):
            return True
    return False


def test_the_oracle_judges_a_pressed_button_once_per_task(environment: CalvinEnvironment) -> None:
    """A task of a chain is judged from its beginning on."""
    above = BUTTON + [0, 0, 0.1]
    environment.reset("turn_on_led", LED_OFF, {})
    assert environment.step(np.zeros(7, np.float32)) == {"turn_on_led": False}
    assert not go(environment, above, 25)
    assert go(environment, BUTTON - [0, 0, 0.05], 25)
    environment.begin("turn_off_led")
    assert environment.step(np.array([0, 0, 1, 0, 0, 0, -1], np.float32)) == {"turn_off_led": False}
    assert not go(environment, above, 25)
    assert go(environment, BUTTON - [0, 0, 0.05], 25)


def test_an_action_moves_by_its_unit(environment: CalvinEnvironment) -> None:
    environment.reset(FIRST[0], 0, {})
    before = environment.observe().proprio
    for _ in range(10):
        environment.step(np.array([0, 0, 0.5, 0, 0, 0, 0.1], np.float32))
    for _ in range(10):
        environment.step(np.array([0, 0, 0, 0, 0, 0, 0.1], np.float32))
    moved = environment.observe().proprio - before
    assert moved[:3] == pytest.approx([0, 0, 10 * 0.5 * 0.02], abs=0.005)
    assert abs(moved[6]) < 0.01  # open, as for any command above 0
    for _ in range(10):
        environment.step(np.array([0, 0, 0, 0, 0, 0, -0.1], np.float32))
    assert environment.observe().proprio[6] < 0.01


def test_bad_input_is_refused(environment: CalvinEnvironment) -> None:
    with pytest.raises(ValueError, match="no task 'open_drawers': did you mean 'open_drawer'"):
        environment.reset("open_drawers", 0, {})
    with pytest.raises(ValueError, match="no chain 3: 0 to 2 are played"):
        environment.reset("open_drawer", 3, {})
    with pytest.raises(ValueError, match="no factor 'light'"):
        environment.reset("open_drawer", 0, {"light": "dim"})
    with pytest.raises(ValueError, match=r"shape \(7,\), not \(6,\)"):
        environment.step(np.zeros(6, np.float32))


def test_a_second_checkout_is_refused(environment: CalvinEnvironment, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"calvin_env is loaded from .* already; .* needs another process"):
        installation.import_simulator(calvin_root.write(tmp_path / "calvin"))
