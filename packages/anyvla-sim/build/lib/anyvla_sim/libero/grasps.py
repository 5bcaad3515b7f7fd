"""Grasps of a parallel gripper, searched on points of an object's surface. No table of objects is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Sequence

import numpy as np

from anyvla_sim.libero.geometry import FINGER_HALF, FINGER_THICK, OPENING, PALM, PALM_HALF, TIP, WRIST, WRIST_RADIUS

PAD = (-0.0116, 0.0044)  # m; the extent of the finger pads along the hand's z
PAD_HALF = 0.008
ROOM = 0.003  # m kept free on each side of an open finger
STEP = 0.005  # m between candidates
REACH, FAR = 0.72, 3.0  # m from the robot's base at which its elbow is nearly straight; cost of each meter beyond
BESIDE, TIGHT = 0.012, 10.0  # m between the wrist and obstacles beside it; cost of each meter less
AGAIN = 0.1  # cost of a place that has been tried before
SWEEP = 0.3  # m of free approach along the hand's z
DOWN = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # palm down, fingers close along the world's y


@dataclass(frozen=True)
class Grasp:
    """A pose of the open hand with something between its fingers."""

    position: np.ndarray  # (3,), between the finger tips, in the world
    rotation: np.ndarray  # (3, 3): columns are the hand's x (fingers close), y and z (out of the palm)
    width: float  # of the part between the fingers, m
    cost: float  # lower is better


def hand_rotation(angle: float) -> np.ndarray:
    """Return the rotation (3, 3) of a hand that points down and is turned by `angle` (rad) about the vertical."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]) @ DOWN


def list_downward_rotations(step: float = np.pi / 12) -> list[tuple[np.ndarray, float]]:
    """Return hand rotations that point down, each with its cost: turning the wrist costs.

    They cover half a turn, since the fingers are alike, on the side where the last joint is far from its limit.
    """
    angles = np.arange(-4, 8) * step
    return [(hand_rotation(a), 0.03 * abs(a)) for a in angles]


def list_tilted_rotations(forward: np.ndarray, angles: Sequence[float]) -> list[tuple[np.ndarray, float]]:
    """Return hand rotations tilted by `angles` (rad from vertical) towards the horizontal direction `forward` (3,)."""
    found = []
    for angle in angles:
        z = np.sin(angle) * forward + np.array([0.0, 0.0, -np.cos(angle)])
        x = -np.cos(angle) * forward + np.array([0.0, 0.0, -np.sin(angle)])
        found.append((np.stack([x, np.cross(z, x), z], 1), 0.05 * abs(angle - np.pi / 3)))
    return found


def find_grasp(
    target: np.ndarray,
    others: np.ndarray,
    rotations: Iterable[tuple[np.ndarray, float]],
    floor: float,
    base: np.ndarray,
    failed: Sequence[np.ndarray] = (),
) -> Grasp | None:
    """Return the best grasp of an object, or None if no part of it fits between the fingers.

    `target` (N, 3) are points on the object and `others` (M, 3) points on everything around it. `rotations` are hand
    rotations with a cost each. Finger tips stay above the height `floor`. `base` (2,) is the position of the robot.
    `failed` are positions (3,) of grasps that have failed before.
    """
    middle = (target.min(0) + target.max(0)) / 2
    best: Grasp | None = None
    for rotation, extra in rotations:
        inside, ideal = target @ rotation, middle @ rotation
        around = np.concatenate([inside, others @ rotation])
        foreign = np.arange(len(around)) >= len(inside)
        low, high = inside.min(0), inside.max(0)
        depths = np.arange(low[2] - 0.001, min(high[2], low[2] + TIP - PALM), STEP)  # of the hand, from the near side
        for y in _sample_around(ideal[1], low[1], high[1]):
            strip = inside[np.abs(inside[:, 1] - y) < PAD_HALF]
            wide = around[np.abs(around[:, 1] - y) < PALM_HALF[1] + ROOM]
            close = np.abs(around[:, 1] - y) < FINGER_HALF + ROOM
            narrow, between = around[close], around[close & foreign]
            beside = around[np.abs(around[:, 1] - y) < WRIST_RADIUS + BESIDE]
            for z in depths:
                if rotation[2, 2] < -0.9 and (rotation @ (0.0, y, z + TIP))[2] < floor:
                    break
                pads = strip[(strip[:, 2] > z + PAD[0]) & (strip[:, 2] < z + PAD[1])]
                for low_x, high_x in _find_graspable_parts(pads[:, 0]):
                    x = (low_x + high_x) / 2
                    if not _is_free(wide, narrow, between, x, z):
                        continue
                    at = np.array([x, y, z])
                    cost = extra + _measure_cost(pads, low_x, high_x, at, ideal)
                    cost += FAR * max(0.0, float(np.linalg.norm((rotation @ at)[:2] - base)) - REACH)
                    cost += TIGHT * _measure_crowding(beside, at)
                    cost += AGAIN * sum(float(np.linalg.norm(rotation @ at - f)) < 0.03 for f in failed)
                    if best is None or cost < best.cost:
                        best = Grasp(rotation @ at, rotation, high_x - low_x, cost)
    return best


