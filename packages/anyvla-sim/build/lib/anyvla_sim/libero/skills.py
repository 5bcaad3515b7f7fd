"""Skills of LIBERO's scripted expert: the base class, and carrying an object from one place to another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Callable, Iterable, Sequence, Tuple

import numpy as np

from anyvla_sim.base import ExpertStuck
from anyvla_sim.libero import grasps
from anyvla_sim.libero.geometry import HeightMap, SceneGeometry, sample_hand_points
from anyvla_sim.libero.motion import CLOSE, OPEN, move_over, move_straight

AROUND = 0.35  # m around an object within which other objects limit its grasps
REACHED, LOW, TURNED = 0.007, 0.004, 0.12  # m in the plane, m in height and rad within which a pose is reached
TIPPED = 0.2  # rad from vertical beyond which a grasp from above is given up
SHUT = 0.0008  # m; fingers that move less than this in a step have closed on something
CLOSING = 16  # steps that the fingers get to close on something
STILL, PATIENCE = 0.02, 12  # a hand slower than this (m/s) for more steps than that has got stuck
SLIPPED = 0.04  # m that a held object may move in the hand
GAP = 0.004  # m above its support where an object is released


Pose = Tuple[np.ndarray, np.ndarray]  # position (3,), rotation (3, 3)


class Skill(ABC):
    """One closed-loop skill. It runs in phases; each is a method that returns the next action, float32 (7,)."""

    def __init__(self, scene: SceneGeometry) -> None:
        self._scene = scene
        self._phase: Callable[[], np.ndarray] = self._reach
        self._finished = False
        self._steps = 0  # since the phase began
        self._field: HeightMap | None = None  # of the scene when the phase began
        self._from = np.zeros(3)  # where the hand started to retreat

    def action(self) -> np.ndarray:
        """Return the next action, float32 (7,)."""
        return self._phase()

    def done(self) -> bool:
        """Return whether the skill has finished."""
        return self._finished

    @abstractmethod
    def _reach(self) -> np.ndarray:
        """Bring the hand to where the skill begins."""

    def _enter(self, phase: Callable[[], np.ndarray]) -> np.ndarray:
        """Begin a phase. Return its first action."""
        self._phase, self._steps, self._field = phase, 0, None
        return phase()

    def _move_hand_over(self, shift: np.ndarray, turn: np.ndarray, grip: float, align: float = 0.006) -> np.ndarray:
        """Return the action that moves the empty hand by `shift` over all obstacles, as `motion.move_over`."""
        if self._field is None:
            self._field = self._scene.height_map()
        here, now = self._scene.hand_pose()
        hand = sample_hand_points(now, self._scene.finger_opening()) + here
        return move_over(self._scene, self._field, hand, shift, turn, grip, align)

    def _find_grasp(
        self,
        name: str,
        points: np.ndarray,
        others: np.ndarray,
        rotations: Iterable[tuple[np.ndarray, float]],
        floor: float,
        failed: Sequence[np.ndarray] = (),
    ) -> Pose:
        """Return the grasp of `grasps.find_grasp` in the frame of the named object or body. Raises ExpertStuck.

        `failed` are positions in that frame, too.
        """
        position, rotation = self._scene.pose(name)
        tried = [position + rotation @ f for f in failed]
        found = grasps.find_grasp(points, others, rotations, floor, self._scene.base, tried)
        if found is None:
            raise ExpertStuck(f"no grasp of {name}: nothing of it fits between the open fingers")
        return rotation.T @ (found.position - position), rotation.T @ found.rotation

    def _get_grasp_pose(self, name: str, grasp: Pose) -> Pose:
        """Return the hand's pose in the world at a grasp in the frame of the named object or body."""
        position, rotation = self._scene.pose(name)
        return position + rotation @ grasp[0], rotation @ grasp[1]


