"""Skills of a scripted expert of LIBERO that move what does not leave its place: drawers, knobs, plates on a table."""

from __future__ import annotations

from typing import Callable

import numpy as np

from anyvla_sim.base import ExpertStuck
from anyvla_sim.libero import grasps
from anyvla_sim.libero.geometry import FINGER_HALF, FINGER_THICK, OPENING, TIP, HeightMap, Joint, Scene, hand_points
from anyvla_sim.libero.motion import CLOSE, OPEN, SPEED, limited, over, rotation_vector, straight

HANDLE = 0.018  # m of a drawer, from its front, in which its handle is looked for
STANDOFF = 0.07  # m before a handle from where the hand comes straight
AHEAD = (0.03, 0.25)  # m and rad along a joint that the hand goes for
CLOSING = 12  # steps that fingers get to close
LET_GO = 6  # steps that they get to open
AWAY = 0.09  # m that the hand leaves
ABOVE, BEHIND = 0.004, 0.015  # m over the table, and behind a flat thing, where fingers start to push it
LEAN = np.deg2rad(20)  # of the palm over it
PUSHING = 0.5  # the command that pushes
ARRIVED, STEER = 0.008, 0.018  # m from its goal at which it is left there, and that the hand steers aside
CORNER = 0.04  # m; what lies further aside than this cannot be steered to on the way
DOWN = 0.06  # m over where the fingers start to push, from which they go straight down
ASKEW = 0.3  # rad; a hand that is turned further goes no lower: its palm would sweep the plate away
PUSH = np.pi / 4  # rad from vertical at which a drawer is pushed


