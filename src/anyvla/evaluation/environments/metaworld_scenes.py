"""Meta-World scenes that only words can tell apart, as simulations without pictures.

In the stock tasks the start state says what to do: `drawer-open` starts shut, `drawer-close` starts open, each hand
starts elsewhere, and a green ball marks the goal. Here the two tasks of a pair share one scene, which starts half open,
with the markers hidden.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np
from jaxtyping import Float32

ACTION_REPEAT = 2  # control steps of Meta-World (80 Hz) per action
START = (0.4, 0.6)  # where the joint of a pair starts, as a share of its range
OPEN, CLOSED = 0.85, 0.15  # the share of the range from which on it counts as open, below which as closed


class SimulatorMissing(ImportError):
    """The simulator of a benchmark is not installed."""


@contextlib.contextmanager
def needs_metaworld() -> Iterator[None]:
    """Turn an ImportError of Meta-World or MuJoCo into one that says what to install."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("metaworld", "mujoco", "gymnasium"):
            raise
        raise SimulatorMissing(f'Meta-World is not installed ({error}): pip install "anyvla[metaworld]"') from error


@dataclass(frozen=True)
class Goal:
    """One task of a scene: who shows it, and when it is reached."""

    expert: str  # the policy of Meta-World that solves it
    reached: Callable[[Simulation], bool]
    object_position: Callable[[Simulation, np.ndarray], np.ndarray] = lambda _, position: position


@dataclass(frozen=True)
class Scene:
    """A Meta-World environment and the tasks that start from its states."""

    environment: str
    goals: Mapping[str, Goal]
    joint: str | None = None  # a joint that starts half open
    markers: tuple[str, ...] = field(default=("goal",))


SCENES: Mapping[str, Scene] = {
    "drawer": Scene(
        "drawer-open-v3",
        {
            "drawer-open": Goal("drawer-open-v3", lambda s: s.opened > OPEN),
            # its expert grew up in a class that reports the handle 5 cm higher
            "drawer-close": Goal("drawer-close-v3", lambda s: s.opened < CLOSED, lambda _, p: p + [0, 0, 0.05]),
        },
        joint="goal_slidey",
    ),
    "window": Scene(
        "window-open-v3",
        {
            "window-open": Goal("window-open-v3", lambda s: s.opened > OPEN),
            # its expert goes to the other side of the handle
            "window-close": Goal(
                "window-close-v3", lambda s: s.opened < CLOSED, lambda s, _: s.site("handleCloseStart")
            ),
        },
        joint="window_slide",
        markers=("goal", "handleOpenStart", "handleCloseStart"),
    ),
    "door": Scene("door-open-v3", {"door-open": Goal("door-open-v3", lambda s: s.solved)}),
    "button": Scene(
        "button-press-topdown-v3",
        {"button-press-topdown": Goal("button-press-topdown-v3", lambda s: s.solved)},
        markers=("buttonStart", "hole"),
    ),
}


class Simulation:
    """The simulated robot in one scene. Raises SimulatorMissing."""

    def __init__(self, name: str) -> None:
        with needs_metaworld():
            from metaworld.env_dict import ALL_V3_ENVIRONMENTS
            from metaworld.policies import ENV_POLICY_MAP
        self.name, self.scene = name, SCENES[name]
        self._env: Any = ALL_V3_ENVIRONMENTS[self.scene.environment]()
        self._env._freeze_rand_vec = False  # a fresh place for the object at every reset,
        self._env.seeded_rand_vec = True  # drawn from the environment's own generator
        self._env._set_task_called = True
        self._env.max_path_length = 2**31  # the horizon is the suite's business
        self._experts = {task: ENV_POLICY_MAP[goal.expert]() for task, goal in self.scene.goals.items()}
        self._bodies = self.model.body_pos.copy()
        for marker in self.scene.markers:
            self.model.site(marker).rgba[3] = 0
        self.solved = False  # Meta-World's own verdict on the last step

    @property
    def model(self) -> Any:
        """The `mujoco.MjModel`."""
        return self._env.model

    @property
    def data(self) -> Any:
        """The `mujoco.MjData`."""
        return self._env.data

    def reset(self, seed: int) -> None:
        """Start an episode: the state depends on the scene and the seed only."""
        import mujoco

        rng = np.random.default_rng([crc32(self.name.encode()), seed])
        # Meta-World moves the hand to its start while the object still stands where the last episode had it.
        self.model.body_pos[:] = self._bodies
        mujoco.mj_resetData(self.model, self.data)
        self._env.np_random = rng
        self._env.curr_path_length = 0
        self._env.reset_model()
        if self.scene.joint is not None:
            shut, opened = self._range()
            joint = self.data.joint(self.scene.joint)
            joint.qpos[0] = shut + rng.uniform(*START) * (opened - shut)
            joint.qvel[0] = 0
        mujoco.mj_forward(self.model, self.data)
        self.solved = False

    def step(self, action: Float32[np.ndarray, "4"]) -> dict[str, bool]:
        """Act for one action period. Returns which goals hold at its end."""
        action = np.clip(action, -1, 1)
        for _ in range(ACTION_REPEAT):
            *_, info = self._env.step(action)
        self.solved = bool(info["success"])
        return {task: goal.reached(self) for task, goal in self.scene.goals.items()}

    def proprio(self) -> Float32[np.ndarray, "4"]:
        """End-effector x, y, z in metres, and how far the gripper is open (0 to 1)."""
        return self._env._get_curr_obs_combined_no_goal()[:4].astype(np.float32)

    def expert(self, task: str) -> Float32[np.ndarray, "4"]:
        """The action that the scripted expert of `task` would take now."""
        now = self._env._get_curr_obs_combined_no_goal()
        now[4:7] = self.scene.goals[task].object_position(self, now[4:7])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Constant(s) may be too high": they are, so the action is clipped
            action = self._experts[task].get_action(np.concatenate([now, now, np.zeros(3)]))
        return np.clip(action, -1, 1).astype(np.float32)

    @property
    def opened(self) -> float:
        """How far the scene's joint is open: 0 shut, 1 open."""
        shut, opened = self._range()
        return float((self.data.joint(self.scene.joint).qpos[0] - shut) / (opened - shut))

    def site(self, name: str) -> np.ndarray:
        """Where a site is, in metres."""
        return self.data.site(name).xpos.copy()

    def _range(self) -> tuple[float, float]:
        """The joint's position when shut, which is 0 in both pairs, and when open."""
        return 0.0, float(max(self.model.joint(self.scene.joint).range, key=abs))