class CarryObject(Skill):
    """Grasp an object from above and put it on or into something."""

    def __init__(self, scene: SceneGeometry, item: str, target: str) -> None:
        """`item` is the name of an object, `target` of an object or a site."""
        super().__init__(scene)
        self._item, self._target = item, target
        self._bodies = scene.body_ids(item)
        self._grasp: Pose | None = None  # in the object's frame
        self._in_hand: np.ndarray | None = None  # position of the object in the hand's frame when it was grasped
        self._lost = 0  # steps without contact
        self._opening = 0.0
        self._failed: list[np.ndarray] = []  # positions of grasps in the object's frame

    def _plan(self) -> Pose:
        points = self._scene.points(self._bodies)
        others = self._scene.points_around(points.mean(0), AROUND, self._bodies)
        floor = self._scene.floor_height(points.max(0)) + 0.002
        return self._find_grasp(self._item, points, others, grasps.list_downward_rotations(), floor, self._failed)

    def _reach(self) -> np.ndarray:
        if self._grasp is None:
            self._grasp = self._plan()
        goal, turn = self._get_grasp_pose(self._item, self._grasp)
        if turn[2, 2] > -np.cos(TIPPED):  # the object has tipped over since
            self._grasp = None
            return self._reach()
        here, now = self._scene.hand_pose()
        level = np.linalg.norm(goal[:2] - here[:2]) < REACHED and abs(goal[2] - here[2]) < LOW
        if level and np.trace(turn @ now.T) > 1 + 2 * np.cos(TURNED):
            self._hold = (goal, turn)
            return self._enter(self._close)
        self._steps = self._steps + 1 if np.linalg.norm(self._scene.hand_velocity()) < STILL else 0
        if self._steps > PATIENCE:
            return self._give_up()
        return self._move_hand_over(goal - here, turn, OPEN)

    def _close(self) -> np.ndarray:
        self._steps += 1
        before, self._opening = self._opening, self._scene.finger_opening()
        if self._steps > 3 and before - self._opening < SHUT and self._scene.is_held(self._bodies):
            here, self._turn = self._scene.hand_pose()
            self._in_hand = self._turn.T @ (self._scene.pose(self._item)[0] - here)
            return self._enter(self._carry)
        if self._steps > CLOSING:
            return self._give_up()
        return move_straight(self._scene, *self._hold, CLOSE)

    def _give_up(self) -> np.ndarray:
        """Leave a grasp that does not work, and mark it as failed."""
        if self._grasp is not None:
            self._failed.append(self._grasp[0])
        self._grasp = None
        self._from = self._scene.hand_pose()[0]
        return self._enter(self._retry)

    def _retry(self) -> np.ndarray:
        self._steps += 1
        if self._scene.hand_pose()[0][2] > self._from[2] + 0.05 or self._steps > 15:
            self._phase, self._steps = self._reach, 0
        return move_straight(self._scene, self._from + (0, 0, 0.07), None, OPEN)

    def _carry(self) -> np.ndarray:
        here, now = self._scene.hand_pose()
        position = self._scene.pose(self._item)[0]
        held = self._scene.is_held(self._bodies)
        self._lost = 0 if held else self._lost + 1
        if self._lost > 4 or np.linalg.norm(now.T @ (position - here) - self._in_hand) > SLIPPED:
            self._lost, self._grasp = 0, None
            return self._enter(self._reach)
        if self._field is None:
            self._field = self._scene.height_map(self._bodies)
        hand = sample_hand_points(now, self._scene.finger_opening()) + here
        moving = np.concatenate([self._scene.points(self._bodies), hand])
        shift = np.append(self._scene.pose(self._target)[0][:2] - position[:2], 0.0)
        shift[2] = self._field.required_rise(moving, shift[None, :2])[0] + GAP
        if np.linalg.norm(shift[:2]) < 0.01 and shift[2] > -0.006:
            return self._enter(self._release)
        return move_over(self._scene, self._field, moving, shift, self._turn, CLOSE, align=0.008)

    def _release(self) -> np.ndarray:
        self._steps += 1
        if self._steps > 4:
            self._phase, self._from = self._leave, self._scene.hand_pose()[0]
        return np.array([0, 0, 0, 0, 0, 0, OPEN], np.float32)

    def _leave(self) -> np.ndarray:
        self._finished = bool(self._scene.hand_pose()[0][2] > self._from[2] + 0.08)
        return move_straight(self._scene, self._from + (0, 0, 0.1), None, OPEN)
