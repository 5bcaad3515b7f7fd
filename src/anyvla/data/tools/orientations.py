"""Compares rotations of the actions with the orientation in the proprio, in any conventions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from anyvla.robot.rotations import Quaternions, read_rotations, relative
from anyvla.robot.space import Group


def orientation_mode(
    rows: Sequence[tuple[np.ndarray, np.ndarray]],
    proprio: tuple[Group, slice],
    actions: tuple[Group, slice],
) -> Literal["absolute", "delta"] | None:
    """Return the mode that the numbers show: actions are the next orientations, or the turns to these.

    `rows`: proprio and actions of episodes. Return None if neither is clear, or if the numbers are no rotations.
    """
    parts = []
    try:
        for p, a in rows:
            states = read_rotations(proprio[0], p[:, proprio[1]])
            parts.append((states[:-1], states[1:], read_rotations(actions[0], a[:, actions[1]])[:-1]))
    except ValueError:  # no rotation, or a unit that is no angle
        return None
    if not any(len(before) for before, _, _ in parts):
        return None
    before, after, action = (np.concatenate(part) for part in zip(*parts, strict=True))
    turned = _angle(before, after)
    spread = _angle(after, np.roll(after, len(after) // 2, axis=0))
    to_next = _angle(action, after)
    to_turn = min(_angle(action, relative(before, after, "base")), _angle(action, relative(before, after, "tool")))
    if to_next < 0.3 * spread and to_next < 0.5 * to_turn:
        return "absolute"
    return "delta" if to_turn < 0.3 * turned and to_turn < 0.5 * to_next else None


def _angle(one: Quaternions, other: Quaternions) -> float:
    """Return the mean angle between orientations."""
    return float(np.mean(2 * np.arccos(np.clip(np.abs((one * other).sum(-1)), 0, 1))))
