"""The environments of Meta-World: one of its simulators per scene, start states by seed, goals and experts."""

from __future__ import annotations

import warnings
from typing import Any, Mapping, Protocol

import numpy as np

from anyvla_sim.base import Benchmark, Environment, NotInstalled, Observation
from anyvla_sim.metaworld import side_arm
from anyvla_sim.metaworld.factors import MetaWorldDisturber, MetaWorldFactors, TableFactors
from anyvla_sim.metaworld.moving import ObjectMover
from anyvla_sim.metaworld.suites import TABLE, SceneConfig, get_scenes
from anyvla_sim.metaworld.table import make_table
from anyvla_sim.names import check_name
from anyvla_sim.projection import Projection
from anyvla_sim.rendering import LARGEST, Ornament, Renderer, View, explain_driver_error

_EXTRA = 'pip install "anyvla-sim[metaworld]" (Python 3.9 or later)'
OPEN, CLOSED = 0.85, 0.15  # fractions of a joint's range beyond which it counts as open or closed
START = (0.4, 0.6)  # fractions of its range between which a half-open joint starts, uniformly sampled
PUBLISHED_CAMERA = (0.75, 0.075, 0.7)  # position of corner2 in lerobot and the papers that follow it (m)
LIMITS = (-np.ones(4, np.float32), np.ones(4, np.float32))

VIDEO_BOX = (0.2, 0.9, 0.15, 0.85)  # the part of the corner camera's image that videos show
CLOSE_UP = (0.54, 0.5, 0.48)  # the part where objects are: its middle and its height


class Host(Benchmark, Protocol):
    """The benchmark of an environment, which has its settings and shares renderers."""

    render: str
    repeat: int  # control steps per action

    def views(self, suite: str) -> Mapping[str, View]:
        """Return the view of each camera of a suite."""

    def renderer(self, scene: SceneConfig, model: Any) -> Renderer:
        """Return the renderer of a scene, which is made at the first call."""


class Simulation:
    """One of Meta-World's simulators, with a start state for each seed and with experts that observe their goal."""

    def __init__(self, scene: SceneConfig, render: str) -> None:
        environments, self.policies = import_metaworld()
        self.scene = scene
        self.sim: Any = make_table() if scene.environment == TABLE else environments[scene.environment]()
        # Experts read the goal from the observation, which zeroes it by default and clips it to a cached space.
        self.sim._partially_observable = False
        self.sim.__dict__.pop("sawyer_observation_space", None)
        self.sim._freeze_rand_vec, self.sim.seeded_rand_vec, self.sim._set_task_called = False, True, True
        self.sim.max_path_length = 2**31  # the suite has the horizon
        if not scene.goal_shown:
            self.sim.model.site_rgba[:, 3] = 0
        if render == "native":
            self.sim.model.camera("corner2").pos[:] = PUBLISHED_CAMERA
        self.factors = (TableFactors if scene.environment == TABLE else MetaWorldFactors)(self.sim)
        self._mover: ObjectMover | None = None

    @property
    def mover(self) -> ObjectMover:
        """The mover that shifts the object on request in this episode."""
        if self._mover is None:
            self._mover = ObjectMover(self.sim)
        return self._mover

    def reset(self, seed: int, factors: Mapping[str, str]) -> None:
        if self._mover is not None:
            self._mover.undo()
            self._mover = None
        self.sim.seed(seed)
        self.factors.reset()
        self.factors.apply(factors, seed)
        self.sim.reset()
        if self.scene.joint is not None:
            share = np.random.default_rng(seed).uniform(*START)
            joint = self.sim.data.joint(self.scene.joint)
            joint.qpos, joint.qvel = share * self._full(), 0.0
        self.update()

    def update(self) -> None:
        import mujoco

        mujoco.mj_forward(self.sim.model, self.sim.data)

    def _full(self) -> float:
        """Return the position of the joint when it is fully open."""
        low, high = self.sim.model.joint(self.scene.joint).range
        return float(low if abs(low) > abs(high) else high)

    def opened(self) -> float | None:
        """Return how far the joint is open as a fraction of its range; None for scenes without a joint."""
        if self.scene.joint is None:
            return None
        return float(self.sim.data.joint(self.scene.joint).qpos[0]) / self._full()


