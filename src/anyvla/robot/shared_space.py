"""One vector for several robots: the union of their groups by name, and the indices of each robot's dims in it.

So a 4-D arm, a 7-D arm and a 14-D pair of arms fit in one batch. For a single robot the union is its own space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int64

from anyvla.robot.space import ActionSpace, Group

_SAME = ("size", "kind", "mode", "rotation")  # must be equal in two groups of one name


def merge_spaces(spaces: Mapping[str, ActionSpace], what: str) -> ActionSpace:
    """Return the space of all groups of these robots (name -> space), in the order in which they first appear.

    `what` ("action" | "proprio") is the name of the vector in errors. Raises ValueError if two groups of one name have
    different sizes, kinds, modes, rotations or (if both declare one) frames, or are grippers with different ranges of
    which one does not declare the end at which it is open.
    """
    groups: dict[str, Group] = {}
    first: dict[str, str] = {}  # group -> the robot it was first seen in
    for robot, space in spaces.items():
        for group in space.groups:
            if group.name in groups:
                groups[group.name] = _merge(groups[group.name], group, f"{what} group", first[group.name], robot)
            else:
                groups[group.name], first[group.name] = group, robot
    return ActionSpace(groups=tuple(groups.values()))


def dim_indices(space: ActionSpace, whole: ActionSpace) -> Int64[np.ndarray, "A"]:
    """Return the index in the union `whole` of each dim of `space`."""
    where = whole.slices()
    parts = [np.arange(where[g.name].start, where[g.name].stop) for g in space.groups]
    return np.concatenate([np.empty(0, np.int64), *parts])  # a robot may have no proprio


def _merge(one: Group, other: Group, what: str, robot: str, other_robot: str) -> Group:
    differing = [key for key in _SAME if getattr(one, key) != getattr(other, key)]
    if one.frame and other.frame and one.frame != other.frame:
        differing.append("frame")
    if differing:
        differences = ", ".join(f"{key} {getattr(one, key)!r} and {getattr(other, key)!r}" for key in differing)
        raise ValueError(
            f"{what} {one.name!r} means different things in {robot} and {other_robot}: {differences}. Convert one of "
            "the sources (rotation: rot6d, frame: base, ...), or give the group another name in its embodiment"
        )
    if one.names != other.names:
        one, other = dataclasses.replace(one, names=()), dataclasses.replace(other, names=())
    if one.kind != "gripper":
        same_range = (one.low, one.high) == (other.low, other.high)
        merged = dataclasses.replace(
            one, frame=one.frame or other.frame, unit=one.unit if one.unit == other.unit else ""
        )
        return merged if same_range else dataclasses.replace(merged, low=None, high=None)
    if (one.low, one.high, one.open) == (other.low, other.high, other.open):
        return one
    for group, owner in ((one, robot), (other, other_robot)):
        if group.open is None:
            raise ValueError(
                f"{what} {one.name!r} has another range in {robot} than in {other_robot}, and {owner} does not say at "
                f"which end its gripper is open: declare open: {group.low:g} or open: {group.high:g} in its embodiment"
            )
    return dataclasses.replace(one, low=-1.0, high=1.0, open=1.0, unit="")
