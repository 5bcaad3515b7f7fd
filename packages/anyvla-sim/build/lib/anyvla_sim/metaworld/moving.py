"""Move the object of a running episode of Meta-World by hand, within the range of its start positions."""

from __future__ import annotations

from typing import Any

import numpy as np

from anyvla_sim.metaworld.factors import find_object_joints

BEYOND_M = 0.02  # how far the object may leave the range that start positions are sampled from


class ObjectMover:
    """Moves drawers, doors, buttons and loose objects over the table."""

    def __init__(self, sim: Any) -> None:
        """Create it just after the reset of `sim`."""
        self._sim = sim
        self._joints = find_object_joints(sim)
        bodies = {int(sim.model.body_rootid[joint.bodyid[0]]) for joint in self._joints if len(joint.qpos0) == 1}
        self._start = {body: sim.model.body_pos[body].copy() for body in bodies}
        self._space = sim._random_reset_space
        self._at = np.array(sim._get_pos_objects()[:2] if self._loose() else sim.obj_init_pos[:2])

    def _loose(self) -> bool:
        return not self._start

    def undo(self) -> None:
        """Put fixtures back, as the reset of some of Meta-World's environments does not."""
        for body, position in self._start.items():
            self._sim.model.body_pos[body] = position

    def locate(self) -> np.ndarray | None:
        """Return the position (3,) of the handle, button or object (m); None without an object that can move."""
        return np.array(self._sim._get_pos_objects()[:3]) if self._joints else None

    def move(self, by: np.ndarray) -> bool:
        """Move the object by (2,) m in the plane of the table. Return False if it is at the end of its range."""
        if not self._joints:
            return False
        low, high = self._space.low[:2] - BEYOND_M, self._space.high[:2] + BEYOND_M
        target = np.clip(self._at + by, np.minimum(low, self._at), np.maximum(high, self._at))
        shift, self._at = target - self._at, target
        if np.abs(shift).max() < 1e-6:
            return False
        sim = self._sim
        for body in self._start:
            sim.model.body_pos[body, :2] += shift
        if self._loose():
            for joint in self._joints:
                at = int(joint.qposadr[0])
                sim.data.qpos[at : at + 2] += shift
        else:  # success is the distance from a target that belongs to the fixture
            sim.obj_init_pos, sim._target_pos = (self._shifted(p, shift) for p in (sim.obj_init_pos, sim._target_pos))
        return True

    @staticmethod
    def _shifted(position: np.ndarray, shift: np.ndarray) -> np.ndarray:
        return np.array([*(np.asarray(position)[:2] + shift), position[2]])
