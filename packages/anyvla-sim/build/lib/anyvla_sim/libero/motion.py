"""Motion of the expert's hand: actions that bring it to a pose, straight or over obstacles."""

from __future__ import annotations

import numpy as np

from anyvla_sim.libero.geometry import HeightMap, SceneGeometry

OPEN, CLOSE = -1.0, 1.0
METERS, RADIANS = 0.05, 0.5  # the motion that an action of 1 commands (OSC_POSE of LIBERO)
SPEED = 0.75  # the hand's speed as a fraction of the largest command
GAIN, TURN_GAIN = np.array([2.0, 2.0, 3.5]), 2.5  # of the remaining distance; above 1, as small commands move nothing
TURN_SPEED = 0.5
LEAD = 0.05  # s that the controller lags; positions are extrapolated by it
CLEAR = 0.012  # m between the hand and the obstacles below
ROOMY = 0.04  # m of further clearance, far from the goal
SLOPE = 1.0  # the steepest climb towards an obstacle
AHEAD = np.concatenate([[0.0], np.arange(0.015, 0.33, 0.02)])  # m along the way at which obstacles are checked


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Return the axis times the angle (3,), rad, of a rotation (3, 3)."""
    angle = float(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1.0, 1.0)))
    skew = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    length = float(np.linalg.norm(skew))
    return skew * (angle / length) if length > 1e-6 else np.zeros(3)


def limit_norm(vector: np.ndarray, most: float) -> np.ndarray:
    """Return `vector`, shortened to the length `most` if it is longer."""
    length = float(np.linalg.norm(vector))
    return vector * (most / length) if length > most else vector


def move_straight(scene: SceneGeometry, position: np.ndarray, rotation: np.ndarray | None, grip: float) -> np.ndarray:
    """Return the action, float32 (7,), towards a pose on a straight line. Without `rotation` the hand does not turn."""
    here, turn = scene.hand_pose()
    action = np.zeros(7, np.float32)
    action[:3] = limit_norm((position - here - LEAD * scene.hand_velocity()) * (GAIN / METERS), SPEED)
    if rotation is not None:
        action[3:6] = limit_norm(rotation_vector(rotation @ turn.T) * (TURN_GAIN / RADIANS), TURN_SPEED)
    action[6] = grip
    return action


def move_over(
    scene: SceneGeometry,
    field: HeightMap,
    moving: np.ndarray,
    shift: np.ndarray,
    rotation: np.ndarray,
    grip: float,
    align: float = 0.006,
) -> np.ndarray:
    """Return the action, float32 (7,), that moves `moving` by `shift` over all obstacles and then down on the goal.

    `field` holds the heights of the scene without the moving points. `moving` (N, 3) are the points of the hand and of
    the object it holds. `align` is the distance in the plane, m, within which the hand goes down.

    The path depends on the current state alone: it climbs towards obstacles ahead, waits where it is too low, and
    goes down in a funnel over the goal. A hand below an overhang leaves it sideways first, unless it is over its goal.
    """
    _, turn = scene.hand_pose()
    lead = LEAD * scene.hand_velocity()
    action = np.zeros(7, np.float32)
    action[3:6] = limit_norm(rotation_vector(rotation @ turn.T) * (TURN_GAIN / RADIANS), TURN_SPEED)
    action[6] = grip
    away = float(np.linalg.norm(shift[:2]))
    under = field.is_under(moving)
    if away > 2 * align and under.any() and not under.all():
        out = moving[:, :2].mean(0) - moving[under, :2].mean(0)
        rise = float(field.required_rise(moving[~under], np.zeros((1, 2)))[0]) + CLEAR
        action[:2] = out * (SPEED * _pace(rise) / max(float(np.linalg.norm(out)), 1e-6))
        action[2] = np.clip((rise - lead[2]) * (GAIN[2] / METERS), -SPEED, SPEED)
        return action
    askew = float(np.linalg.norm(rotation_vector(rotation @ turn.T)))
    along = AHEAD[away > AHEAD]
    direction = shift[:2] / max(away, 1e-6)
    lift = field.required_rise(moving, along[:, None] * direction) if len(along) else np.zeros(0)
    left = away - along
    need = lift + CLEAR + np.clip(left - 0.03, 0.0, ROOMY)
    near = left < 0.012 + align
    funnel = np.clip((left + 0.04 * max(askew - 0.1, 0.0) - align) / 0.010, 0.0, 1.0)
    need = np.where(near, shift[2] + funnel * np.maximum(need - shift[2], 0.0), need)
    rise = float(np.max(np.append(need - SLOPE * np.maximum(along - 0.01, 0.0), shift[2])))
    action[:2] = limit_norm((shift[:2] - lead[:2]) * (GAIN[:2] / METERS), SPEED) * _pace(rise)
    action[2] = np.clip((rise - lead[2]) * (GAIN[2] / METERS), -SPEED, SPEED)
    action[:3] = limit_norm(action[:3], SPEED)
    return action


def _pace(rise: float) -> float:
    """Return the fraction of the horizontal speed that is safe while the hand still has to climb `rise` (m)."""
    return float(np.clip(1.0 - (rise - 0.01) / 0.03, 0.0, 1.0))