class MetaWorldEnvironment(Environment):
    """A simulated Sawyer arm in the scenes of a suite."""

    limits = LIMITS

    def __init__(self, benchmark: Host, suite: str) -> None:
        self._benchmark, self._suite = benchmark, suite
        self._views = benchmark.views(suite)
        self._simulations: dict[SceneConfig, Simulation] = {}  # loading a model is slow
        self._tasks = {task.name: task for task in benchmark.suite(suite).tasks}
        self._simulation: Simulation | None = None
        self._close_up = close_up_view(1, 1)  # the last one

    def reset(self, task: str, seed: int, factors: Mapping[str, str] | None = None) -> None:
        check_name(task, self._tasks, f"metaworld/{self._suite} has no task")
        self._scene = self._tasks[task].scene
        config = get_scenes(self._suite)[self._scene]
        if config not in self._simulations:
            self._simulations[config] = Simulation(config, self._benchmark.render)
        self._simulation = self._simulations[config]
        self._simulation.reset(seed, factors or {})
        self._disturber = MetaWorldDisturber(self._simulation.sim)
        self._succeeded = False  # Meta-World's own success flag of the last step
        self._seen: np.ndarray = self._simulation.sim._get_obs()

    @property
    def simulation(self) -> Simulation:
        """The simulator of the current scene. Raises RuntimeError before the first reset."""
        if self._simulation is None:
            raise RuntimeError("reset the environment before using it")
        return self._simulation

    def draw(self, view: View) -> np.ndarray:
        """Return a picture of the current state, uint8 (H, W, 3)."""
        sim = self.simulation.sim
        renderer = self._benchmark.renderer(self.simulation.scene, sim.model)
        return renderer.draw(sim.model, sim.data, view, self.ornaments())

    def ornaments(self) -> list[Ornament]:
        """Return the shapes that are drawn into the images but are no part of the physics."""
        return self.simulation.factors.ornaments

    def observe(self) -> Observation:
        """Return the images, the position of the end effector (m) and the opening of the gripper."""
        images = {name: self.draw(view) for name, view in self._views.items()}
        return Observation(images, self._seen[:4].astype(np.float32))

    def step(self, action: np.ndarray) -> dict[str, bool]:
        sim = self.simulation.sim
        clipped = self._disturber.alter(np.clip(np.asarray(action, np.float32), *LIMITS))
        for _ in range(self._benchmark.repeat):
            self._seen, _, _, _, info = sim.step(clipped)
            self._succeeded = bool(info["success"])
        return self.goals()

    def goals(self) -> dict[str, bool]:
        """Return for each task of the scene whether its goal holds."""
        opened = self.simulation.opened()
        if opened is None:
            return {name: self._succeeded for name, task in self._tasks.items() if task.scene == self._scene}
        return {f"{self._scene}-open": opened > OPEN, f"{self._scene}-close": opened < CLOSED}

    def expert(self, task: str) -> np.ndarray:
        """Return the action of Meta-World's scripted policy. Raises ValueError for a task of another scene."""
        self.check_expert(task)
        now = self.simulation
        seen = self._seen.copy()  # some experts write into their argument
        if now.scene.joint is not None or not now.scene.goal_shown:
            _adjust_for_expert(task, now.sim, seen)
        action = now.policies[f"{task}-v3"]().get_action(seen)
        return np.clip(action, *LIMITS).astype(np.float32)

    def check_expert(self, task: str) -> None:
        """Raise ValueError for a task of another scene."""
        if task not in self._tasks or self._tasks[task].scene != self._scene:
            raise ValueError(f"the scene {self._scene} has no expert for {task!r}")

    def disturb(self, kind: str, seed: int) -> bool:
        done = self._disturber.disturb(kind, seed)
        self.simulation.update()
        self._seen = self.simulation.sim._get_obs()
        return done

    def frame(self, height: int, width: int) -> np.ndarray:
        return self.draw(_view_from_corner(VIDEO_BOX, height, width))

    def close_up(self, height: int, width: int) -> np.ndarray:
        self._close_up = close_up_view(height, width)
        return self.draw(self._close_up)

    def foresee(self, actions: np.ndarray) -> np.ndarray:
        sim = self.simulation.sim
        moves = np.clip(np.asarray(actions, np.float32), *LIMITS)[:, :3] * sim.action_scale * self._benchmark.repeat
        path = sim.tcp_center + np.concatenate([np.zeros((1, 3)), np.cumsum(moves, 0)])
        return self._projection().project(path).astype(np.float32)

    def locate(self) -> np.ndarray | None:
        position = self.simulation.mover.locate()
        return None if position is None else self._projection().project(position[None])[0].astype(np.float32)

    def move(self, shift: np.ndarray) -> bool:
        position = self.simulation.mover.locate()
        if position is None:
            return False
        projection = self._projection()
        at = projection.project(position[None])[0] + shift
        moved = self.simulation.mover.move((projection.unproject(at, position[2]) - position)[:2])
        self.simulation.update()
        self._seen = self.simulation.sim._get_obs()
        return moved

    def _projection(self) -> Projection:
        sim = self.simulation.sim
        return Projection(sim.model, sim.data, self._close_up)


