"""Play the suite `recall` in Meta-World's scenes of reach and button-press-topdown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Mapping, Sequence

import numpy as np

from anyvla_sim.metaworld.environment import LIMITS, MetaWorldEnvironment
from anyvla_sim.metaworld.recall import make_trial
from anyvla_sim.rendering import Ornament

HOLD = np.array([0, 0, 0, 1], np.float32)  # the fingers are closed throughout
GAIN = 30.0  # of the experts, per m: an action of 1 moves the hand by 1 cm each control step
RADIUS = 0.04  # of a ball (m)
BLUE, GREEN, RED = (0.05, 0.1, 0.9), (0.05, 0.8, 0.1), (0.9, 0.05, 0.05)

HAND = (0.0, 0.61, 0.2)  # where it starts (m), between the places
PLACES = ((0.1, 0.45, 0.2), (0.1, 0.78, 0.2))  # the camera sees both past the arm (m)
MIDDLE = (0.12, 0.615, 0.27)  # of the cue's ball (m)
SHIFT = (0.02, 0.03, 0.02)  # how far, at most, the seed moves the hand and each place along an axis (m)
REACHED = 0.05  # as in Meta-World's reach (m)

BESIDE = (0.14, -0.12, -0.1)  # the ball, from the top of the button (m)
NEARER = (0.0, -0.13, 0.0)  # where the box is, from its stock position: the arm cannot lift the hand there (m)
ABOVE, LIFTED = 0.05, 0.09  # the button: where the hand starts, and where it has finished (m)
WRIST = 0.045  # from the tips of the fingers up to the hand's own position (m)
PRESSED, RELEASED = -0.03, -0.01  # of the button's joint (m), whose range is -0.06 to 0
SPRING = 2.0  # of the button, N/m; the stock one, 0.5, takes 12 actions to come back after a press


class Scene(ABC):
    """The balls of an episode and the task of the arm after the go sign. An answer is 0 or 1.

    The constructor moves the hand of `sim`, which was just reset, to its start position.
    """

    def __init__(self, sim: Any) -> None:
        self._sim = sim

    def _move_hand(self, position: np.ndarray) -> None:
        stock, self._sim.hand_init_pos = self._sim.hand_init_pos, position
        self._sim._reset_hand()
        self._sim.hand_init_pos = stock

    @abstractmethod
    def cue(self, answer: int) -> Ornament:
        """Return the ball that is the cue."""

    @abstractmethod
    def go_sign(self) -> list[Ornament]:
        """Return the balls of the go sign."""

    @abstractmethod
    def answer(self) -> int | None:
        """Return the answer that the arm has given, None before. Call it after each action."""

    @abstractmethod
    def act(self, answer: int) -> np.ndarray:
        """Return the direction (3,) in which the hand has to move to give an answer; its length is not bounded."""


class Places(Scene):
    """Reach the place that belongs to the color of the cue."""

    def __init__(self, sim: Any, rng: np.random.Generator) -> None:
        super().__init__(sim)
        start, *self._places = (np.array(p) + rng.uniform(-1, 1, 3) * SHIFT for p in (HAND, *PLACES))
        self._move_hand(start)

    def cue(self, answer: int) -> Ornament:
        return _make_ball(MIDDLE, (BLUE, GREEN)[answer])

    def go_sign(self) -> list[Ornament]:
        return [_make_ball(place, RED) for place in self._places]

    def answer(self) -> int | None:
        away = [float(np.linalg.norm(self._sim.tcp_center - place)) for place in self._places]
        return next((number for number, distance in enumerate(away) if distance <= REACHED), None)

    def act(self, answer: int) -> np.ndarray:
        return self._places[answer] - self._sim.tcp_center


class Presses(Scene):
    """Press the button once and lift the hand, or press it twice. The lifted hand says that no press will follow."""

    def __init__(self, sim: Any, rng: np.random.Generator) -> None:
        import mujoco

        super().__init__(sim)
        sim.model.joint("btnbox_joint").stiffness = SPRING
        mujoco.mj_resetData(sim.model, sim.data)  # the reset of a fresh simulator was with another stiffness
        mujoco.mj_forward(sim.model, sim.data)
        self._top = sim._get_pos_objects() + NEARER
        self._move_hand(self._top + (0, 0, WRIST + ABOVE) + rng.uniform(-0.01, 0.01, 3))
        sim.model.body("box").pos += NEARER  # after the hand, which could touch it; the next reset puts it back
        mujoco.mj_forward(sim.model, sim.data)
        self._presses, self._down = 0, False

    def cue(self, answer: int) -> Ornament:
        return _make_ball(self._top + BESIDE, BLUE)

    def go_sign(self) -> list[Ornament]:
        return [_make_ball(self._top + BESIDE, RED)]

    def answer(self) -> int | None:
        depth = float(self._sim.data.joint("btnbox_joint").qpos[0])
        if not self._down and depth < PRESSED:
            self._presses, self._down = self._presses + 1, True
        elif self._down and depth > RELEASED:
            self._down = False
        if self._presses == 2:
            return 1
        return 0 if self._presses == 1 and self._height() > LIFTED else None

    def _height(self) -> float:
        return float(self._sim.tcp_center[2] - self._top[2])

    def act(self, answer: int) -> np.ndarray:
        aside = self._top - self._sim.tcp_center
        down = not self._down and self._presses <= answer
        return np.array([aside[0], aside[1], -1.0 if down else 1.0])


def _make_ball(position: Sequence[float] | np.ndarray, color: tuple[float, float, float]) -> Ornament:
    x, y, z = (float(v) for v in position)
    return Ornament("sphere", (RADIUS, RADIUS, RADIUS), (x, y, z), color)


class RecallEnvironment(MetaWorldEnvironment):
    """The stock arm in an episode of `recall`."""

    def reset(self, task: str, seed: int, factors: Mapping[str, str] | None = None) -> None:
        super().reset(task, seed, factors)
        sim = self.simulation.sim
        self._time = 0
        self._trial = make_trial(task, seed)
        make_scene = Places if self._trial.pair.scene == "reach" else Presses
        self._stage: Scene = make_scene(sim, np.random.default_rng(seed))
        self._seen = sim._get_obs()
        self._given: int | None = None

    def ornaments(self) -> list[Ornament]:
        shown = super().ornaments()
        if self._trial.shows_cue(self._time):
            return [*shown, self._stage.cue(self._trial.answer)]
        return [*shown, *self._stage.go_sign()] if self._gone() else shown

    def _gone(self) -> bool:
        """Return whether the go sign has been given."""
        return self._time >= self._trial.go

    def step(self, action: np.ndarray) -> dict[str, bool]:
        gone = self._gone()
        super().step(action if gone else HOLD)
        self._time += 1
        if gone:
            self._given = self._stage.answer()
        return self.goals()

    def goals(self) -> dict[str, bool]:
        """Return for both tasks of the pair whether their answer was given."""
        return {name: number == self._given for number, name in enumerate(self._trial.pair.tasks)}

    def expert(self, task: str) -> np.ndarray:
        """Return the action of a scripted expert that holds still until the go sign. Raises like the base class."""
        self.check_expert(task)
        if not self._gone():
            return HOLD.copy()
        motion = GAIN * self._stage.act(self._trial.answer)
        motion /= max(1.0, float(np.abs(motion).max()))  # keeps the direction
        return np.clip([*motion, HOLD[3]], *LIMITS).astype(np.float32)
