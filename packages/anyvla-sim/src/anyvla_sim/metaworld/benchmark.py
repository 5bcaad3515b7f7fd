"""Meta-World as a benchmark: stock tasks, held-out tasks, and scenes that only words can tell apart.

Two settings. `fast`, for training and for comparing: views cut to the table, an action lasts two control steps, and
no shadows. `native`, as published: the camera `corner2` where lerobot puts it, 480 pixels, one control step per
action. They are different robots to a policy, and different protocols to a comparison.
"""

from __future__ import annotations

import warnings
from importlib import metadata
from typing import Any, Mapping, Sequence

import numpy as np

from anyvla_sim.base import NotInstalled, Observation, Suite
from anyvla_sim.metaworld.factors import DISTURBANCES, FACTORS, Disturber, Stage
from anyvla_sim.metaworld.suites import NAMES, Scene, scenes, suite
from anyvla_sim.names import suggest
from anyvla_sim.rendering import LARGEST, Renderer, View, broken_driver, find_driver, setting

_EXTRA = 'pip install "anyvla-sim[metaworld]" (Python 3.9 or later)'
CONTROL_HZ = 80
OPEN, CLOSED = 0.85, 0.15  # shares of a joint's range beyond which it counts as open or closed
START = (0.4, 0.6)  # shares of the range at which a half-open joint starts, uniformly
PUBLISHED_CAMERA = (0.75, 0.075, 0.7)  # where lerobot and the papers that follow it put corner2 (m)
LIMITS = (-np.ones(4, np.float32), np.ones(4, np.float32))

_WRIST = View("gripperPOV", (0.1, 0.9, 0.1, 0.9), 96, 96)
VIEWS = {  # of `half-open`
    "corner": View("corner2", (0.38, 0.78, 0.28, 0.68), 96, 96, turned=True, oversample=2),
    "wrist": _WRIST,
}
# Of the stock tasks. Goals float anywhere above the table, so it takes two views to place them; one of them travels
# behind the hand, as the arm itself hides goals from a camera that looks down on the table.
WIDE_VIEWS = {
    "corner": View("corner2", (0.3, 0.8, 0.25, 0.75), 96, 96, turned=True, oversample=2),
    "behind": View("behindGripper", (0.1, 0.9, 0.1, 0.9), 96, 96, oversample=2),
    "wrist": _WRIST,
}
NATIVE_VIEWS = {"corner2": View("corner2", (0.0, 1.0, 0.0, 1.0), 480, 480, turned=True)}
FOR_PEOPLE = (0.2, 0.9, 0.15, 0.85)  # the part of the corner camera that videos show


