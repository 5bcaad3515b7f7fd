"""Converts the rotations of a data set to another convention, and its delta actions to another frame, exactly."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from anyvla.data.episode import Episode, EpisodeDataset
from anyvla.data.transforms.wrapped import WrappedDataset
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.rotations import (
    canonicalize,
    check_convertible,
    compose,
    invert,
    make_continuous,
    read_rotations,
    rotate,
    write_rotations,
)
from anyvla.robot.space import ROTATION_DIMS, ActionSpace, Group, Rotation


@dataclass(frozen=True)
class _Rewrite:
    """The conversion of one group."""

    source: Group
    target: Group
    # for deltas whose frame changes: the group of the proprio that is the tool's orientation, and its position
    orientation: tuple[Group, slice] | None = None


class Converted(WrappedDataset):
    """A data set with rotations in the convention `rotation` and delta actions in the frame `frame`.

    `rotation` applies to every group of kind rotation, of proprio and actions. Absolute quaternions are continuous
    along an episode and start with a real part >= 0; the real part of deltas is always >= 0. `frame` applies to every
    delta position and delta rotation of the actions, which are rotated by the orientation that the proprio has at that
    step. None changes nothing.

    A group that changes loses its declared range, which no longer holds for each of its dims. Raises ValueError for a
    group whose declaration is incomplete, with the key to declare.
    """

    def __init__(
        self,
        dataset: EpisodeDataset,
        rotation: Rotation | None = None,
        frame: Literal["base", "tool"] | None = None,
    ) -> None:
        robot = dataset.embodiment
        where = f"{dataset.root} (robot {robot.name})"
        self._proprio = [_plan(g, rotation, None, robot, f"{where}, proprio") for g in robot.proprio.groups]
        self._actions = [_plan(g, rotation, frame, robot, f"{where}, action") for g in robot.action.groups]
        change: dict[str, Any] = {"rotation": rotation, "frame": frame}
        embodiment = dataclasses.replace(
            robot,
            proprio=ActionSpace(groups=tuple(r.target for r in self._proprio)),
            action=ActionSpace(groups=tuple(r.target for r in self._actions)),
        )
        super().__init__(dataset, {k: v for k, v in change.items() if v is not None}, embodiment)

    def __getitem__(self, index: int) -> Episode:
        """Return episode `index`, converted. Raises ValueError for a step whose numbers are no rotation."""
        episode = self.dataset[index]
        where = episode.provenance or f"{self.root}, episode {index}"
        return dataclasses.replace(
            episode,
            embodiment=self.embodiment,
            proprio=_rewrite_groups(self._proprio, episode.proprio, episode.proprio, f"{where}, proprio"),
            actions=_rewrite_groups(self._actions, episode.actions, episode.proprio, f"{where}, action"),
        )


def arm_side(name: str) -> str:
    """Return the arm of a group by its name: "left" or "right", or "" for a single arm."""
    prefix = name.partition("_")[0]
    return prefix if prefix in ("left", "right") and prefix != name else ""


def _plan(
    group: Group, rotation: Rotation | None, frame: Literal["base", "tool"] | None, robot: Embodiment, where: str
) -> _Rewrite:
    where = f"{where} group {group.name!r}"
    target, orientation = group, None
    if rotation is not None and group.kind == "rotation" and group.rotation != rotation:
        check_convertible(group, where)
        unit = "rad" if rotation in ("euler", "axis_angle") else ""
        size = ROTATION_DIMS[rotation]
        target = dataclasses.replace(group, rotation=rotation, size=size, unit=unit, low=None, high=None, names=())
    if frame is not None and group.mode == "delta" and group.kind in ("position", "rotation") and group.frame != frame:
        if not group.frame:
            raise ValueError(f"{where}: its frame is not known; declare it (frame: base or frame: tool)")
        if group.kind == "position" and group.size != 3:
            raise ValueError(f"{where}: only x, y, z can change their frame, the group has {group.size} dims")
        if group.kind == "rotation":
            check_convertible(group, where)
        orientation = _find_orientation(group, robot, where)
        target = dataclasses.replace(target, frame=frame, low=None, high=None)
    return _Rewrite(group, target, orientation)


def _find_orientation(group: Group, robot: Embodiment, where: str) -> tuple[Group, slice]:
    """Find the orientation of the tool that the actions of `group` move. Raises ValueError if it is not unique."""
    found = [
        g
        for g in robot.proprio.groups
        if g.kind == "rotation" and g.mode == "absolute" and arm_side(g.name) == arm_side(group.name)
    ]
    if len(found) != 1:
        have = f"has {len(found)}: {', '.join(g.name for g in found)}" if found else "has none"
        raise ValueError(
            f"{where}: changing its frame needs the tool's orientation, one absolute rotation in the proprio of that "
            f"arm; it {have}"
        )
    own = found[0]
    if own.frame != "base":
        raise ValueError(
            f"{where}: changing its frame needs the tool's orientation in the base frame, but the proprio group "
            f"{own.name!r} does not declare its frame; declare it (frame: base)"
        )
    check_convertible(own, f"{where}: proprio group {own.name!r}")
    return own, robot.proprio.slices()[own.name]


def _rewrite_groups(
    rewrites: list[_Rewrite], values: Float32[np.ndarray, "T a"], proprio: Float32[np.ndarray, "T P"], where: str
) -> Float32[np.ndarray, "T A"]:
    parts, start = [], 0
    for rewrite in rewrites:
        own = values[:, start : start + rewrite.source.size]
        start += rewrite.source.size
        if rewrite.source != rewrite.target:
            try:
                own = _apply(rewrite, own, proprio)
            except ValueError as error:
                raise ValueError(f"{where} group {rewrite.source.name!r}, {error}") from None
        parts.append(own)
    return np.concatenate(parts, 1).astype(np.float32, copy=False) if parts else values


def _apply(rewrite: _Rewrite, values: np.ndarray, proprio: np.ndarray) -> np.ndarray:
    source, target = rewrite.source, rewrite.target
    turn = None
    if rewrite.orientation is not None:
        group, place = rewrite.orientation
        turn = read_rotations(group, proprio[:, place])
        turn = invert(turn) if target.frame == "tool" else turn
    if source.kind == "position":
        return values if turn is None else rotate(turn, values)
    rotation = read_rotations(source, values)
    if turn is not None:
        rotation = compose(compose(turn, rotation), invert(turn))
    rotation = canonicalize(rotation) if target.mode == "delta" else make_continuous(rotation)
    return write_rotations(target, rotation)
