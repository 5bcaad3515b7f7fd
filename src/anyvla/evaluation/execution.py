"""Which actions a robot executes of the chunks that a policy predicts: how many, how late, and averaged or not."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from anyvla.config import ConfigError
from anyvla.robot.embodiment import Embodiment

ENSEMBLE_DECAY = 0.01  # ACT's m: a prediction made i predictions after the oldest one weighs exp(-m i)


class Execution:
    """The actions of one session. Time is counted in actions, from 0.

    A chunk predicted from the picture of time t is for the times t, t+1, ...; with a `delay` it is known at t + delay
    only, and the robot does not wait: it goes on with the chunk before, and holds still where that has ended. With
    `ensemble` all known chunks that reach a time are averaged, the older ones weighing more (ACT, arXiv 2304.13705).
    """

    def __init__(self, embodiment: Embodiment, execute: int, delay: int = 0, ensemble: bool = False) -> None:
        """`execute`: actions between two pictures. Raises ConfigError if it is not known how to hold still."""
        self._execute, self._delay, self._ensemble = execute, delay, ensemble
        self._chunks: list[tuple[int, Float32[np.ndarray, "N A"]]] = []  # (time of the picture, chunk), oldest first
        self._now = 0
        self._still: np.ndarray | None = None  # (A,), what holds the robot still; NaN: not known
        self._kept = np.zeros(embodiment.action.size, bool)  # dims that stay as they were commanded last
        if delay:
            self._still, self._kept = _still(embodiment)

    def __call__(self, chunk: Float32[np.ndarray, "N A"]) -> Float32[np.ndarray, "n A"]:
        """The next `execute` actions, given the chunk that answers the picture of now."""
        self._chunks.append((self._now, chunk))
        actions = np.stack([self._at(self._now + i) for i in range(self._execute)])
        self._now += self._execute
        self._chunks = [(t, c) for t, c in self._chunks if t + len(c) > self._now]
        return actions

    def _at(self, time: int) -> Float32[np.ndarray, "A"]:
        known = [c[time - t] for t, c in self._chunks if t + self._delay <= time < t + len(c)]
        if not known:
            action = self._hold()
        elif self._ensemble:
            weights = np.exp(-ENSEMBLE_DECAY * np.arange(len(known)))
            action = (np.stack(known) * (weights / weights.sum())[:, None]).sum(0).astype(np.float32)
        else:
            action = known[-1]
        if self._still is not None:
            self._still = np.where(self._kept, action, self._still).astype(np.float32)
        return action

    def _hold(self) -> Float32[np.ndarray, "A"]:
        if self._still is None:
            raise RuntimeError("a chunk is shorter than what is executed of it")
        if np.isnan(self._still).any():
            raise ConfigError(
                "the robot cannot hold still before its first chunk: its actions are absolute, or its gripper does not "
                "say which end is open; a delay needs delta actions"
            )
        return self._still


def _still(embodiment: Embodiment) -> tuple[np.ndarray, np.ndarray]:
    """The action (A,) that changes nothing, NaN where it is not known; which dims keep what was commanded last."""
    still, kept = [], []
    for group in embodiment.action.groups:
        gripper = group.kind == "gripper"
        delta = group.mode == "delta" and not gripper
        start = group.open if gripper and group.open is not None else 0.0 if delta else np.nan
        still += [start] * group.size
        kept += [not delta] * group.size
    return np.array(still, np.float32), np.array(kept)
