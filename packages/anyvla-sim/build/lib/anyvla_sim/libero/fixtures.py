"""Skills of LIBERO's scripted expert for drawers, knobs and plates, which it moves without lifting them."""

from __future__ import annotations

from typing import Callable

import numpy as np

from anyvla_sim.libero import grasps
from anyvla_sim.libero.geometry import FINGER_HALF, FINGER_THICK, OPENING, TIP, Joint, SceneGeometry, sample_hand_points
from anyvla_sim.libero.motion import CLOSE, OPEN, SPEED, limit_norm, move_straight, rotation_vector
from anyvla_sim.libero.skills import Pose, Skill

HANDLE = 0.018  # m; a drawer's handle is searched within this distance of its front
STANDOFF = 0.07  # m before a handle, from where the hand approaches in a straight line
AHEAD = (0.03, 0.25)  # m and rad; the hand's goal is this far along the joint
CLOSING = 12  # steps that the fingers get to close
LET_GO = 6  # steps that the fingers get to open
AWAY = 0.09  # m that the hand retreats at the end
ABOVE, BEHIND = 0.004, 0.015  # m over the table and behind an object, where the fingers start to push it
LEAN = np.deg2rad(20)  # of the palm over the pushed object
PUSHING = 0.5  # the command that pushes
ARRIVED, STEER = 0.008, 0.018  # m from its goal at which an object is left; m that the hand steers sideways
CORNER = 0.04  # m; a sideways distance beyond this takes a second push
DOWN = 0.06  # m over the start of a push, from which the fingers go straight down
ASKEW = 0.3  # rad; a hand that is turned further does not go lower, as its palm would sweep the plate away
PUSH = np.pi / 4  # rad from vertical at which a drawer is pushed


def rotation_about(axis: np.ndarray, angle: float) -> np.ndarray:
    """Return the rotation (3, 3) by `angle` rad about a unit vector (3,)."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


class JointSkill(Skill):
    """A skill that moves a drawer or a knob along its joint."""

    def __init__(self, scene: SceneGeometry, joint: str, sign: float, there: Callable[[], bool]) -> None:
        """`sign` is the direction along the joint, 1 or -1. `there` returns whether it has moved far enough."""
        super().__init__(scene)
        self._joint, self._sign, self._there = joint, sign, there
        self._body = scene.joint(joint).body
        self._bodies = scene.body_ids(self._body)

    def _retreat(self, way: np.ndarray, grip: float) -> np.ndarray:
        """Return the action that moves the hand back along `way` (3,). End the skill once it is away."""
        self._finished = bool(np.linalg.norm(self._scene.hand_pose()[0] - self._from) > AWAY)
        return move_straight(self._scene, self._from - (AWAY + 0.03) * way, None, grip)


class MoveJoint(JointSkill):
    """Grasp a knob, or a drawer by its handle, and move it along its joint."""

    def __init__(self, scene: SceneGeometry, joint: str, sign: float, there: Callable[[], bool]) -> None:
        super().__init__(scene, joint, sign, there)
        self._grasp = self._plan()

    def _plan(self) -> Pose:
        joint = self._scene.joint(self._joint)
        points = self._scene.points(self._bodies)
        if joint.slides:
            out = joint.axis * self._sign
            along = points @ out
            handle = along > along.max() - HANDLE
            rotations = grasps.list_tilted_rotations(-out, np.deg2rad([50, 60, 70, 80, 90]).tolist())
            rest = points[~handle]
            points = points[handle]
        else:
            rotations, rest = grasps.list_downward_rotations(), points[:0]
        around = self._scene.points_around(points.mean(0), 0.2, self._bodies)
        floor = self._scene.floor_height(points.max(0)) + 0.003
        others = np.concatenate([around, rest])
        return self._find_grasp(self._body, points, others, rotations, floor)

    def _reach(self) -> np.ndarray:
        goal, turn = self._get_grasp_pose(self._body, self._grasp)
        here, now = self._scene.hand_pose()
        start = goal - STANDOFF * turn[:, 2]
        if np.linalg.norm(start - here) < 0.025 and np.linalg.norm(rotation_vector(turn @ now.T)) < 0.15:
            return self._enter(self._insert)
        return self._move_hand_over(start - here, turn, OPEN, align=0.03)

    def _insert(self) -> np.ndarray:
        goal, turn = self._get_grasp_pose(self._body, self._grasp)
        here, _ = self._scene.hand_pose()
        offset = goal - here
        depth = float(offset @ turn[:, 2])
        aside = float(np.linalg.norm(offset - depth * turn[:, 2]))
        if aside < 0.008 and depth < 0.006:
            self._hold = (goal, turn)
            return self._enter(self._close)
        back = STANDOFF * float(np.clip((aside - 0.006) / 0.01, 0.0, 1.0))
        return move_straight(self._scene, goal - back * turn[:, 2], turn, OPEN)

    def _close(self) -> np.ndarray:
        self._steps += 1
        if (self._steps > 5 and self._scene.is_held(self._bodies)) or self._steps > CLOSING:
            self._phase = self._move
        return move_straight(self._scene, *self._hold, CLOSE)

    def _move(self) -> np.ndarray:
        if self._there():
            return self._enter(self._release)
        joint = self._scene.joint(self._joint)
        goal, turn = self._get_grasp_pose(self._body, self._grasp)
        here, _ = self._scene.hand_pose()
        if np.linalg.norm(goal - here) > 0.03:  # slipped off
            return self._enter(self._reach)
        return move_straight(self._scene, *self._move_along_joint(joint, goal, turn), CLOSE)

    def _move_along_joint(self, joint: Joint, goal: np.ndarray, turn: np.ndarray) -> Pose:
        """Return the pose of the hand that moves the joint further."""
        if joint.slides:
            return goal + joint.axis * (self._sign * AHEAD[0]), turn
        by = rotation_about(joint.axis, self._sign * AHEAD[1])
        return joint.anchor + by @ (goal - joint.anchor), by @ turn

    def _release(self) -> np.ndarray:
        self._steps += 1
        if self._steps > LET_GO:
            self._phase, self._from = self._leave, self._scene.hand_pose()[0]
        return np.array([0, 0, 0, 0, 0, 0, OPEN], np.float32)

    def _leave(self) -> np.ndarray:
        return self._retreat(self._scene.hand_pose()[1][:, 2], OPEN)


class CloseDrawer(JointSkill):
    """Push a drawer shut with closed fingers."""

    def _find_front(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the direction of the push (3,), and the hand's position (3,) and rotation (3, 3) at the front."""
        into = self._scene.joint(self._joint).axis * self._sign
        turn = grasps.list_tilted_rotations(into, [PUSH])[0][0]
        points = self._scene.points(self._bodies)
        front = points[points @ into < (points @ into).min() + HANDLE].mean(0) - turn[:, 2] * TIP
        return into, front, turn

    def _reach(self) -> np.ndarray:
        if self._there():
            return self._push()
        into, front, turn = self._find_front()
        shift = front - 0.05 * into - self._scene.hand_pose()[0]
        if np.linalg.norm(shift) < 0.015:
            self._phase = self._push
        return self._move_hand_over(shift, turn, CLOSE, align=0.02)

    def _push(self) -> np.ndarray:
        into, front, turn = self._find_front()
        if self._there():
            self._phase, self._from = self._leave, self._scene.hand_pose()[0]
        return move_straight(self._scene, front + into * AHEAD[0], turn, CLOSE)

    def _leave(self) -> np.ndarray:
        return self._retreat(self._find_front()[0], CLOSE)


