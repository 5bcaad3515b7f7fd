"""SimplerEnv (arXiv 2405.05941): simulated copies of the real evaluations of Bridge and RT-1 policies.

Played as its authors do (simpler_env/evaluation/maniskill2_evaluator.py): every episode in a simulator of its own,
until the time is over, and successful if the goal holds then. The user's installation is used:
docs/benchmark_simpler.md.
"""

from __future__ import annotations

import importlib
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from anyvla_sim.base import NotInstalled, Observation, Suite
from anyvla_sim.names import suggest
from anyvla_sim.simpler.motion import (
    DOWN,
    STICKY,
    StickyGripper,
    axis_angle,
    euler,
    matrix,
    quaternion_xyzw,
    turned,
)
from anyvla_sim.simpler.suites import NAMES, Played, Start, played, suite

_HOW = (
    "in an environment of Python 3.10 or 3.11: git clone --recurse-submodules "
    "https://github.com/simpler-env/SimplerEnv; "
    'pip install "numpy<2" -e SimplerEnv/ManiSkill2_real2sim -e SimplerEnv anyvla-sim; then name its interpreter: '
    "--python PATH"
)
_OF_WIDOWX = {"camera": "3rd_view_camera", "size": [480, 640], "simulated_hz": 500, "control_hz": 5}
_OF_GOOGLE = {"camera": "overhead_camera", "size": [512, 640], "simulated_hz": 513, "control_hz": 3}


class Simpler:
    """The benchmark `simpler`."""

    name = "simpler"
    factors: Mapping[str, Sequence[str]] = {}
    disturbances: Sequence[str] = ()

    def __init__(self, ray_tracing: bool = True) -> None:
        """`ray_tracing`: draw the drawers with ray tracing, as published; False: as everything else, where the driver
        has none. The pixels differ (shadows, above all).

        Raises NotInstalled without SimplerEnv.
        """
        self.ray_tracing = ray_tracing
        self.settings: Mapping[str, Any] = {"ray_tracing": ray_tracing}
        self.modules = _simpler()

    def suites(self) -> Sequence[str]:
        """Their names."""
        return NAMES

    def suite(self, name: str) -> Suite:
        """Raises ValueError for an unknown name."""
        if name not in NAMES:
            raise ValueError(f"simpler has no suite {name!r}: {suggest(name, NAMES)}")
        return suite(name)

    def embodiment(self, suite: str) -> Mapping[str, Any]:
        """The robot of Bridge V2 (`bridge_orig`) or of RT-1 (`fractal20220817_data`), with the one camera there is."""
        at = {"name": "position", "size": 3, "kind": "position", "unit": "m", "frame": "base"}
        opened = {"name": "gripper", "size": 1, "kind": "gripper", "low": 0, "high": 1, "open": 1}
        angles = {
            "name": "rotation",
            "size": 3,
            "kind": "rotation",
            "rotation": "euler",
            "unit": "rad",
            "frame": "base",
        }
        quaternion = {"name": "quaternion", "size": 4, "kind": "rotation", "frame": "base"}
        google = self.suite(suite).name != "widowx"
        return {
            "name": "google_robot" if google else "widowx_bridge",
            "cameras": ["primary"],
            "control_hz": 3 if google else 5,
            "proprio": {"groups": [at, quaternion, {**opened, "open": 0}] if google else [at, angles, opened]},
            "action": {"groups": [{**at, "mode": "delta"}, {**angles, "mode": "delta"}, opened]},
        }

    def make(self, suite: str) -> SimplerEnvironment:
        """An environment, to be used in the process that made it."""
        self.suite(suite)
        return SimplerEnvironment(self, suite)

    def close(self) -> None:
        """Environments share nothing."""

    def versions(self) -> dict[str, str]:
        """What pixels and physics depend on."""
        found = {name: metadata.version(name) for name in ("sapien", "gymnasium", "numpy")}
        folders = {name: Path(str(self.modules[name].__file__)).parent for name in ("simpler_env", "real2sim")}
        return {**found, **{name: _commit(folder) for name, folder in folders.items()}}

    def protocol(self, suite: str) -> Mapping[str, Any]:
        """What makes its results comparable with others'."""
        google = self.suite(suite).name != "widowx"
        own = {"sticky_gripper": STICKY, "ray_tracing": self.ray_tracing, "next_instruction_after": 100}
        return {**(_OF_GOOGLE if google else _OF_WIDOWX), "image": "as drawn", **(own if google else {})}


