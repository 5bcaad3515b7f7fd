"""The benchmark `metaworld`: a Sawyer arm told in words what to do, two cameras, Meta-World's own experts.

Its suite `half-open` has six tasks in four scenes; the two tasks of the drawer and of the window start from the same
states, so that only the words decide. The scenes are in `metaworld_scenes.py`, how pictures are made in `rendering.py`.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata

import numpy as np
from jaxtyping import Float32, UInt8

from anyvla.actions.space import ActionSpace, Group
from anyvla.data.episode import Embodiment
from anyvla.evaluation.environments.base import Suite, Task
from anyvla.evaluation.environments.metaworld_scenes import ACTION_REPEAT, SCENES, Simulation, needs_metaworld
from anyvla.evaluation.environments.rendering import Renderer, View, find_driver, setting
from anyvla.registry import nearest
from anyvla.types import Observation

SIZE = 96  # pixels a side of what the policy sees
CONTROL_HZ = 80  # Meta-World's

HALF_OPEN = Suite(
    name="half-open",
    horizon=100,
    tasks=(
        Task(
            "drawer-open",
            "drawer",
            (
                "open the drawer",
                "pull the drawer open",
                "pull the drawer out",
                "slide the drawer open",
                "grab the handle and open the drawer all the way",
                "could you open the drawer?",
            ),
        ),
        Task(
            "drawer-close",
            "drawer",
            (
                "close the drawer",
                "push the drawer shut",
                "push the drawer in",
                "slide the drawer closed",
                "shut the drawer completely",
                "could you close the drawer?",
            ),
        ),
        Task(
            "window-open",
            "window",
            (
                "open the window",
                "slide the window open",
                "push the window to the right to open it",
                "move the window pane open",
                "open the sliding window all the way",
                "could you open the window?",
            ),
        ),
        Task(
            "window-close",
            "window",
            (
                "close the window",
                "slide the window shut",
                "push the window to the left to close it",
                "move the window pane closed",
                "shut the sliding window completely",
                "could you close the window?",
            ),
        ),
        Task(
            "door-open",
            "door",
            (
                "open the door",
                "pull the door open",
                "swing the door open",
                "pull the handle to open the door",
                "open the door of the cabinet",
                "could you open the door?",
            ),
        ),
        Task(
            "button-press-topdown",
            "button",
            (
                "press the button",
                "push the red button down",
                "press the button from above",
                "push down on the button",
                "press the red button on the box",
                "could you press the button?",
            ),
        ),
    ),
)

EMBODIMENT = Embodiment(
    name="sawyer-metaworld",
    cameras=("corner", "wrist"),
    proprio=ActionSpace(
        groups=(
            Group(name="position", size=3, kind="position", unit="m"),
            Group(name="gripper", size=1, kind="gripper", low=0.0, high=1.0, unit="1 = open"),
        )
    ),
    action=ActionSpace(
        groups=(
            Group(
                name="position", size=3, kind="position", mode="delta", low=-1.0, high=1.0, unit="cm per control step"
            ),
            Group(name="gripper", size=1, kind="gripper", low=-1.0, high=1.0, unit="1 = close"),
        )
    ),
    control_hz=CONTROL_HZ / ACTION_REPEAT,
)

VIEWS = {
    "corner": View("corner2", (0.25, 0.85, 0.2, 0.8), SIZE, SIZE, turned=True, oversample=2),  # the table, not the room
    "wrist": View("gripperPOV", (0.0, 1.0, 0.0, 1.0), SIZE, SIZE),
}


class MetaWorld:
    """The benchmark. `render`: `fast` or `native` (default: ANYVLA_RENDER, else `fast`)."""

    name = "metaworld"
    embodiment = EMBODIMENT

    def __init__(self, render: str | None = None) -> None:
        self.render = setting(render)

    def suites(self) -> Mapping[str, Suite]:
        """The suites by name."""
        return {HALF_OPEN.name: HALF_OPEN}

    def make(self) -> MetaWorldEnvironment:
        """A robot. Raises RendererMissing (no GL driver), SimulatorMissing (Meta-World is not installed)."""
        return MetaWorldEnvironment(self.render)

    def versions(self) -> Mapping[str, str]:
        """Simulator, renderer and render setting."""
        with needs_metaworld():
            packages = {name: metadata.version(name) for name in ("metaworld", "mujoco")}
        return packages | {"renderer": f"{find_driver()} {platform.system()}", "render": self.render}


class MetaWorldEnvironment:
    """One Sawyer arm. A scene is loaded when its first task is; later resets reuse it."""

    def __init__(self, render: str = "fast") -> None:
        self.render = setting(render)
        with needs_metaworld():
            find_driver()
            import metaworld  # noqa: F401  here, so that what is missing shows before the first episode
        self._simulations: dict[str, Simulation] = {}
        self._renderers: dict[str, Renderer] = {}
        self._now: Simulation | None = None

    def reset(self, task: str, seed: int) -> None:
        """Start an episode of the task's scene. Raises ValueError for an unknown task or a negative seed."""
        if seed < 0:
            raise ValueError(f"seeds are 0 or more, got {seed}")
        scene = _scene_of(task)
        if scene not in self._simulations:
            self._simulations[scene] = Simulation(scene)
        self._now = self._simulations[scene]
        self._now.reset(seed)

    def observe(self) -> Observation:
        """Corner and wrist camera, 96 x 96 RGB, upright; end-effector position and gripper opening."""
        now = self._playing()
        images = {camera: self._draw(view) for camera, view in VIEWS.items()}
        return Observation(images=images, proprio=now.proprio())

    def step(self, action: Float32[np.ndarray, "4"]) -> Mapping[str, bool]:
        """Act for 1/40 s. Raises ValueError if the action is not four finite numbers."""
        action = np.asarray(action, np.float32)
        if action.shape != (EMBODIMENT.action.size,) or not np.isfinite(action).all():
            raise ValueError(f"an action is {EMBODIMENT.action.size} finite numbers, got {action!r}")
        return self._playing().step(action)

    def expert(self, task: str) -> Float32[np.ndarray, "4"]:
        """The scripted expert's action. Raises ValueError if `task` belongs to another scene than the one played."""
        now = self._playing()
        if _scene_of(task) != now.name:
            raise ValueError(f"the expert of {task!r} cannot act in the scene {now.name!r}: reset to {task!r} first")
        return now.expert(task)

    def frame(self, height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
        """The scene from the corner, with more of the room than the policy sees, for people."""
        middle, half = (0.53, 0.47), 0.36  # x, y and half the shorter side, as shares of the camera's image
        x, y = half * width / min(height, width), half * height / min(height, width)
        box = (middle[0] - x, middle[0] + x, middle[1] - y, middle[1] + y)
        oversample = 2 if max(height, width) <= 320 else 1
        return self._draw(View("corner2", box, height, width, turned=True, oversample=oversample))

    def close(self) -> None:
        """Free the renderers. The environment can be reset and used again."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
        self._simulations.clear()
        self._now = None

    def _playing(self) -> Simulation:
        if self._now is None:
            raise RuntimeError("no episode is being played: call reset(task, seed) first")
        return self._now

    def _draw(self, view: View) -> UInt8[np.ndarray, "H W 3"]:
        now = self._playing()
        if now.name not in self._renderers:
            self._renderers[now.name] = Renderer(now.model, self.render)
        return self._renderers[now.name].draw(now.model, now.data, view)


def _scene_of(task: str) -> str:
    tasks = {name: scene for scene, content in SCENES.items() for name in content.goals}
    if task not in tasks:
        raise ValueError(f"metaworld has no task {task!r}: {nearest(task, tasks)}")
    return tasks[task]