def close_up_view(height: int, width: int) -> View:
    """Return the view of the part of the scene where objects are, in any shape."""
    middle, row, size = CLOSE_UP
    across = size * width / height / 2
    return _view_from_corner((middle - across, middle + across, row - size / 2, row + size / 2), height, width)


def _view_from_corner(box: tuple[float, float, float, float], height: int, width: int) -> View:
    oversample = 2 if 2 * max(height, width) <= LARGEST else 1
    return View("corner2", box, height, width, turned=True, oversample=oversample)


class SideArmEnvironment(MetaWorldEnvironment):
    """The same scenes for the robot `side-arm`."""

    limits = side_arm.LIMITS

    def observe(self) -> Observation:
        seen = super().observe()
        return Observation(seen.images, side_arm.order_proprio(seen.proprio))

    def step(self, action: np.ndarray) -> dict[str, bool]:
        return super().step(side_arm.to_stock(np.asarray(action, np.float32)))

    def expert(self, task: str) -> np.ndarray:
        return side_arm.from_stock(super().expert(task))

    def foresee(self, actions: np.ndarray) -> np.ndarray:
        return super().foresee(np.stack([side_arm.to_stock(np.asarray(a, np.float32)) for a in actions]))


def _adjust_for_expert(task: str, sim: Any, seen: np.ndarray) -> None:
    """Change the observation to that of the expert's own environment, which reports another point of the object."""
    if task == "drawer-close":
        seen[6] += 0.05
    elif task == "window-close":
        seen[4:7] = sim._get_site_pos("handleCloseStart")
    elif task == "door-open":
        seen[4] += 0.01  # the expert aims at the edge of the handle and sometimes slips off


def import_metaworld() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return Meta-World's environments and scripted policies by name.

    Raises NotInstalled with the command to install it, RendererMissing if MUJOCO_GL names a driver that does not load.
    """
    try:
        import mujoco  # noqa: F401  # loads the driver that MUJOCO_GL asks for
    except ModuleNotFoundError as error:
        raise NotInstalled(f"MuJoCo is not installed ({error}); {_EXTRA}") from None
    except Exception as error:  # PyOpenGL raises errors of many types
        raise explain_driver_error(error) from error
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP
    except ImportError as error:
        raise NotInstalled(f"Meta-World is not installed ({error}); {_EXTRA}") from None
    warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")  # from its experts; actions are clipped
    return ALL_V3_ENVIRONMENTS, ENV_POLICY_MAP
