"""Meta-World (arXiv 1910.10897) as a benchmark: scenes that only words can tell apart.

On the stock tasks the start state gives the task away (a closed drawer can only be opened), so a policy that ignores
its instruction scores 100 %. In the suite `half-open` the drawer and the window start half open, both instructions of
a pair share one scene and its start states, goal markers are hidden, and success counts at the goal that was told.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from anyvla.config import build
from anyvla.data.episode import Embodiment
from anyvla.evaluation.environments.base import Suite, Task
from anyvla.evaluation.environments.rendering import LARGEST, Renderer, View, broken_driver, find_driver, setting
from anyvla.registry import nearest
from anyvla.types import Observation

_EXTRA = 'pip install "anyvla[metaworld]"'
ACTION_REPEAT = 2  # simulator control steps (80 Hz) per action
OPEN, CLOSED = 0.85, 0.15  # shares of a joint's range beyond which it counts as open or closed
START = (0.4, 0.6)  # shares of the range at which a half-open joint starts, uniformly
VIEWS = {
    "corner": View("corner2", (0.38, 0.78, 0.28, 0.68), 96, 96, turned=True, oversample=2),
    "wrist": View("gripperPOV", (0.1, 0.9, 0.1, 0.9), 96, 96),
}
FOR_PEOPLE = (0.2, 0.9, 0.15, 0.85)  # the part of the corner camera that videos show

EMBODIMENT = build(
    Embodiment,
    {
        "name": "sawyer-metaworld",
        "cameras": list(VIEWS),
        "control_hz": 80 / ACTION_REPEAT,
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
    },
)


@dataclass(frozen=True)
class Scene:
    """One of Meta-World's environments; all tasks of the scene share its start states."""

    environment: str  # Meta-World's name
    joint: str | None = None  # starts half open; its range has one end at 0, closed. None: the stock start state


SCENES = {
    "drawer": Scene("drawer-open-v3", "goal_slidey"),
    "window": Scene("window-open-v3", "window_slide"),
    "door": Scene("door-open-v3"),
    "button": Scene("button-press-topdown-v3"),
}

HALF_OPEN = Suite(
    "half-open",
    (
        Task(
            "drawer-open",
            "drawer",
            (
                "open the drawer",
                "pull the drawer open",
                "slide the drawer out",
                "pull out the drawer",
                "draw the drawer towards you",
            ),
        ),
        Task(
            "drawer-close",
            "drawer",
            (
                "close the drawer",
                "push the drawer shut",
                "slide the drawer in",
                "push in the drawer",
                "shut the drawer",
            ),
        ),
        Task(
            "window-open",
            "window",
            (
                "open the window",
                "slide the window open",
                "push the window open",
                "open up the window",
                "move the window to open",
            ),
        ),
        Task(
            "window-close",
            "window",
            (
                "close the window",
                "slide the window shut",
                "push the window closed",
                "shut the window",
                "move the window to close",
            ),
        ),
        Task(
            "door-open",
            "door",
            ("open the door", "pull the door open", "swing the door open", "open up the door", "pull on the door"),
        ),
        Task(
            "button-press-topdown",
            "button",
            (
                "press the button",
                "push the button down",
                "press down on the button",
                "hit the button from above",
                "press the red button",
            ),
        ),
    ),
    horizon=100,
)


