"""What a scripted expert of LIBERO can do: carry, pull and push drawers, turn knobs, drag plates."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from anyvla_sim.base import ExpertStuck
from anyvla_sim.libero import grasps
from anyvla_sim.libero.geometry import HeightMap, Scene, hand_points
from anyvla_sim.libero.motion import CLOSE, OPEN, over, straight

AROUND = 0.35  # m around an object that a grasp looks at
REACHED, LOW, TURNED = 0.007, 0.004, 0.12  # m in the plane, m in height and rad within which a pose is reached
TIPPED = 0.2  # rad from vertical at which a grasp from above is none any more
SHUT = 0.0008  # m that fingers move in a step when they have closed on something
CLOSING = 16  # steps that the fingers get to close on something
STILL, PATIENCE = 0.02, 12  # m/s below which, and steps after which, a hand that has not arrived is stuck
SLIPPED = 0.04  # m that a held object may move in the hand
GAP = 0.004  # m above its support where an object is let go


class Skill(Protocol):
    """One thing to do, closed loop."""

    def done(self) -> bool:
        """Whether there is nothing left to do."""

    def action(self) -> np.ndarray:
        """What to do now, float32 (7,)."""


class Carry:
    """Take an object from above and put it on or into something."""

    def __init__(self, scene: Scene, item: str, target: str) -> None:
        """`item`: an object; `target`: an object or a site."""
        self._scene, self._item, self._target = scene, item, target
        self._bodies = scene.bodies(item)
        self._phase = "reach"
        self._steps = 0
        self._grasp: tuple[np.ndarray, np.ndarray] | None = None  # position, rotation in the object's frame
        self._field: HeightMap | None = None
        self._at: np.ndarray | None = None  # of the object in the hand, when it was taken
        self._lost = 0
        self._opening = 0.0
        self._failed: list[np.ndarray] = []  # positions of grasps in the object's frame

    def done(self) -> bool:
        return self._phase == "done"

    def action(self) -> np.ndarray:
        return {
            "reach": self._reach,
            "close": self._close,
            "carry": self._carry,
            "release": self._release,
            "leave": self._leave,
            "retry": self._retry,
        }[self._phase]()

    def _enter(self, phase: str) -> None:
        self._phase, self._steps, self._field = phase, 0, None

    def _plan(self) -> tuple[np.ndarray, np.ndarray]:
        position, rotation = self._scene.pose(self._item)
        points = self._scene.points(self._bodies)
        found = grasps.find(
            points,
            self._scene.around(points.mean(0), AROUND, self._bodies),
            grasps.from_above(),
            self._scene.floor(points.max(0)) + 0.002,
            self._scene.base,
            failed=[position + rotation @ f for f in self._failed],
        )
        if found is None:
            raise ExpertStuck(f"no grasp of {self._item} from above: nothing of it fits between the open fingers")
        return rotation.T @ (found.position - position), rotation.T @ found.rotation

    def _reach(self) -> np.ndarray:
        if self._grasp is None:
            self._grasp = self._plan()
        if self._field is None:
            self._field = self._scene.heights()
        position, rotation = self._scene.pose(self._item)
        goal, turn = position + rotation @ self._grasp[0], rotation @ self._grasp[1]
        if turn[2, 2] > -np.cos(TIPPED):  # the object has tipped over since
            self._grasp = None
            return self._reach()
        here, now = self._scene.hand()
        level = np.linalg.norm(goal[:2] - here[:2]) < REACHED and abs(goal[2] - here[2]) < LOW
        if level and np.trace(turn @ now.T) > 1 + 2 * np.cos(TURNED):
            self._enter("close")
            self._hold = (goal, turn)
            return self._close()
        self._steps = self._steps + 1 if np.linalg.norm(self._scene.velocity()) < STILL else 0
        if self._steps > PATIENCE:
            return self._give_up()
        hand = hand_points(now, self._scene.opening()) + here
        return over(self._scene, self._field, hand, goal - here, turn, OPEN)

    def _close(self) -> np.ndarray:
        self._steps += 1
        before, self._opening = self._opening, self._scene.opening()
        if self._steps > 3 and before - self._opening < SHUT and self._scene.held(self._bodies):
            self._enter("carry")
            here, now = self._scene.hand()
            self._at = now.T @ (self._scene.pose(self._item)[0] - here)
            self._turn = now
            return self._carry()
        if self._steps > CLOSING:
            return self._give_up()
        return straight(self._scene, *self._hold, CLOSE)

    def _give_up(self) -> np.ndarray:
        """This grasp does not work: off it, and another."""
        if self._grasp is not None:
            self._failed.append(self._grasp[0])
        self._grasp = None
        self._from = self._scene.hand()[0]
        self._enter("retry")
        return self._retry()

    def _retry(self) -> np.ndarray:
        self._steps += 1
        if self._scene.hand()[0][2] > self._from[2] + 0.05 or self._steps > 15:
            self._enter("reach")
        return straight(self._scene, self._from + (0, 0, 0.07), None, OPEN)

    def _carry(self) -> np.ndarray:
        here, now = self._scene.hand()
        position = self._scene.pose(self._item)[0]
        held = self._scene.held(self._bodies)
        self._lost = 0 if held else self._lost + 1
        if self._lost > 4 or np.linalg.norm(now.T @ (position - here) - self._at) > SLIPPED:
            self._lost, self._grasp = 0, None
            self._enter("reach")
            return self._reach()
        if self._field is None:
            self._field = self._scene.heights(self._bodies)
        moving = np.concatenate([self._scene.points(self._bodies), hand_points(now, self._scene.opening()) + here])
        goal = self._scene.pose(self._target)[0][:2]
        shift = np.append(goal - position[:2], 0.0)
        shift[2] = self._field.lift(moving, shift[None, :2])[0] + GAP
        if np.linalg.norm(shift[:2]) < 0.01 and shift[2] > -0.006:
            self._enter("release")
            return self._release()
        return over(self._scene, self._field, moving, shift, self._turn, CLOSE, align=0.008)

    def _release(self) -> np.ndarray:
        self._steps += 1
        if self._steps > 4:
            self._enter("leave")
            self._from = self._scene.hand()[0]
        return np.array([0, 0, 0, 0, 0, 0, OPEN], np.float32)

    def _leave(self) -> np.ndarray:
        here, _ = self._scene.hand()
        if here[2] > self._from[2] + 0.08:
            self._enter("done")
        return straight(self._scene, self._from + (0, 0, 0.1), None, OPEN)
