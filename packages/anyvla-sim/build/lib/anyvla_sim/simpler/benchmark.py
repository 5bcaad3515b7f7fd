"""SimplerEnv (arXiv 2405.05941): simulated copies of the real evaluations of Bridge and RT-1 policies.

The protocol is the official one (simpler_env/evaluation/maniskill2_evaluator.py): every episode has a new simulator,
lasts until its horizon, and succeeds if the goal holds then. It uses the user's installation
(docs/benchmark_simpler.md).
"""

from __future__ import annotations

import importlib
from importlib import metadata
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from anyvla_sim.base import Benchmark, Environment, NotInstalled, Observation, Suite
from anyvla_sim.checkouts import read_git_commit
from anyvla_sim.names import check_factors, check_name
from anyvla_sim.simpler.motion import (
    DOWN,
    STICKY,
    StickyGripper,
    euler_to_axis_angle,
    matrix_to_euler,
    matrix_to_quaternion,
    quaternion_to_matrix,
    yaw_to_quaternion,
)
from anyvla_sim.simpler.suites import NAMES, Placement, TaskStarts, Variant, load_tasks, make_suite

_HOW = (
    "in an environment of Python 3.10 or 3.11: git clone --recurse-submodules "
    "https://github.com/simpler-env/SimplerEnv; "
    'pip install "numpy<2" -e SimplerEnv/ManiSkill2_real2sim -e SimplerEnv anyvla-sim; then name its interpreter: '
    "--python PATH"
)
_WIDOWX = {"camera": "3rd_view_camera", "size": [480, 640], "simulated_hz": 500, "control_hz": 5}
_GOOGLE = {"camera": "overhead_camera", "size": [512, 640], "simulated_hz": 513, "control_hz": 3}


class Simpler(Benchmark):
    """The benchmark `simpler`."""

    name = "simpler"

    def __init__(self, ray_tracing: bool = True) -> None:
        """With `ray_tracing`, drawers are rendered as published; False is for drivers without it. The pixels differ,
        most of all in shadows.

        Raises NotInstalled without SimplerEnv.
        """
        self.ray_tracing = ray_tracing
        self.settings: Mapping[str, Any] = {"ray_tracing": ray_tracing}
        self.modules = _import_simpler()

    def suites(self) -> Sequence[str]:
        return NAMES

    def suite(self, name: str) -> Suite:
        check_name(name, NAMES, "simpler has no suite")
        return make_suite(name)

    def embodiment(self, suite: str) -> Mapping[str, Any]:
        """Return the robot of Bridge V2 (`bridge_orig`) or of RT-1 (`fractal20220817_data`), with its one camera."""
        move = {"name": "position", "size": 3, "kind": "position", "unit": "m", "frame": "base"}
        turn = {"name": "rotation", "size": 3, "kind": "rotation", "rotation": "euler", "unit": "rad", "frame": "base"}
        grip = {"name": "gripper", "size": 1, "kind": "gripper", "low": 0, "high": 1, "open": 1}
        quaternion = {"name": "quaternion", "size": 4, "kind": "rotation", "frame": "base"}
        google = self.suite(suite).name != "widowx"
        return {
            "name": "google_robot" if google else "widowx_bridge",
            "cameras": ["primary"],
            "control_hz": (_GOOGLE if google else _WIDOWX)["control_hz"],
            "proprio": {"groups": [move, quaternion, {**grip, "open": 0}] if google else [move, turn, grip]},
            "action": {"groups": [{**move, "mode": "delta"}, {**turn, "mode": "delta"}, grip]},
        }

    def make(self, suite: str) -> SimplerEnvironment:
        self.suite(suite)
        return SimplerEnvironment(self, suite)

    def versions(self) -> dict[str, str]:
        found = {name: metadata.version(name) for name in ("sapien", "gymnasium", "numpy")}
        folders = {name: Path(str(self.modules[name].__file__)).parent for name in ("simpler_env", "real2sim")}
        return {**found, **{name: read_git_commit(folder) for name, folder in folders.items()}}

    def protocol(self, suite: str) -> Mapping[str, Any]:
        google = self.suite(suite).name != "widowx"
        own = {"sticky_gripper": STICKY, "ray_tracing": self.ray_tracing, "next_instruction_after": 100}
        return {**(_GOOGLE if google else _WIDOWX), "image": "as drawn", **(own if google else {})}