class MetaWorld:
    """The benchmark `metaworld`."""

    name = "metaworld"
    factors = FACTORS
    disturbances = DISTURBANCES

    def __init__(self, render: str | None = None) -> None:
        """`render`: "fast" | "native"; None: the environment variable ANYVLA_RENDER, else fast.

        Raises NotInstalled without Meta-World, ValueError for another setting.
        """
        self.render = setting(render)
        self.settings: Mapping[str, Any] = {"render": self.render}
        self.repeat = 1 if self.render == "native" else 2  # control steps per action
        self._renderers: dict[tuple[str, str], Renderer] = {}
        _metaworld()

    def suites(self) -> Sequence[str]:
        """Their names."""
        return NAMES

    def suite(self, name: str) -> Suite:
        """Raises ValueError for an unknown name."""
        if name not in NAMES:
            raise ValueError(f"metaworld has no suite {name!r}: {suggest(name, NAMES)}")
        return suite(name, self.repeat)

    def views(self, suite: str) -> Mapping[str, View]:
        """What its cameras show."""
        if self.render == "native":
            return NATIVE_VIEWS
        return VIEWS if suite == "half-open" else WIDE_VIEWS

    def embodiment(self, suite: str) -> Mapping[str, Any]:
        """The Sawyer arm; its name tells the three sets of cameras apart."""
        views = self.views(suite)
        name = {1: "-corner2", 2: "", 3: "-3"}[len(views)]
        return {
            "name": f"sawyer-metaworld{name}",
            "cameras": list(views),
            "control_hz": CONTROL_HZ / self.repeat,
            "proprio": {
                "groups": [
                    {"name": "position", "size": 3, "kind": "position", "unit": "m"},
                    {"name": "gripper", "size": 1, "kind": "gripper", "low": 0, "high": 1, "open": 1},
                ]
            },
            "action": {
                "groups": [
                    {"name": "position", "size": 3, "kind": "position", "mode": "delta", "unit": "cm per control step"},
                    {"name": "gripper", "size": 1, "kind": "gripper", "low": -1, "high": 1, "open": -1},
                ]
            },
        }

    def make(self, suite: str) -> MetaWorldEnvironment:
        """An environment, to be used in the process that made it. All of one benchmark draw with the same renderers."""
        self.suite(suite)
        return MetaWorldEnvironment(self, suite)

    def renderer(self, suite: str, scene: str, model: Any) -> Renderer:
        """The renderer of a scene: uploading meshes and textures costs time and memory, so it happens once."""
        if (suite, scene) not in self._renderers:
            self._renderers[suite, scene] = Renderer(model, self.render)
        return self._renderers[suite, scene]

    def close(self) -> None:
        """Free the renderers."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def versions(self) -> dict[str, str]:
        """What pixels and physics depend on."""
        return {**{name: metadata.version(name) for name in ("metaworld", "mujoco", "numpy")}, "gl": find_driver()}

    def protocol(self, suite: str) -> Mapping[str, Any]:
        """What makes its results comparable with others'."""
        cameras = {name: [view.height, view.width] for name, view in self.views(suite).items()}
        return {"render": self.render, "cameras": cameras, "control_steps_per_action": self.repeat}


class _Simulation:
    """One of Meta-World's simulators, with fresh start states and with experts that see their goal."""

    def __init__(self, scene: Scene, render: str) -> None:
        environments, self.policies = _metaworld()
        self.scene = scene
        self.sim: Any = environments[scene.environment]()
        self.sim._partially_observable = False  # experts read the goal; it is zeroed otherwise, and ...
        self.sim.__dict__.pop("sawyer_observation_space", None)  # ... clipped to zero by a cached space
        self.sim._freeze_rand_vec, self.sim.seeded_rand_vec, self.sim._set_task_called = False, True, True
        self.sim.max_path_length = 2**31  # the horizon is the suite's business
        if not scene.goal_shown:
            self.sim.model.site_rgba[:, 3] = 0
        if render == "native":
            self.sim.model.camera("corner2").pos[:] = PUBLISHED_CAMERA
        self.stage = Stage(self.sim)

    def reset(self, seed: int, factors: Mapping[str, str]) -> None:
        self.sim.seed(seed)
        self.stage.set(factors, seed)
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
        """The position of the joint when it is wholly open."""
        low, high = self.sim.model.joint(self.scene.joint).range
        return float(low if abs(low) > abs(high) else high)

    def opened(self) -> float | None:
        """The share of its range to which the joint is open; None for scenes without one."""
        if self.scene.joint is None:
            return None
        return float(self.sim.data.joint(self.scene.joint).qpos[0]) / self._full()


