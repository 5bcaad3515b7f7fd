"""How the hand of a scripted expert moves: a pose to reach becomes an action, over whatever stands in the way."""

from __future__ import annotations

import numpy as np

from anyvla_sim.libero.geometry import HeightMap, Scene

OPEN, CLOSE = -1.0, 1.0
METRES, RADIANS = 0.05, 0.5  # what an action of 1 commands (OSC_POSE of LIBERO)
SPEED = 0.75  # share of the largest command that the hand moves at
GAIN, TURN_GAIN = np.array([2.0, 2.0, 3.5]), 2.5  # of what is left, commanded at once; small commands do not move it
TURN_SPEED = 0.5
LEAD = 0.05  # s that the controller lags: where the hand will be by then is what counts
CLEAR = 0.012  # m between what moves and what stands below
ROOMY = 0.04  # m more of that, far from the goal
SLOPE = 1.0  # the steepest climb towards something to pass over
AHEAD = np.concatenate([[0.0], np.arange(0.015, 0.33, 0.02)])  # m along the way that are looked at


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """The axis times the angle (3,), rad, of a rotation (3, 3)."""
    angle = float(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1.0, 1.0)))
    skew = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    length = float(np.linalg.norm(skew))
    return skew * (angle / length) if length > 1e-6 else np.zeros(3)


def limited(vector: np.ndarray, most: float) -> np.ndarray:
    """`vector`, made no longer than `most`."""
    length = float(np.linalg.norm(vector))
    return vector * (most / length) if length > most else vector


def straight(
    scene: Scene, position: np.ndarray, rotation: np.ndarray | None, grip: float, speed: float = SPEED
) -> np.ndarray:
    """The action, float32 (7,), that brings the hand to a pose on a straight line. `rotation` None: as it is."""
    here, turn = scene.hand()
    action = np.zeros(7, np.float32)
    action[:3] = limited((position - here - LEAD * scene.velocity()) * (GAIN / METRES), speed)
    if rotation is not None:
        action[3:6] = limited(rotation_vector(rotation @ turn.T) * (TURN_GAIN / RADIANS), TURN_SPEED)
    action[6] = grip
    return action


def over(
    scene: Scene,
    field: HeightMap,
    moving: np.ndarray,
    shift: np.ndarray,
    rotation: np.ndarray,
    grip: float,
    align: float = 0.006,
) -> np.ndarray:
    """The action, float32 (7,), that moves `moving` by `shift` over everything in the way, down on its goal last.

    `field`: the heights of what does not move. `moving` (N, 3): points of the hand and what it holds. `align`: the
    distance in the plane, m, within which it goes down. The path is a function of the state: it climbs towards what
    is ahead, waits for the height where it must, and goes down in a funnel over the goal. From below an overhang it
    leaves sideways first, unless it is right over its goal.
    """
    _, turn = scene.hand()
    lead = LEAD * scene.velocity()
    action = np.zeros(7, np.float32)
    action[3:6] = limited(rotation_vector(rotation @ turn.T) * (TURN_GAIN / RADIANS), TURN_SPEED)
    action[6] = grip
    away = float(np.linalg.norm(shift[:2]))
    under = field.under(moving)
    if away > 2 * align and under.any() and not under.all():
        out = moving[:, :2].mean(0) - moving[under, :2].mean(0)
        rise = float(field.lift(moving[~under], np.zeros((1, 2)))[0]) + CLEAR
        action[:2] = out * (SPEED * _pace(rise) / max(float(np.linalg.norm(out)), 1e-6))
        action[2] = np.clip((rise - lead[2]) * (GAIN[2] / METRES), -SPEED, SPEED)
        return action
    askew = float(np.linalg.norm(rotation_vector(rotation @ turn.T)))
    along = AHEAD[away > AHEAD]
    direction = shift[:2] / max(away, 1e-6)
    lift = field.lift(moving, along[:, None] * direction) if len(along) else np.zeros(0)
    left = away - along
    need = lift + CLEAR + np.clip(left - 0.03, 0.0, ROOMY)
    near = left < 0.012 + align
    funnel = np.clip((left + 0.04 * max(askew - 0.1, 0.0) - align) / 0.010, 0.0, 1.0)
    need = np.where(near, shift[2] + funnel * np.maximum(need - shift[2], 0.0), need)
    rise = float(np.max(np.append(need - SLOPE * np.maximum(along - 0.01, 0.0), shift[2])))
    action[:2] = limited((shift[:2] - lead[:2]) * (GAIN[:2] / METRES), SPEED) * _pace(rise)
    action[2] = np.clip((rise - lead[2]) * (GAIN[2] / METRES), -SPEED, SPEED)
    action[:3] = limited(action[:3], SPEED)
    return action


def _pace(rise: float) -> float:
    """The share of the speed in the plane that is safe while `rise` (m) is missing."""
    return float(np.clip(1.0 - (rise - 0.01) / 0.03, 0.0, 1.0))