class SimplerEnvironment(Environment):
    """A simulated WidowX or Google robot in the scenes of a suite."""

    def __init__(self, benchmark: Simpler, suite: str) -> None:
        self._benchmark, self._suite = benchmark, suite
        self._tasks = load_tasks(suite)
        self._google = suite != "widowx"
        self._robot: Mapping[str, Any] = _GOOGLE if self._google else _WIDOWX
        self._env: Any = None

    def reset(self, task: str, seed: int, factors: Mapping[str, str] | None = None) -> None:
        """Start an episode in a new simulator.

        Raises ValueError for an unknown task, seed or factor, NotInstalled if a file of the scene is missing.
        """
        check_factors("simpler", {}, factors or {})
        check_name(task, self._tasks, f"simpler/{self._suite} has no task")
        one = self._tasks[task]
        if not 0 <= seed < one.count:
            raise ValueError(f"simpler/{self._suite}/{task} has no start state {seed}: 0 to {one.count - 1}")
        self.close()
        variant, place = one.start(seed)
        self._env = self._build(one, variant, place)
        self._env.reset(options=_make_reset_options(place))
        self._task, self._gripper = task, StickyGripper()
        instruction = self.instruction()
        if one.instruction not in (None, instruction):
            self.close()
            raise NotInstalled(
                f"this SimplerEnv has the instruction {instruction!r} instead of {one.instruction!r}: it is another "
                f"version. {_HOW}"
            )

    def _build(self, one: TaskStarts, variant: Variant, place: Placement) -> Any:
        modules = self._benchmark.modules
        assets = Path(modules["real2sim"].ASSET_DIR)
        stage = assets / "hab2_bench_assets" / "stages" / f"{variant.scene}.glb"
        overlay = None if place.overlay is None else assets / "real_inpainting" / place.overlay
        for needed in ([] if variant.scene.startswith("dummy") else [stage]) + ([overlay] if overlay else []):
            if not needed.is_file():
                raise NotInstalled(
                    f"{one.name} needs {needed}, which is missing: the clone of ManiSkill2_real2sim is incomplete. "
                    f"{_HOW}"
                )
        settings = dict(variant.settings)
        if not self._benchmark.ray_tracing:
            settings.pop("shader_dir", None)
        made = modules["builder"].build_maniskill2_env(
            variant.environment,
            **settings,
            obs_mode="rgbd",
            robot=one.robot,
            sim_freq=self._robot["simulated_hz"],
            control_mode=modules["builder"].get_robot_control_mode(one.robot, "anyvla"),
            control_freq=self._robot["control_hz"],
            max_episode_steps=one.horizon,
            scene_name=variant.scene,
            camera_cfgs={"add_segmentation": True},
            rgb_overlay_path=None if overlay is None else str(overlay),
        )
        return made.unwrapped  # without wrappers that count steps and convert pictures

    @property
    def simulation(self) -> Any:
        """The simulator of the current episode. Raises RuntimeError before the first reset."""
        if self._env is None:
            raise RuntimeError("reset the environment before using it")
        return self._env

    def instruction(self) -> str:
        """Return the current instruction, which changes during `place-apple-in-drawer`, after 100 actions."""
        return str(self.simulation.get_language_instruction())

    def _draw(self) -> np.ndarray:
        pixels = self.simulation.get_obs()["image"][self._robot["camera"]]["Color"][..., :3]
        return np.clip(pixels * 255, 0, 255).astype(np.uint8)  # truncated, as by its RGBDObservationWrapper

    def observe(self) -> Observation:
        """Return the image as rendered, before any resizing, and the pose of the tool and the gripper's opening."""
        env = self.simulation
        base, tool = env.agent.robot.pose, env.tcp.pose
        to_base = quaternion_to_matrix(base.q).T
        position, rotation = to_base @ (np.asarray(tool.p) - np.asarray(base.p)), to_base @ quaternion_to_matrix(tool.q)
        closed = float(np.clip(env.agent.get_gripper_closedness(), 0, 1))
        if self._google:  # as base_pose_tool_reached and gripper_closed of RT-1's data
            proprio = [*position, *matrix_to_quaternion(rotation), closed]
        else:  # as the state of Bridge's
            proprio = [*position, *matrix_to_euler(rotation @ DOWN.T), 1 - closed]
        return Observation({"primary": self._draw()}, np.asarray(proprio, np.float32))

    def step(self, action: np.ndarray) -> dict[str, bool]:
        """Execute an action (7,): meters, roll-pitch-yaw in rad, opening of the gripper (1 open, 0 closed).

        Return whether the goal holds; the authors judge it after the last action. Raises ValueError for another shape.
        """
        wanted = np.asarray(action, np.float64)
        if wanted.shape != (7,):
            raise ValueError(f"an action of SimplerEnv has shape (7,), not {wanted.shape}")
        opened = float(wanted[6])
        gripper = self._gripper(opened) if self._google else (1.0 if opened > 0.5 else -1.0)
        command = np.concatenate([wanted[:3], euler_to_axis_angle(wanted[3:6]), [gripper]])
        env = self.simulation
        drawn, env._obs_mode = env._obs_mode, "none"  # its step renders, which is slower than everything else
        try:
            info = env.step(command)[-1]
        finally:
            env._obs_mode = drawn
        return {self._task: bool(info["success"])}

    def frame(self, height: int, width: int) -> np.ndarray:
        cv2 = importlib.import_module("cv2")  # a dependency of the simulator
        return np.asarray(cv2.resize(self._draw(), (width, height), interpolation=cv2.INTER_AREA))

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None


def _make_reset_options(place: Placement) -> dict[str, Any]:
    """Return the start positions as options of the simulator's reset."""
    objects: dict[str, Any] = {} if place.episode is None else {"episode_id": place.episode}
    if place.object is not None:
        objects["init_xy"] = np.array(place.object)
    robot = {"init_xy": np.array(place.robot), "init_rot_quat": yaw_to_quaternion(place.yaw)}
    return {"robot_init_options": robot, "obj_init_options": objects}


def _import_simpler() -> Mapping[str, Any]:
    """Return the used modules of SimplerEnv. Raises NotInstalled with the commands to install it."""
    try:
        names = {"simpler_env": "simpler_env", "builder": "simpler_env.utils.env.env_builder"}
        names["real2sim"] = "mani_skill2_real2sim"
        found = {key: importlib.import_module(name) for key, name in names.items()}
    except ImportError as error:
        raise NotInstalled(f"SimplerEnv is not installed ({error}): {_HOW}") from None
    if int(metadata.version("numpy").split(".")[0]) > 1:
        raise NotInstalled(f"SimplerEnv needs numpy 1 (its inverse kinematics fails with 2): {_HOW}")
    return found