class SimplerEnvironment:
    """A simulated WidowX or Google robot in the scenes of a suite."""

    def __init__(self, benchmark: Simpler, suite: str) -> None:
        self._benchmark = benchmark
        self._suite = suite
        self._tasks = played(suite)
        self._google = suite != "widowx"
        self._camera = str((_OF_GOOGLE if self._google else _OF_WIDOWX)["camera"])
        self._env: Any = None

    def reset(self, task: str, seed: int, factors: Mapping[str, str] | None = None) -> None:
        """Start an episode in a simulator of its own. Raises ValueError for an unknown task, seed or factor,
        NotInstalled if the installation lacks what the scene is made of."""
        if factors:
            raise ValueError(f"simpler has no factor {next(iter(factors))!r}: it has none")
        if task not in self._tasks:
            raise ValueError(f"simpler/{self._suite} has no task {task!r}: {suggest(task, self._tasks)}")
        one = self._tasks[task]
        if not 0 <= seed < one.count:
            raise ValueError(f"simpler/{self._suite}/{task} has no start state {seed}: 0 to {one.count - 1}")
        self._end()
        start = one.start(seed)
        self._env = self._built(one, start)
        self._env.reset(options=_options(start))
        self._task, self._gripper = task, StickyGripper()
        words = self.instruction()
        if one.task.instructions and words != one.task.instructions[0]:
            self._end()
            raise NotInstalled(
                f"this SimplerEnv tells {words!r} where its authors tell {one.task.instructions[0]!r}: it is another "
                f"version. {_HOW}"
            )

    def _built(self, one: Played, start: Start) -> Any:
        modules, variant = self._benchmark.modules, start.variant
        assets = Path(modules["real2sim"].ASSET_DIR)
        stage = assets / "hab2_bench_assets" / "stages" / f"{variant.scene}.glb"
        overlay = None if start.place.overlay is None else assets / "real_inpainting" / start.place.overlay
        for needed in ([] if variant.scene.startswith("dummy") else [stage]) + ([overlay] if overlay else []):
            if not needed.is_file():
                raise NotInstalled(
                    f"{one.task.name} needs {needed}, which is not there: the clone of ManiSkill2_real2sim is not "
                    f"whole. {_HOW}"
                )
        settings = dict(variant.settings)
        if not self._benchmark.ray_tracing:
            settings.pop("shader_dir", None)
        robot = _OF_GOOGLE if self._google else _OF_WIDOWX
        made = modules["builder"].build_maniskill2_env(
            variant.environment,
            **settings,
            obs_mode="rgbd",
            robot=one.robot,
            sim_freq=robot["simulated_hz"],
            control_mode=modules["builder"].get_robot_control_mode(one.robot, "anyvla"),
            control_freq=robot["control_hz"],
            max_episode_steps=one.task.horizon,
            scene_name=variant.scene,
            camera_cfgs={"add_segmentation": True},
            rgb_overlay_path=None if overlay is None else str(overlay),
        )
        return made.unwrapped  # the wrappers count steps and convert pictures, both of which is done here

    @property
    def running(self) -> Any:
        """The simulator of now. Raises RuntimeError before the first reset."""
        if self._env is None:
            raise RuntimeError("reset the environment before using it")
        return self._env

    def instruction(self) -> str:
        """What the robot is told now. It changes during `place-apple-in-drawer`, after 100 actions."""
        return str(self.running.get_language_instruction())

    def _picture(self) -> np.ndarray:
        seen = self.running.get_obs()["image"][self._camera]["Color"][..., :3]
        return np.clip(seen * 255, 0, 255).astype(np.uint8)  # cut, not rounded: as its RGBDObservationWrapper does

    def observe(self) -> Observation:
        """The camera as drawn, before it is resized to whatever the policy sees; where the tool and the fingers are."""
        env = self.running
        base, tool = env.agent.robot.pose, env.tcp.pose
        to_base = matrix(base.q).T
        position, rotation = to_base @ (np.asarray(tool.p) - np.asarray(base.p)), to_base @ matrix(tool.q)
        closed = float(np.clip(env.agent.get_gripper_closedness(), 0, 1))
        if self._google:  # as base_pose_tool_reached and gripper_closed of RT-1's data
            proprio = [*position, *quaternion_xyzw(rotation), closed]
        else:  # as the state of Bridge's
            proprio = [*position, *euler(rotation @ DOWN.T), 1 - closed]
        return Observation({"primary": self._picture()}, np.asarray(proprio, np.float32))

    def step(self, action: np.ndarray) -> dict[str, bool]:
        """Act once: meters, roll-pitch-yaw in rad, how far the gripper is to be open (1 open, 0 closed).

        Returns whether the goal holds now; the authors count it after the last action. Raises ValueError for an action
        that is not (7,).
        """
        wanted = np.asarray(action, np.float64)
        if wanted.shape != (7,):
            raise ValueError(f"an action of SimplerEnv has shape (7,), not {wanted.shape}")
        opened = float(wanted[6])
        gripper = self._gripper(opened) if self._google else (1.0 if opened > 0.5 else -1.0)
        command = np.concatenate([wanted[:3], axis_angle(wanted[3:6]), [gripper]])
        env = self.running
        drawn, env._obs_mode = env._obs_mode, "none"  # its step draws, which costs more than all else
        try:
            info = env.step(command)[-1]
        finally:
            env._obs_mode = drawn
        return {self._task: bool(info["success"])}

    def frame(self, height: int, width: int) -> np.ndarray:
        """The robot's camera, for people."""
        cv2 = importlib.import_module("cv2")  # the simulator has it
        return np.asarray(cv2.resize(self._picture(), (width, height), interpolation=cv2.INTER_AREA))

    def close(self) -> None:
        """Free the simulator."""
        self._end()

    def _end(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None


def _options(start: Start) -> dict[str, Any]:
    """The start state, as the simulator's reset takes it."""
    place = start.place
    objects: dict[str, Any] = {} if place.episode is None else {"episode_id": place.episode}
    if place.object is not None:
        objects["init_xy"] = np.array(place.object)
    robot = {"init_xy": np.array(place.robot), "init_rot_quat": turned(place.yaw)}
    return {"robot_init_options": robot, "obj_init_options": objects}


def _simpler() -> Mapping[str, Any]:
    """The modules of SimplerEnv that are used. Raises NotInstalled that says how to install it."""
    try:
        names = {"simpler_env": "simpler_env", "builder": "simpler_env.utils.env.env_builder"}
        names["real2sim"] = "mani_skill2_real2sim"
        found = {key: importlib.import_module(name) for key, name in names.items()}
    except ImportError as error:
        raise NotInstalled(f"SimplerEnv is not installed ({error}): {_HOW}") from None
    if int(metadata.version("numpy").split(".")[0]) > 1:
        raise NotInstalled(f"SimplerEnv needs numpy 1 (its inverse kinematics fails with 2): {_HOW}")
    return found


def _commit(folder: Path) -> str:
    """The git commit that a folder is of; "unknown" if it is not of a checkout."""
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