def turn_about(axis: np.ndarray, angle: float) -> np.ndarray:
    """The rotation (3, 3) by `angle` rad about a unit vector (3,)."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


class Move:
    """Take a drawer by its handle, or a knob, and move it along its joint."""

    def __init__(self, scene: Scene, joint: str, sign: float, there: Callable[[], bool]) -> None:
        """`sign`: 1 | -1, the direction along the joint; `there`: whether it has moved far enough."""
        self._scene, self._joint, self._sign, self._there = scene, joint, sign, there
        self._phase = "reach"
        self._steps = 0
        self._field: HeightMap | None = None
        body = self._scene.joint(joint).body
        self._body, self._bodies = body, scene.bodies(body)
        self._grasp = self._plan()

    def done(self) -> bool:
        return self._phase == "done"

    def action(self) -> np.ndarray:
        return getattr(self, "_" + self._phase)()

    def _plan(self) -> tuple[np.ndarray, np.ndarray]:
        joint = self._scene.joint(self._joint)
        points = self._scene.points(self._bodies)
        if joint.slides:
            out = joint.axis * self._sign
            along = points @ out
            handle = along > along.max() - HANDLE
            rotations = grasps.tilted(-out, np.deg2rad([50, 60, 70, 80, 90]).tolist())
            rest = points[~handle]
            points = points[handle]
        else:
            rotations, rest = grasps.from_above(), points[:0]
        around = self._scene.around(points.mean(0), 0.2, self._bodies)
        found = grasps.find(
            points,
            np.concatenate([around, rest]),
            rotations,
            self._scene.floor(points.max(0)) + 0.003,
            self._scene.base,
        )
        if found is None:
            raise ExpertStuck(f"no grasp of {self._body}: nothing of it fits between the open fingers")
        position, rotation = self._scene.pose(self._body)
        return rotation.T @ (found.position - position), rotation.T @ found.rotation

    def _goal(self) -> tuple[np.ndarray, np.ndarray]:
        position, rotation = self._scene.pose(self._body)
        return position + rotation @ self._grasp[0], rotation @ self._grasp[1]

    def _reach(self) -> np.ndarray:
        goal, turn = self._goal()
        here, now = self._scene.hand()
        start = goal - STANDOFF * turn[:, 2]
        if self._field is None:
            self._field = self._scene.heights()
        if np.linalg.norm(start - here) < 0.025 and np.linalg.norm(rotation_vector(turn @ now.T)) < 0.15:
            self._phase = "insert"
            return self._insert()
        hand = hand_points(now, self._scene.opening()) + here
        return over(self._scene, self._field, hand, start - here, turn, OPEN, align=0.03)

    def _insert(self) -> np.ndarray:
        goal, turn = self._goal()
        here, _ = self._scene.hand()
        offset = goal - here
        depth = float(offset @ turn[:, 2])
        aside = float(np.linalg.norm(offset - depth * turn[:, 2]))
        if aside < 0.008 and depth < 0.006:
            self._phase, self._steps, self._hold = "close", 0, (goal, turn)
            return self._close()
        back = STANDOFF * float(np.clip((aside - 0.006) / 0.01, 0.0, 1.0))
        return straight(self._scene, goal - back * turn[:, 2], turn, OPEN)

    def _close(self) -> np.ndarray:
        self._steps += 1
        if (self._steps > 5 and self._scene.held(self._bodies)) or self._steps > CLOSING:
            self._phase = "move"
        return straight(self._scene, *self._hold, CLOSE)

    def _move(self) -> np.ndarray:
        if self._there():
            self._phase, self._steps = "release", 0
            return self._release()
        joint = self._scene.joint(self._joint)
        goal, turn = self._goal()
        here, _ = self._scene.hand()
        if np.linalg.norm(goal - here) > 0.03:  # slipped off
            self._phase, self._field = "reach", None
            return self._reach()
        return straight(self._scene, *self._further(joint, goal, turn), CLOSE)

    def _further(self, joint: Joint, goal: np.ndarray, turn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if joint.slides:
            return goal + joint.axis * (self._sign * AHEAD[0]), turn
        by = turn_about(joint.axis, self._sign * AHEAD[1])
        return joint.anchor + by @ (goal - joint.anchor), by @ turn

    def _release(self) -> np.ndarray:
        self._steps += 1
        if self._steps > LET_GO:
            self._phase = "leave"
            self._from = self._scene.hand()[0]
        return np.array([0, 0, 0, 0, 0, 0, OPEN], np.float32)

    def _leave(self) -> np.ndarray:
        here, now = self._scene.hand()
        if np.linalg.norm(here - self._from) > AWAY:
            self._phase = "done"
        return straight(self._scene, self._from - (AWAY + 0.03) * now[:, 2], None, OPEN)


class Shut:
    """Push a drawer in with closed fingers."""

    def __init__(self, scene: Scene, joint: str, sign: float, there: Callable[[], bool]) -> None:
        """`sign`: 1 | -1, the direction along the joint; `there`: whether it is shut."""
        self._scene, self._joint, self._sign, self._there = scene, joint, sign, there
        self._phase = "reach"
        self._field: HeightMap | None = None
        self._from = np.zeros(3)  # where it left from
        self._bodies = scene.bodies(scene.joint(joint).body)

    def done(self) -> bool:
        return self._phase == "done"

    def action(self) -> np.ndarray:
        here, now = self._scene.hand()
        into = self._scene.joint(self._joint).axis * self._sign
        turn = grasps.tilted(into, [PUSH])[0][0]
        if self._phase == "leave":
            if np.linalg.norm(here - self._from) > AWAY:
                self._phase = "done"
            return straight(self._scene, self._from - (AWAY + 0.03) * into, None, CLOSE)
        if self._there():
            self._phase, self._from = "leave", here
        points = self._scene.points(self._bodies)
        front = points[points @ into < (points @ into).min() + HANDLE].mean(0) - turn[:, 2] * TIP
        if self._phase == "reach":
            start = front - 0.05 * into
            if np.linalg.norm(start - here) < 0.015:
                self._phase = "push"
            if self._field is None:
                self._field = self._scene.heights()
            hand = hand_points(now, self._scene.opening()) + here
            return over(self._scene, self._field, hand, start - here, turn, CLOSE, align=0.02)
        return straight(self._scene, front + into * AHEAD[0], turn, CLOSE)


class Push:
    """Slide a flat thing over the table, with open fingers behind it: two points of contact keep it on its way."""

    def __init__(self, scene: Scene, item: str, target: str) -> None:
        """`item`: an object, wide and flat; `target`: a site on the table."""
        self._scene, self._item, self._target = scene, item, target
        self._bodies = scene.bodies(item)
        self._phase = "reach"
        self._field: HeightMap | None = None
        self._from = np.zeros(3)  # where it left from
        way = np.append((scene.pose(target)[0] - scene.pose(item)[0])[:2], 0.0)
        along = int(np.argmax(np.abs(way)))
        self._face = np.eye(3)[along] * np.sign(way[along])  # where it is pushed to
        aside = way - (way @ self._face) * self._face
        self._left_over = aside if np.linalg.norm(aside) > CORNER else np.zeros(3)  # to another push, round the corner

    def done(self) -> bool:
        return self._phase == "done"

    def action(self) -> np.ndarray:
        here, now = self._scene.hand()
        middle = self._scene.pose(self._item)[0]
        way = np.append(self._scene.pose(self._target)[0][:2] - middle[:2], 0.0)
        left = float(way @ self._face)
        if self._phase == "leave":
            if here[2] > self._from[2] + AWAY:
                self._phase = "done"
            return straight(self._scene, self._from - STANDOFF * self._face + (0, 0, AWAY + 0.03), None, OPEN)
        if left < ARRIVED:
            self._phase, self._from = "leave", here
        turn = leaning(self._face)
        side = turn[:, 0]
        points = self._scene.points(self._bodies) - middle
        aside = np.abs(points @ side)
        back = float((-points @ self._face)[(aside > OPENING / 2) & (aside < OPENING / 2 + FINGER_THICK[0])].max())
        low = self._scene.floor(middle + (0, 0, 0.05)) + ABOVE - float(hand_points(turn, OPENING)[:, 2].min())
        goal = np.append(middle[:2], low) - (back + FINGER_HALF) * self._face
        offset = goal - here
        if self._phase == "reach":
            start = offset - BEHIND * self._face
            askew = float(np.linalg.norm(rotation_vector(turn @ now.T)))
            if np.linalg.norm(start[:2]) < 0.015 and abs(start[2]) < DOWN and askew < ASKEW:
                if abs(start[2]) < 0.005:
                    self._phase = "push"
                return straight(self._scene, here + start, turn, OPEN)  # its rim is no overhang to avoid
            if self._field is None:
                self._field = self._scene.heights()
            hand = hand_points(now, self._scene.opening()) + here
            return over(self._scene, self._field, hand, start, turn, OPEN)
        ahead = float(offset @ self._face)
        beside = offset - ahead * self._face
        if np.linalg.norm(beside) > 0.05 or ahead < -0.03:  # it came off
            self._phase, self._field = "reach", None
        beside += limited(way - left * self._face - self._left_over, STEER)
        action = straight(self._scene, here + beside, turn, OPEN)
        action[:3] = limited(action[:3] + self._face * (PUSHING * min(1.0, left / 0.03)), SPEED)
        return action


def leaning(way: np.ndarray) -> np.ndarray:
    """A hand (3, 3) behind something that goes `way` (3,): both fingers at its back, the palm leaning over it."""
    angle = float(np.arctan2(way[1], way[0]))
    down = grasps.turned(angle if angle > -np.pi / 3 else angle + np.pi)
    return turn_about(np.cross(way, (0.0, 0.0, 1.0)), -LEAN) @ down