def _sample_around(ideal: float, low: float, high: float) -> Sequence[float]:
    """Return candidates that include the ideal, so that symmetric objects are grasped in their middle."""
    count_low, count_high = int((ideal - low) / STEP), int((high - ideal) / STEP)
    return [ideal + k * STEP for k in range(-count_low, count_high + 1)]


def _find_graspable_parts(x: np.ndarray) -> list[tuple[float, float]]:
    """Return the parts of a slice with room for a finger on both sides, as extents along the closing direction."""
    if len(x) < 4:
        return []
    x = np.sort(x)
    cuts = np.flatnonzero(np.diff(x) > 0.012)
    starts, ends = np.r_[0, cuts + 1], np.r_[cuts, len(x) - 1]
    return [(x[a], x[b]) for a, b in zip(starts, ends) if x[b] - x[a] < OPENING - 2 * ROOM]


def _is_free(wide: np.ndarray, narrow: np.ndarray, between: np.ndarray, x: float, z: float) -> bool:
    """Return whether hand and approach are free of obstacles, and only the target is between the open fingers."""
    if np.any(
        (np.abs(between[:, 0] - x) < OPENING / 2) & (between[:, 2] < z + TIP + ROOM) & (between[:, 2] > z - SWEEP)
    ):
        return False
    aside = np.abs(narrow[:, 0] - x)
    reach = narrow[:, 2] < z + TIP + ROOM
    came = narrow[:, 2] > z - SWEEP
    if np.any((aside > OPENING / 2 - ROOM) & (aside < OPENING / 2 + FINGER_THICK[0] + ROOM) & reach & came):
        return False
    if np.any((aside > OPENING / 2) & (aside < OPENING / 2 + FINGER_THICK[1]) & (narrow[:, 2] < z - 0.012) & came):
        return False
    palm = (np.abs(wide[:, 0] - x) < PALM_HALF[0]) & (wide[:, 2] < z + PALM + ROOM) & (wide[:, 2] > z - SWEEP)
    return not np.any(palm)


def _measure_cost(pads: np.ndarray, low: float, high: float, at: np.ndarray, ideal: np.ndarray) -> float:
    """Return a cost that grows with the distance from the object's middle, with unevenness under the pads and width."""
    uneven = 0.0  # of two sides, across and along the pads
    for side in (np.abs(pads[:, 0] - low) < 0.003, np.abs(pads[:, 0] - high) < 0.003):
        spread = pads[side]
        across = np.ptp(spread[:, 1]) / (2 * PAD_HALF)
        along = np.ptp(spread[:, 2]) / (PAD[1] - PAD[0])
        uneven += (1 - min(across, 1)) + 2 * (1 - min(along, 1))
    offset = at - ideal
    return (
        0.03 * uneven + 0.5 * float(np.hypot(offset[0], offset[1])) + 1.0 * abs(float(offset[2])) + 0.1 * (high - low)
    )


def _measure_crowding(points: np.ndarray, at: np.ndarray) -> float:
    """Return how far (m) obstacles reach into the room of the wrist, where they may hinder it."""
    high = (points[:, 2] < at[2] + WRIST) & (points[:, 2] > at[2] - SWEEP)
    away = np.hypot(*(points[high, :2] - at[:2]).T)
    return float(np.max(WRIST_RADIUS + BESIDE - away, initial=0.0))