class PushObject(Skill):
    """Slide a flat object over the table with open fingers behind it, so that two points of contact guide it."""

    def __init__(self, scene: SceneGeometry, item: str, target: str) -> None:
        """`item` is the name of a wide and flat object, `target` of a site on the table."""
        super().__init__(scene)
        self._item, self._target = item, target
        self._bodies = scene.body_ids(item)
        way = self._measure_way()
        along = int(np.argmax(np.abs(way)))
        self._face = np.eye(3)[along] * np.sign(way[along])  # the direction of the push
        self._turn = leaning_rotation(self._face)
        aside = way - (way @ self._face) * self._face
        self._left_over = aside if np.linalg.norm(aside) > CORNER else np.zeros(3)  # for a second push

    def _measure_way(self) -> np.ndarray:
        """Return the horizontal vector (3,) from the object to its target."""
        return np.append((self._scene.pose(self._target)[0] - self._scene.pose(self._item)[0])[:2], 0.0)

    def _measure_offset(self) -> np.ndarray:
        """Return the vector (3,) from the hand to where its fingers touch the object from behind."""
        middle = self._scene.pose(self._item)[0]
        points = self._scene.points(self._bodies) - middle
        aside = np.abs(points @ self._turn[:, 0])
        fingers = (aside > OPENING / 2) & (aside < OPENING / 2 + FINGER_THICK[0])
        back = float((-points @ self._face)[fingers].max())
        tips = float(sample_hand_points(self._turn, OPENING)[:, 2].min())
        low = self._scene.floor_height(middle + (0, 0, 0.05)) + ABOVE - tips
        goal = np.append(middle[:2], low) - (back + FINGER_HALF) * self._face
        return goal - self._scene.hand_pose()[0]

    def _reach(self) -> np.ndarray:
        if self._measure_way() @ self._face < ARRIVED:
            return self._push()
        here, now = self._scene.hand_pose()
        start = self._measure_offset() - BEHIND * self._face
        askew = float(np.linalg.norm(rotation_vector(self._turn @ now.T)))
        if np.linalg.norm(start[:2]) < 0.015 and abs(start[2]) < DOWN and askew < ASKEW:
            if abs(start[2]) < 0.005:
                self._phase = self._push
            return move_straight(self._scene, here + start, self._turn, OPEN)  # move_over would avoid its rim
        return self._move_hand_over(start, self._turn, OPEN)

    def _push(self) -> np.ndarray:
        here, _ = self._scene.hand_pose()
        way, offset = self._measure_way(), self._measure_offset()
        left, ahead = float(way @ self._face), float(offset @ self._face)
        if left < ARRIVED:
            self._phase, self._from = self._leave, here
        beside = offset - ahead * self._face
        if np.linalg.norm(beside) > 0.05 or ahead < -0.03:  # the fingers have lost the object
            self._phase, self._field = self._reach, None
        beside += limit_norm(way - left * self._face - self._left_over, STEER)
        action = move_straight(self._scene, here + beside, self._turn, OPEN)
        action[:3] = limit_norm(action[:3] + self._face * (PUSHING * min(1.0, left / 0.03)), SPEED)
        return action

    def _leave(self) -> np.ndarray:
        self._finished = bool(self._scene.hand_pose()[0][2] > self._from[2] + AWAY)
        return move_straight(self._scene, self._from - STANDOFF * self._face + (0, 0, AWAY + 0.03), None, OPEN)


def leaning_rotation(way: np.ndarray) -> np.ndarray:
    """Return the rotation (3, 3) of a hand that pushes along `way` (3,), the palm leaning over the object."""
    angle = float(np.arctan2(way[1], way[0]))
    down = grasps.hand_rotation(angle if angle > -np.pi / 3 else angle + np.pi)
    return rotation_about(np.cross(way, (0.0, 0.0, 1.0)), -LEAN) @ down