class MetaWorldEnvironment:
    """A simulated Sawyer arm in the scenes of a suite."""

    limits = LIMITS

    def __init__(self, benchmark: MetaWorld, suite: str) -> None:
        self._benchmark = benchmark
        self._suite = suite
        self._views = benchmark.views(suite)
        self._simulations: dict[str, _Simulation] = {}  # loading a model costs time: one per scene, kept
        self._tasks = {task.name: task for task in benchmark.suite(suite).tasks}
        self._now: _Simulation | None = None
        self._succeeded = False  # by Meta-World's own word, at the last step

    def reset(self, task: str, seed: int, factors: Mapping[str, str] | None = None) -> None:
        """Start an episode in the task's scene. Equal scene, seed and factors: equal start state. Raises ValueError."""
        if task not in self._tasks:
            raise ValueError(f"metaworld/{self._suite} has no task {task!r}: {suggest(task, list(self._tasks))}")
        self._scene = self._tasks[task].scene
        if self._scene not in self._simulations:
            self._simulations[self._scene] = _Simulation(scenes(self._suite)[self._scene], self._benchmark.render)
        self._now = self._simulations[self._scene]
        self._now.reset(seed, factors or {})
        self._disturber = Disturber(self._now.sim)
        self._succeeded = False
        self._seen: np.ndarray = self._now.sim._get_obs()

    @property
    def running(self) -> _Simulation:
        """What is simulated now. Raises RuntimeError before the first reset."""
        if self._now is None:
            raise RuntimeError("reset the environment before using it")
        return self._now

    def draw(self, view: View) -> np.ndarray:
        """A picture of now, uint8 (H, W, 3)."""
        sim = self.running.sim
        renderer = self._benchmark.renderer(self._suite, self._scene, sim.model)
        return renderer.draw(sim.model, sim.data, view, self.running.stage.ornaments)

    def observe(self) -> Observation:
        """The cameras, the end effector's position in meters and the gripper's opening."""
        images = {name: self.draw(view) for name, view in self._views.items()}
        return Observation(images, self._seen[:4].astype(np.float32))

    def step(self, action: np.ndarray) -> dict[str, bool]:
        """Act once. Returns which goals of the scene hold now."""
        sim = self.running.sim
        clipped = self._disturber.alter(np.clip(np.asarray(action, np.float32), *LIMITS))
        for _ in range(self._benchmark.repeat):
            self._seen, _, _, _, info = sim.step(clipped)
            self._succeeded = bool(info["success"])
        return self.goals()

    def goals(self) -> dict[str, bool]:
        """For each task of the scene, whether its goal holds."""
        opened = self.running.opened()
        if opened is None:
            return {name: self._succeeded for name, task in self._tasks.items() if task.scene == self._scene}
        return {f"{self._scene}-open": opened > OPEN, f"{self._scene}-close": opened < CLOSED}

    def expert(self, task: str) -> np.ndarray:
        """What Meta-World's scripted policy for `task` does now. Raises ValueError for a task of another scene."""
        if task not in self._tasks or self._tasks[task].scene != self._scene:
            raise ValueError(f"the scene {self._scene} has no expert for {task!r}")
        now = self.running
        seen = self._seen.copy()  # some experts write into what they are given
        if now.scene.joint is not None or not now.scene.goal_shown:
            _as_expected_by(task, now.sim, seen)
        action = now.policies[f"{task}-v3"]().get_action(seen)
        return np.clip(action, *LIMITS).astype(np.float32)

    def disturb(self, kind: str, seed: int) -> bool:
        """Move the object, or knock the gripper open. False if there is nothing to move. Raises ValueError."""
        done = self._disturber.disturb(kind, seed)
        self.running.update()
        self._seen = self.running.sim._get_obs()
        return done

    def frame(self, height: int, width: int) -> np.ndarray:
        """The corner view, for people."""
        finer = 2 if 2 * max(height, width) <= LARGEST else 1
        return self.draw(View("corner2", FOR_PEOPLE, height, width, turned=True, oversample=finer))


def _as_expected_by(task: str, sim: Any, seen: np.ndarray) -> None:
    """Make the observation what the expert's own environment class gives: each reports another point of the object."""
    if task == "drawer-close":
        seen[6] += 0.05
    elif task == "window-close":
        seen[4:7] = sim._get_site_pos("handleCloseStart")
    elif task == "door-open":
        seen[4] += 0.01  # it aims at the handle's very edge and slips off it now and then


def _metaworld() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Meta-World's environments and scripted policies.

    Raises NotInstalled that names the extra, RendererMissing if MUJOCO_GL asks for a driver that does not load.
    """
    try:
        import mujoco  # noqa: F401  # loads the driver that MUJOCO_GL asks for
    except ModuleNotFoundError as error:
        raise NotInstalled(f"MuJoCo is not installed ({error}); {_EXTRA}") from None
    except Exception as error:  # PyOpenGL raises whatever is at hand
        raise broken_driver(error) from error
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP
    except ImportError as error:
        raise NotInstalled(f"Meta-World is not installed ({error}); {_EXTRA}") from None
    warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")  # of its experts; actions are clipped
    return ALL_V3_ENVIRONMENTS, ENV_POLICY_MAP
