"""Choose the actions to execute from predicted chunks, with optional delay and temporal ensembling."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from anyvla.config import ConfigError
from anyvla.robot.embodiment import Embodiment

ENSEMBLE_DECAY = 0.01  # m of ACT: the i-th prediction after the oldest one has the weight exp(-m i)


class Execution:
    """Select the actions of one session. Time counts actions, from 0.

    A chunk predicted from the observation at time t has the actions for t, t+1, .... With a `delay` the chunk arrives
    at t + delay. The robot does not wait: it executes the previous chunk, and holds still when that chunk has ended.
    With `ensemble`, all chunks that have an action for a time are averaged, with larger weights for older chunks (ACT,
    arXiv 2304.13705).
    """

    def __init__(self, embodiment: Embodiment, execute: int, delay: int = 0, ensemble: bool = False) -> None:
        """`execute`: number of actions between two observations."""
        self._execute, self._delay, self._ensemble = execute, delay, ensemble
        self._chunks: list[tuple[int, np.ndarray]] = []  # (time of the observation, chunk (N, A)), oldest first
        self._now = 0
        self._hold_action: np.ndarray | None = None  # (A,), the action that holds the robot still; NaN: unknown
        self._absolute = np.zeros(embodiment.action.size, bool)  # dims whose last command holds the robot still
        if delay:
            self._hold_action, self._absolute = _hold_action(embodiment)

    def __call__(self, chunk: Float32[np.ndarray, "N A"]) -> Float32[np.ndarray, "n A"]:
        """Return the next `execute` actions, given the chunk predicted from the current observation.

        Raises ConfigError if the robot must hold still and the action that does so is unknown.
        """
        self._chunks.append((self._now, chunk))
        actions = np.stack([self._select(self._now + i) for i in range(self._execute)])
        self._now += self._execute
        self._chunks = [(t, c) for t, c in self._chunks if t + len(c) > self._now]
        return actions

    def _select(self, time: int) -> Float32[np.ndarray, "A"]:
        known = [c[time - t] for t, c in self._chunks if t + self._delay <= time < t + len(c)]
        if not known:
            action = self._hold()
        elif self._ensemble:
            weights = np.exp(-ENSEMBLE_DECAY * np.arange(len(known)))
            action = (np.stack(known) * (weights / weights.sum())[:, None]).sum(0).astype(np.float32)
        else:
            action = known[-1]
        if self._hold_action is not None:
            self._hold_action = np.where(self._absolute, action, self._hold_action).astype(np.float32)
        return action

    def _hold(self) -> Float32[np.ndarray, "A"]:
        if self._hold_action is None:
            raise RuntimeError("the chunk has fewer actions than are executed")
        if np.isnan(self._hold_action).any():
            raise ConfigError(
                "the robot cannot hold still before its first chunk: its actions are absolute, or its gripper does not "
                "declare which end is open; a delay needs delta actions"
            )
        return self._hold_action


def _hold_action(embodiment: Embodiment) -> tuple[np.ndarray, np.ndarray]:
    """Return the action (A,) that holds the robot still before any command, and the dims (A,) of absolute commands.

    The action is NaN where it is unknown.
    """
    hold, absolute = [], []
    for group in embodiment.action.groups:
        gripper = group.kind == "gripper"
        delta = group.mode == "delta" and not gripper
        start = group.open if gripper and group.open is not None else 0.0 if delta else np.nan
        hold += [start] * group.size
        absolute += [not delta] * group.size
    return np.array(hold, np.float32), np.array(absolute)