class MetaWorld:
    """The benchmark `metaworld`."""

    name = "metaworld"
    embodiment = EMBODIMENT

    def __init__(self, render: str | None = None) -> None:
        """`render`: "fast" | "native" (see `rendering`); None: ANYVLA_RENDER, else fast.

        Raises ImportError without Meta-World, ValueError for another setting.
        """
        self.render = setting(render)
        self._renderers: dict[str, Renderer] = {}
        _metaworld()

    def suites(self) -> Mapping[str, Suite]:
        """The suites by name."""
        return {HALF_OPEN.name: HALF_OPEN}

    def make(self) -> MetaWorldEnvironment:
        """An environment, to be used in the process that made it. All of one benchmark draw with the same renderers."""
        return MetaWorldEnvironment(self)

    def renderer(self, scene: str, model: Any) -> Renderer:
        """The renderer of a scene: uploading meshes and textures costs time and memory, so it happens once."""
        if scene not in self._renderers:
            self._renderers[scene] = Renderer(model, self.render)
        return self._renderers[scene]

    def __getstate__(self) -> dict[str, Any]:
        return {"render": self.render, "_renderers": {}}  # a worker draws under the same setting, by itself

    def close(self) -> None:
        """Free the renderers."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def versions(self) -> dict[str, str]:
        """What pixels and physics depend on."""
        found = {name: metadata.version(name) for name in ("metaworld", "mujoco", "numpy")}
        return found | {"gl": find_driver(), "render": self.render}


class _Simulation:
    """One of Meta-World's simulators, set up so that only words tell what to do."""

    def __init__(self, scene: Scene) -> None:
        environments, policies = _metaworld()
        self.scene = scene
        self.sim: Any = environments[scene.environment]()
        self.sim._partially_observable = False  # experts read the goal; it is zeroed otherwise, and ...
        self.sim.__dict__.pop("sawyer_observation_space", None)  # ... clipped to zero by a cached space
        self.sim._freeze_rand_vec, self.sim.seeded_rand_vec, self.sim._set_task_called = False, True, True
        self.sim.max_path_length = 2**31  # the horizon is the suite's business
        self.sim.model.site_rgba[:, 3] = 0  # goal markers would give the task away
        self.policies = policies

    def reset(self, seed: int) -> None:
        self.sim.seed(seed)
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
    """A simulated Sawyer arm in the scenes of the suites."""

    def __init__(self, benchmark: MetaWorld) -> None:
        self._benchmark = benchmark
        self._simulations: dict[str, _Simulation] = {}  # loading a model costs time: one per scene, kept
        self._tasks = {task.name: task for task in HALF_OPEN.tasks}
        self._now: _Simulation | None = None
        self._succeeded = False  # by Meta-World's own word, at the last step

    def reset(self, task: str, seed: int) -> None:
        """Start an episode in the task's scene. Equal scene and seed: equal start state. Raises ValueError."""
        if task not in self._tasks:
            raise ValueError(f"metaworld has no task {task!r}: {nearest(task, list(self._tasks))}")
        self._scene = self._tasks[task].scene
        if self._scene not in self._simulations:
            self._simulations[self._scene] = _Simulation(SCENES[self._scene])
        self._now = self._simulations[self._scene]
        self._now.reset(seed)
        self._succeeded = False
        self._seen: Float64[np.ndarray, "O"] = self._now.sim._get_obs()

    @property
    def _running(self) -> _Simulation:
        if self._now is None:
            raise RuntimeError("reset the environment before using it")
        return self._now

    def _draw(self, view: View) -> UInt8[np.ndarray, "H W 3"]:
        sim = self._running.sim
        return self._benchmark.renderer(self._scene, sim.model).draw(sim.model, sim.data, view)

    def observe(self) -> Observation:
        """Both cameras, the end effector's position in metres and the gripper's opening."""
        images = {name: self._draw(view) for name, view in VIEWS.items()}
        return Observation(images, self._seen[:4].astype(np.float32))

    def step(self, action: Float32[np.ndarray, "A"]) -> dict[str, bool]:
        """Act once. Returns which goals of the scene hold now."""
        clipped = np.clip(np.asarray(action, np.float32), -1, 1)
        for _ in range(ACTION_REPEAT):
            self._seen, _, _, _, info = self._running.sim.step(clipped)
            self._succeeded = bool(info["success"])
        return self.goals()

    def goals(self) -> dict[str, bool]:
        """For each task of the scene, whether its goal holds."""
        opened = self._running.opened()
        if opened is None:
            return {name: self._succeeded for name, task in self._tasks.items() if task.scene == self._scene}
        return {f"{self._scene}-open": opened > OPEN, f"{self._scene}-close": opened < CLOSED}

    def expert(self, task: str) -> Float32[np.ndarray, "A"]:
        """What Meta-World's scripted policy for `task` does now. Raises ValueError for a task of another scene."""
        if task not in self._tasks or self._tasks[task].scene != self._scene:
            raise ValueError(f"the scene {self._scene} has no expert for {task!r}")
        now = self._running
        action = now.policies[f"{task}-v3"]().get_action(_as_expected_by(task, now.sim, self._seen))
        return np.clip(action, -1, 1).astype(np.float32)

    def frame(self, height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
        """The corner view, for people."""
        finer = 2 if 2 * max(height, width) <= LARGEST else 1
        return self._draw(View("corner2", FOR_PEOPLE, height, width, turned=True, oversample=finer))


def _as_expected_by(task: str, sim: Any, seen: Float64[np.ndarray, "O"]) -> Float64[np.ndarray, "O"]:
    """The observation as the expert's own environment class gives it: each reports another point of the object."""
    seen = seen.copy()  # some experts write into what they are given
    if task == "drawer-close":
        seen[6] += 0.05
    elif task == "window-close":
        seen[4:7] = sim._get_site_pos("handleCloseStart")
    elif task == "door-open":
        seen[4] += 0.01  # it aims at the handle's very edge and slips off it now and then
    return seen


def _metaworld() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Meta-World's environments and scripted policies.

    Raises ImportError that names the extra, RendererMissing if MUJOCO_GL asks for a driver that does not load.
    """
    try:
        import mujoco  # noqa: F401  # loads the driver that MUJOCO_GL asks for
    except ModuleNotFoundError as error:
        raise ImportError(f"MuJoCo is not installed ({error}); {_EXTRA}") from None
    except Exception as error:  # PyOpenGL raises whatever is at hand
        raise broken_driver(error) from error
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP
    except ImportError as error:
        raise ImportError(f"Meta-World is not installed ({error}); {_EXTRA}") from None
    warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")  # of its experts; actions are clipped
    return ALL_V3_ENVIRONMENTS, ENV_POLICY_MAP
