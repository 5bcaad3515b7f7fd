"""SimplerEnv's adapter with a small replacement of the simulator that has the same interface."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from anyvla.config import build
from anyvla.robot.embodiment import Embodiment
from anyvla_sim.base import NotInstalled
from anyvla_sim.simpler import benchmark as simpler
from anyvla_sim.simpler.benchmark import Simpler, SimplerEnvironment
from anyvla_sim.simpler.motion import DOWN
from anyvla_sim.simpler.suites import load_tasks

INSTRUCTIONS = {t.name: t.instructions[0] for s in simpler.NAMES for t in simpler.make_suite(s).tasks if t.instructions}


class World:
    """Counts steps; successful after the third."""

    def __init__(self, environment: str, settings: dict[str, Any]) -> None:
        self.environment, self.settings = environment, settings
        self.commands: list[np.ndarray] = []
        self.drawn: list[str] = []
        self.closed = False
        self._obs_mode = "rgbd"
        still = SimpleNamespace(p=np.array([0.1, 0.2, 0.3]), q=np.array([1.0, 0, 0, 0]))
        self.tcp = SimpleNamespace(pose=SimpleNamespace(p=np.array([0.4, 0.2, 0.5]), q=np.array([1.0, 0, 0, 0])))
        self.agent = SimpleNamespace(robot=SimpleNamespace(pose=still), get_gripper_closedness=lambda: 0.25)

    @property
    def unwrapped(self) -> World:
        return self

    def reset(self, options: dict[str, Any]) -> None:
        self.options = options

    def get_language_instruction(self) -> str:
        if self.environment.startswith("MoveNear"):
            return "move the can near the apple"
        if self.environment.startswith("PlaceInto"):
            return "open top drawer" if len(self.commands) < 100 else "place apple into top drawer"
        return next(text for task, text in INSTRUCTIONS.items() if self.environment in find_environments(task))

    def get_obs(self) -> dict[str, Any]:
        camera = "overhead_camera" if "google" in self.settings["robot"] else "3rd_view_camera"
        color = np.zeros((48, 64, 4), np.float32)  # red and green above, blue below
        color[:24, :32], color[:24, 32:], color[24:] = (0.999, 0, 0, 1), (0, 0.999, 0, 1), (0, 0, 0.999, 1)
        return {"image": {camera: {"Color": color}}}

    def step(self, command: np.ndarray) -> tuple[Any, ...]:
        self.drawn.append(self._obs_mode)
        self.commands.append(command)
        return {}, 0.0, False, False, {"success": len(self.commands) >= 3}

    def close(self) -> None:
        self.closed = True


def find_environments(task: str) -> set[str]:
    suites = [load_tasks(name) for name in simpler.NAMES]
    return {variant.environment for suite in suites if task in suite for variant in suite[task].variants}


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    for suite in simpler.NAMES:
        for one in load_tasks(suite).values():
            for seed in range(one.count):
                variant, place = one.start(seed)
                files = [tmp_path / "hab2_bench_assets" / "stages" / f"{variant.scene}.glb"]
                if place.overlay:
                    files.append(tmp_path / "real_inpainting" / place.overlay)
                for file in files:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.touch()
    return tmp_path


@pytest.fixture
def made(assets: Path, monkeypatch: pytest.MonkeyPatch) -> list[World]:
    worlds: list[World] = []

    def build_maniskill2_env(environment: str, **settings: Any) -> World:
        worlds.append(World(environment, settings))
        return worlds[-1]

    builder = types.ModuleType("simpler_env.utils.env.env_builder")
    vars(builder).update(
        build_maniskill2_env=build_maniskill2_env, get_robot_control_mode=lambda robot, policy: f"mode of {robot}"
    )
    real2sim, package = types.ModuleType("mani_skill2_real2sim"), types.ModuleType("simpler_env")
    vars(real2sim).update(ASSET_DIR=assets, __file__=str(assets / "x.py"))
    vars(package).update(__file__=str(assets / "y.py"))
    for name in ("simpler_env.utils", "simpler_env.utils.env"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for module in (builder, real2sim, package):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(simpler.metadata, "version", lambda name: "1.26.4" if name == "numpy" else "2.2.2")
    return worlds


def reset(suite: str, task: str, seed: int = 0, **settings: Any) -> SimplerEnvironment:
    environment = Simpler(**settings).make(suite)
    environment.reset(task, seed)
    return environment


def test_a_scene_is_built_as_the_scripts_build_it(made: list[World]) -> None:
    reset("widowx", "eggplant-in-basket", 5)
    (world,) = made
    assert world.environment == "PutEggplantInBasketScene-v0"
    settings = dict(world.settings)
    assert settings.pop("rgb_overlay_path").endswith("/real_inpainting/bridge_sink.png")
    assert settings == {
        "obs_mode": "rgbd",
        "robot": "widowx_sink_camera_setup",
        "sim_freq": 500,
        "control_mode": "mode of widowx_sink_camera_setup",
        "control_freq": 5,
        "max_episode_steps": 120,
        "scene_name": "bridge_table_1_v2",
        "camera_cfgs": {"add_segmentation": True},
    }
    robot = world.options["robot_init_options"]
    assert robot["init_xy"].tolist() == [0.127, 0.06]
    assert world.options["obj_init_options"] == {"episode_id": 5}


def test_variants_reach_the_simulator(made: list[World]) -> None:
    environment = Simpler().make("google-variant-aggregation")
    seen = set()
    for seed in range(9):
        environment.reset("pick-coke-can-standing", seed)
        world = made[-1]
        assert world.settings["upright"] is True
        assert world.settings["rgb_overlay_path"] is None
        assert (world.settings["sim_freq"], world.settings["control_freq"]) == (513, 3)
        seen.add((world.environment, world.settings["scene_name"], len(world.settings)))
        assert world.options["obj_init_options"]["init_xy"].tolist() == pytest.approx([-0.35, -0.02])
    assert len(made) == 9
    assert all(world.closed for world in made[:-1])  # each episode has its own simulator
    assert len(seen) == 8  # darker and brighter differ in the name of one setting


def test_without_ray_tracing(made: list[World]) -> None:
    reset("google-visual-matching", "open-top-drawer")
    reset("google-visual-matching", "open-top-drawer", ray_tracing=False)
    assert made[0].settings["shader_dir"] == "rt"
    assert "shader_dir" not in made[1].settings
    assert not Simpler(ray_tracing=False).protocol("google-visual-matching")["ray_tracing"]


def test_actions_of_bridge(made: list[World]) -> None:
    environment = reset("widowx", "carrot-on-plate")
    assert environment.step(np.array([0.01, 0.02, 0.03, 0.1, 0, 0, 0.9])) == {"carrot-on-plate": False}
    environment.step(np.array([0, 0, 0, 0, 0, 0, 0.4]))
    assert environment.step(np.zeros(7)) == {"carrot-on-plate": True}
    assert made[0].commands[0] == pytest.approx([0.01, 0.02, 0.03, 0.1, 0, 0, 1.0])  # open
    assert made[0].commands[1][6] == -1  # close
    environment.step(np.array([0, 0, 0, 0.5, -0.7, 0.9, 0.51]))
    turn = Rotation.from_euler("xyz", [0.5, -0.7, 0.9]).as_rotvec()  # the controller takes an axis times its angle
    assert made[0].commands[3] == pytest.approx([0, 0, 0, *turn, 1])
    assert set(made[0].drawn) == {"none"}  # a step draws nothing
    assert made[0]._obs_mode == "rgbd"
    with pytest.raises(ValueError, match=r"an action of SimplerEnv has shape \(7,\), not \(6,\)"):
        environment.step(np.zeros(6))


def test_actions_of_the_google_robot_turn_about_an_axis_too(made: list[World]) -> None:
    environment = reset("google-visual-matching", "move-near")
    environment.step(np.array([0.01, -0.02, 0.03, 0.5, -0.7, 0.9, 1]))
    turn = Rotation.from_euler("xyz", [0.5, -0.7, 0.9]).as_rotvec()
    assert made[0].commands[0] == pytest.approx([0.01, -0.02, 0.03, *turn, 0])


def test_robots_play_at_the_rates_of_their_data(made: list[World]) -> None:
    """Bridge V2 was recorded at 5 Hz, RT-1 at 3 Hz; scripts/*.sh of SimplerEnv simulate 500 and 513 steps a second."""
    for suite, task, rates in (
        ("widowx", "carrot-on-plate", (500, 5)),
        ("google-visual-matching", "move-near", (513, 3)),
    ):
        reset(suite, task)
        settings = made[-1].settings
        assert (settings["sim_freq"], settings["control_freq"]) == rates
        protocol = Simpler().protocol(suite)
        assert (protocol["simulated_hz"], protocol["control_hz"]) == rates
        assert Simpler().embodiment(suite)["control_hz"] == rates[1]


def test_protocols(made: list[World]) -> None:
    assert Simpler().protocol("widowx") == {
        "camera": "3rd_view_camera",
        "size": [480, 640],
        "simulated_hz": 500,
        "control_hz": 5,
        "image": "as drawn",
    }
    assert Simpler().protocol("google-variant-aggregation") == {
        "camera": "overhead_camera",
        "size": [512, 640],
        "simulated_hz": 513,
        "control_hz": 3,
        "image": "as drawn",
        "sticky_gripper": 15,
        "ray_tracing": True,
        "next_instruction_after": 100,
    }


def test_the_google_robots_gripper_is_sticky(made: list[World]) -> None:
    environment = reset("google-visual-matching", "move-near")
    for opened in (1.0, 0.0, 0.0, 1.0):
        environment.step(np.array([0, 0, 0, 0, 0, 0, opened]))
    assert [command[6] for command in made[0].commands] == [0, 1, 1, 1]
    environment.reset("move-near", 1)
    environment.step(np.zeros(7))
    assert made[1].commands[0][6] == 0  # a reset clears the repeated change


def pose(place: Any, rotation: Rotation) -> SimpleNamespace:
    """Return a pose of the simulator, whose quaternion has the real part first."""
    return SimpleNamespace(p=np.array(place), q=np.roll(rotation.as_quat(), 1))


def test_pictures_are_rgb_upright_and_truncated_not_rounded(made: list[World]) -> None:
    for suite, task in (("widowx", "carrot-on-plate"), ("google-visual-matching", "move-near")):
        image = reset(suite, task).observe().images["primary"]
        assert (image.shape, image.dtype) == ((48, 64, 3), np.uint8)
        colors = [image[at].tolist() for at in ((0, 0), (0, -1), (-1, 0), (-1, -1))]
        assert colors == [[254, 0, 0], [0, 254, 0], [0, 0, 254], [0, 0, 254]]


def test_a_video_frame_has_its_height_and_width(made: list[World], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def resize(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
        asked.append((image.shape, size, interpolation))
        return image

    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(resize=resize, INTER_AREA="area"))
    reset("widowx", "carrot-on-plate").frame(30, 60)
    assert asked == [((48, 64, 3), (60, 30), "area")]  # cv2 takes the width first


def test_a_robot_is_turned_by_its_placement(made: list[World]) -> None:
    reset("google-visual-matching", "move-near", 4)
    robot = made[0].options["robot_init_options"]
    turn = Rotation.from_quat(np.roll(robot["init_rot_quat"], -1))
    assert turn.as_matrix() == pytest.approx(Rotation.from_euler("z", np.pi - 0.09).as_matrix())
    assert robot["init_xy"].tolist() == [0.35, 0.21]
    assert made[0].options["obj_init_options"] == {"episode_id": 1}  # four paints take turns


def test_robots(made: list[World]) -> None:
    """Bridge: state and action as Octo and OpenVLA read them, 1 is open. RT-1: base_pose_tool_reached, 1 is closed."""
    position = {"name": "position", "size": 3, "kind": "position", "unit": "m", "frame": "base"}
    angles = {"name": "rotation", "size": 3, "kind": "rotation", "rotation": "euler", "unit": "rad", "frame": "base"}
    quaternion = {"name": "quaternion", "size": 4, "kind": "rotation", "frame": "base"}
    gripper = {"name": "gripper", "size": 1, "kind": "gripper", "low": 0, "high": 1, "open": 1}
    action = {"groups": [{**position, "mode": "delta"}, {**angles, "mode": "delta"}, gripper]}
    assert Simpler().embodiment("widowx") == {
        "name": "widowx_bridge",
        "cameras": ["primary"],
        "control_hz": 5,
        "proprio": {"groups": [position, angles, gripper]},
        "action": action,
    }
    for suite in ("google-visual-matching", "google-variant-aggregation", "google-cameras"):
        assert Simpler().embodiment(suite) == {
            "name": "google_robot",
            "cameras": ["primary"],
            "control_hz": 3,
            "proprio": {"groups": [position, quaternion, {**gripper, "open": 0}]},
            "action": action,
        }


def test_proprio_is_the_tool_seen_from_the_base(made: list[World]) -> None:
    """The base is at (0.1, 0.2, 0.3) and turned; the tool is 0.3 in front of it and 0.2 above, tilted."""
    base = Rotation.from_euler("z", np.pi - 0.5)
    tilt = Rotation.from_euler("xyz", [0.3, -0.4, 0.5])
    down = Rotation.from_matrix(DOWN)
    for suite, task in (("widowx", "carrot-on-plate"), ("google-visual-matching", "move-near")):
        environment = reset(suite, task)
        made[-1].agent.robot.pose = pose([0.1, 0.2, 0.3], base)
        made[-1].tcp.pose = pose(
            base.apply([0.3, 0, 0.2]) + (0.1, 0.2, 0.3), base * (tilt * down if suite == "widowx" else tilt)
        )
        proprio = environment.observe().proprio
        assert proprio[:3] == pytest.approx([0.3, 0, 0.2], abs=1e-6)
        if suite == "widowx":  # Bridge: Euler angles relative to a gripper that points down, 1 is open
            assert proprio[3:] == pytest.approx([0.3, -0.4, 0.5, 0.75], abs=1e-6)
        else:  # RT-1: a quaternion, the real part last, 1 is closed
            assert proprio[3:] == pytest.approx([*tilt.as_quat(), 0.25], abs=1e-6)


def test_down_is_bridges_default_rotation() -> None:
    """simpler_env/policies: the WidowX controller's default rotation; the gripper's x points down there."""
    assert DOWN.tolist() == [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]


def test_instructions_of_the_environment(made: list[World]) -> None:
    assert reset("google-visual-matching", "move-near").instruction() == "move the can near the apple"
    apple = reset("google-visual-matching", "place-apple-in-drawer")
    assert apple.instruction() == "open top drawer"
    for _ in range(100):
        apple.step(np.zeros(7))
    assert apple.instruction() == "place apple into top drawer"


@pytest.mark.parametrize(
    ("suite", "entry"), [("widowx", "bridge_orig"), ("google-visual-matching", "fractal20220817_data")]
)
def test_robots_equal_those_of_their_data_sets(made: list[World], suite: str, entry: str) -> None:
    """A policy trained on the one camera of the table of Open X-Embodiment fits."""
    from anyvla.data.formats.rlds.oxe import find_entry

    robot, data = build(Embodiment, dict(Simpler().embodiment(suite))), find_entry(entry)
    assert data is not None
    theirs = data.embodiment
    assert (robot.name, robot.control_hz) == (theirs.name, theirs.control_hz)
    assert (robot.action, robot.proprio) == (theirs.action, theirs.proprio)
    assert set(robot.cameras) <= set(theirs.cameras)


def test_bad_input(made: list[World], assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = Simpler()
    with pytest.raises(ValueError, match="simpler has no suite 'widowxx': did you mean 'widowx'"):
        benchmark.suite("widowxx")
    environment = benchmark.make("widowx")
    with pytest.raises(ValueError, match="simpler/widowx has no task 'carrot-on-plat': did you mean 'carrot-on-plate'"):
        environment.reset("carrot-on-plat", 0)
    with pytest.raises(ValueError, match="simpler/widowx/carrot-on-plate has no start state 24: 0 to 23"):
        environment.reset("carrot-on-plate", 24)
    with pytest.raises(ValueError, match="simpler has no factor 'light'"):
        environment.reset("carrot-on-plate", 0, {"light": "dim"})
    with pytest.raises(RuntimeError, match="reset the environment before using it"):
        environment.observe()
    monkeypatch.setattr(World, "get_language_instruction", lambda self: "put the carrot down")
    with pytest.raises(NotInstalled, match="instruction 'put the carrot down' instead of 'put carrot on plate'"):
        environment.reset("carrot-on-plate", 0)
    (assets / "real_inpainting" / "bridge_real_eval_1.png").unlink()
    with pytest.raises(
        NotInstalled, match=r"needs .*bridge_real_eval_1.png, which is missing: the clone of ManiSkill2"
    ):
        environment.reset("carrot-on-plate", 0)


def test_an_installation_that_cannot_work(made: list[World], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simpler.metadata, "version", lambda name: "2.1.0")
    with pytest.raises(NotInstalled, match="SimplerEnv needs numpy 1"):
        Simpler()
    monkeypatch.setitem(sys.modules, "simpler_env", None)
    with pytest.raises(NotInstalled, match=r"SimplerEnv is not installed .*Python 3.10 or 3.11: git clone"):
        Simpler()
