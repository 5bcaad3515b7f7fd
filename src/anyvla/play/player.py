"""One robot of a visit, with the policy that moves it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from anyvla.play.messages import write_picture
from anyvla.play.policies import Policies
from anyvla.play.simulated_robot import SimulatedRobot

if TYPE_CHECKING:
    from anyvla.policy import Session


class Player:
    """A robot that follows an instruction until a goal holds that did not hold before."""

    def __init__(self, number: int, robot: SimulatedRobot, policies: Policies) -> None:
        """`number` is that of the robot and of its policy."""
        self.number, self.robot, self._policies = number, robot, policies
        self.outcome: str | None = None  # the task whose goal was reached
        self.steps = 0  # actions since the instruction
        self.news: dict[str, Any] | None = None  # the chunk, if the last action was its first
        self._session: Session | None = None
        self._instructed: str | None = None
        self._chunk: Float32[np.ndarray, "N A"] | None = None
        self._executed = 0  # actions of the chunk
        self._goals: set[str] = set()  # that hold now
        self._held: set[str] = set()  # that have held since before the instruction
        self._ms: dict[str, float] = {}

    def reset(self, task: str, seed: int) -> None:
        """Start the scene of a task, without an instruction."""
        self.robot.reset(task, seed)
        self._session, self._chunk, self.news, self.outcome = None, None, None, None
        self.steps, self._goals, self._ms = 0, set(), {}

    def begin(self, instruction: str, seed: int, instructed: str | None) -> None:
        """Start a session with an instruction; `instructed` is its task, if known. Raises like `VLA.start`."""
        self._session = self._policies.start(self.number, instruction, seed)
        self._instructed, self._held = instructed, set(self._goals)
        self._chunk, self.news, self.outcome, self.steps = None, None, None, 0

    def advance(self) -> None:
        """Execute one action, predicted before if the chunk is used up. Raises ValueError like `VLA.act`."""
        self.news = None
        if self._chunk is None or self._executed >= self._policies.executed(self.number):
            self._predict()
        assert self._chunk is not None
        with _Timer(self._ms, "simulate"):
            goals = self.robot.step(self._chunk[self._executed])
        self._executed += 1
        self.steps += 1
        self._goals = {task for task, holds in goals.items() if holds}
        self._held &= self._goals
        reached = sorted(self._goals - self._held)
        if self._instructed in self._goals:
            self.outcome = self._instructed
        elif reached:
            self.outcome = reached[0]

    def _predict(self) -> None:
        assert self._session is not None
        with _Timer(self._ms, "observe"):
            observation = self.robot.observe()
        with _Timer(self._ms, "act"):
            self._chunk = self._policies.act(self.number, observation, self._session)
        self._executed = 0
        path, at = self.robot.foresee(self._chunk), self.robot.locate()
        self.news = {
            "values": np.round(self._chunk.astype(float), 3).tolist(),
            "path": None if path is None or not np.isfinite(path).all() else np.round(path.astype(float), 4).tolist(),
            "object": round_position(at),
            "execute": self._policies.executed(self.number),
        }

    def draw(self) -> Callable[[float | None], bytes]:
        """Draw the scene. Return a function that makes the message of it, given the actions per second."""
        with _Timer(self._ms, "draw"):
            jpeg = self.robot.draw()
        header = {"robot": self.number, "step": self.steps, "executed": self._executed, "ms": dict(self._ms)}
        return lambda rate: write_picture({**header, "hz": rate}, jpeg)


def round_position(at: Float32[np.ndarray, "2"] | None) -> list[float] | None:
    """Return a position in the picture as JSON; None for none, or one outside of it."""
    if at is None or not ((at >= 0) & (at <= 1)).all():
        return None
    return [round(float(x), 4) for x in at]


class _Timer:
    """Writes how many milliseconds a block took into a dict."""

    def __init__(self, into: dict[str, float], name: str) -> None:
        self._into, self._name = into, name

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._into[self._name] = round(1000 * (time.perf_counter() - self._begin), 1)
