"""The meaning of an action or proprio vector: named groups with a kind, a mode and a unit.

An `ActionSpace` travels inside datasets (`meta/info.json`) and checkpoints, so that a policy can refuse a robot whose
actions mean something else. The same class describes proprioception.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT
from anyvla.limits import DIMS, VALUE

# euler: roll, pitch, yaw about fixed x, y, z ("xyz" of scipy). rot6d: the first two columns of the matrix, one after
# the other (arXiv 1812.07035).
Rotation = Literal["euler", "axis_angle", "quaternion_xyzw", "quaternion_wxyz", "rot6d"]
ROTATION_DIMS: dict[Rotation, int] = {
    "euler": 3,
    "axis_angle": 3,
    "quaternion_xyzw": 4,
    "quaternion_wxyz": 4,
    "rot6d": 6,
}


Value = Annotated[float, Field(ge=-VALUE, le=VALUE)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Group:
    """Consecutive dims with one meaning."""

    name: str  # "position", "rotation", "gripper", "joints", "left_joints", ...
    size: int = Field(ge=1, le=DIMS)  # dims
    kind: Literal["position", "rotation", "gripper", "joints", "other"] = "other"  # the meaning of the dims
    mode: Literal["absolute", "delta"] = "absolute"  # delta: a change, not a value
    low: Value | None = None  # the declared range; grippers are scaled by it, never by quantiles
    high: Value | None = None  # the other end of the range
    unit: str = ""  # "m", "rad", "m/s"
    rotation: Rotation | None = None  # how a rotation is written; None: not known, cannot be converted
    frame: Literal["", "base", "tool"] = ""  # the frame of a position or rotation; "": not known
    open: Value | None = None  # of a gripper: the end of its range at which it is open; None: not known
    # Of each dim, for people, as the data calls it: "elbow_flex.pos". They mean nothing: groups compare without them.
    names: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if self.names and len(self.names) != self.size:
            raise ValueError(f"group {self.name!r}: {len(self.names)} names for {self.size} dims: {list(self.names)}")
        if (self.low is None) != (self.high is None):
            raise ValueError(f"group {self.name!r}: give both low and high, or neither")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"group {self.name!r}: low {self.low} must be below high {self.high}")
        if self.low is not None and np.float32(self.low) == np.float32(self.high):
            raise ValueError(f"group {self.name!r}: low {self.low} and high {self.high} are one number in float32")
        if self.kind == "gripper" and self.low is None:
            raise ValueError(f"group {self.name!r}: a gripper needs its declared range (low, high)")
        if self.open is not None and (self.kind != "gripper" or self.open not in (self.low, self.high)):
            raise ValueError(
                f"group {self.name!r}: open {self.open:g} must be the end of a gripper's range at which it is open, "
                f"low or high ({self.low}, {self.high})"
            )
        if self.rotation is not None and (self.kind != "rotation" or self.size != ROTATION_DIMS[self.rotation]):
            raise ValueError(
                f"group {self.name!r}: {self.rotation} is a rotation of {ROTATION_DIMS[self.rotation]} dims, the group "
                f"is of kind {self.kind!r} and has {self.size}"
            )

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in write(self).items() if key != "names" or value}

    def label(self, dim: int) -> str:
        """Return the number of a dim within the group, and its name where it has one: "2 (elbow_flex.pos)"."""
        return f"{dim} ({self.names[dim]})" if self.names else str(dim)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ActionSpace:
    """The groups of a vector, in order."""

    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        names = [g.name for g in self.groups]
        if len(set(names)) != len(names):
            raise ValueError(f"group names must differ: {names}")
        if self.size > DIMS:
            raise ValueError(f"{self.size} dims are more than the {DIMS} that a vector may have")

    @property
    def size(self) -> int:
        """Return the number of dims."""
        return sum(g.size for g in self.groups)

    def slices(self) -> dict[str, slice]:
        """Return the slice of each group in the vector."""
        out, start = {}, 0
        for g in self.groups:
            out[g.name] = slice(start, start + g.size)
            start += g.size
        return out

    def with_names(self, names: Sequence[str]) -> ActionSpace:
        """Return the space with these names of all its dims, for the groups without names."""
        if len(names) != self.size:
            return self
        named = [
            group if group.names else dataclasses.replace(group, names=tuple(names[place]))
            for group, place in zip(self.groups, self.slices().values(), strict=True)
        ]
        return ActionSpace(groups=tuple(named))

    def locate(self, dim: int) -> str:
        """Return where a dim of the vector is, for messages: "group 'joints', dim 2 (elbow_flex.pos)"."""
        for group, place in zip(self.groups, self.slices().values(), strict=True):
            if place.start <= dim < place.stop:
                return f"group {group.name!r}, dim {group.label(dim - place.start)}"
        raise IndexError(f"no dim {dim} among {self.size}")


def label_dims(group: Group) -> list[str]:
    """Return the name of each dim as the data has it, else x, y, z of positions, r, p, y of angles, or numbers."""
    short = {"position": "xyz", "rotation": "rpy" if group.rotation == "euler" else ""}.get(group.kind, "")
    plain = list(short) if len(short) == group.size else [str(i) for i in range(group.size)]
    return list(group.names) or plain
