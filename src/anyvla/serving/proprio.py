"""Read the proprio of a client's observation: by the groups of the robot, converted only as the mapping declares."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float32
from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT, ConfigError, build
from anyvla.limits import VALUE
from anyvla.registry import suggest
from anyvla.robot.rotations import canonicalize, check_convertible, compose, to_quaternions, write_rotations
from anyvla.robot.space import ROTATION_DIMS, ActionSpace, Group, Rotation
from anyvla.robot.units import unit_ratio
from anyvla.serving.arrays import read_vector
from anyvla.serving.limits import ServerLimits
from anyvla.serving.naming import quote
from anyvla.serving.observation_keys import MISSING, MissingKeyError, find, is_leaf

Value = Annotated[float, Field(ge=-VALUE, le=VALUE)]
_PARTS = re.compile(r"(.+)\[([0-9:, ]+)\]")  # key[3:6], key[4:7, 3]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ProprioKey:
    """The key of a group of the robot's proprio, and how the client writes its numbers."""

    # A path, or several whose numbers follow each other; "states[3:6]" and "states[4:7, 3]" are some of its numbers.
    key: str | tuple[str, ...]
    unit: str = ""  # of the client's numbers: "deg", "mm"; "": as the robot's
    rotation: Rotation | None = None  # how the client writes a rotation; None: as the robot
    # A fixed rotation (x, y, z, w) from the robot's tool frame to the client's; None: they are the same.
    tool: tuple[Value, Value, Value, Value] | None = None
    gripper: tuple[Value, Value] | None = None  # the client's numbers for open and closed; None: as the robot

    def __post_init__(self) -> None:
        if self.tool is not None and self.rotation is None:
            raise ValueError(f"{self.key}: tool needs the rotation that the client writes")
        if self.gripper is not None and self.gripper[0] == self.gripper[1]:
            raise ValueError(f"{self.key}: gripper: open and closed are both {self.gripper[0]}")


def _read_keys(value: Any) -> Any:
    """Return the proprio of a mapping with each group as a ProprioKey."""
    if not isinstance(value, Mapping):
        return value
    return {
        group: key
        if isinstance(key, ProprioKey)
        else build(ProprioKey, {"key": key} if isinstance(key, str) else key, where=f"proprio.{group}")
        for group, key in value.items()
    }


# One key of the whole vector in the order of the robot's groups, or of a map of the groups; or a key of each group.
ProprioKeys = Annotated[str | dict[str, ProprioKey], BeforeValidator(_read_keys)]


class ProprioReader:
    """Reads the proprio of a robot from observations."""

    def __init__(self, keys: str | Mapping[str, ProprioKey], space: ActionSpace, limits: ServerLimits) -> None:
        """Raise ConfigError for keys that don't fit the robot's groups."""
        self._keys, self._space, self._limits = keys, space, limits
        names = [group.name for group in space.groups]
        if not isinstance(keys, str):
            for name in [name for name in keys if name not in names]:
                known = suggest(name, names)
                raise ConfigError(f"the mapping names the proprio group {name!r}, which the policy has not: {known}")
            for name in [name for name in names if name not in keys]:
                raise ConfigError(
                    f"the mapping has no key for the proprio group {name!r}, which the policy reads; it has keys for "
                    f"{', '.join(keys) or 'none of its groups'}"
                )
            self._groups = [_GroupReader(group, keys[group.name]) for group in space.groups]

    def read(self, values: Mapping[str, Any]) -> Float32[np.ndarray, "P"]:
        """Return the vector. Raises ValueError with the faulty key, what was received and what is expected."""
        if not self._space.size:
            return np.zeros(0, np.float32)
        if isinstance(self._keys, str):
            found = find(values, self._keys)
            if not isinstance(found, Mapping) or is_leaf(found):
                return self._read_whole(values)
            groups = [_GroupReader(g, ProprioKey(key=f"{self._keys}/{g.name}")) for g in self._space.groups]
        else:
            groups = self._groups
        return np.concatenate([group.read(values, self._limits) for group in groups])

    def _read_whole(self, values: Mapping[str, Any]) -> Float32[np.ndarray, "P"]:
        key, groups = str(self._keys), ", ".join(f"{g.name} {g.size}" for g in self._space.groups)
        vector = _read_numbers(values, key, f"its proprio, {groups}", self._limits)
        if vector.size != self._space.size or not np.isfinite(vector).all():
            raise ValueError(f"{key!r} has {vector.size} numbers, {self._space.size} finite ones are needed: {groups}")
        return vector


class _GroupReader:
    """Reads one group of the proprio."""

    def __init__(self, group: Group, source: ProprioKey) -> None:
        """Raise ConfigError for a conversion that is not possible."""
        self._group, self._source = group, source
        self._parts = [split_key(key) for key in ((source.key,) if isinstance(source.key, str) else source.key)]
        self._size = ROTATION_DIMS[source.rotation] if source.rotation is not None else group.size
        where = f"the mapping of the proprio group {group.name!r}"
        chosen = [indices for _, indices in self._parts if indices is not None]
        if len(chosen) == len(self._parts) and sum(map(len, chosen)) != self._size:
            raise ConfigError(f"{where}: {self._key} are {sum(map(len, chosen))} numbers, {self._size} are needed")
        try:
            self._ratio = unit_ratio(source.unit, group.unit) if source.unit else 1.0
            if source.rotation is not None:
                check_convertible(group, where)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None
        if source.gripper is not None and group.open is None:
            raise ConfigError(f"{where} converts a gripper, and the policy does not declare which end is open")

    @property
    def _key(self) -> str:
        key = self._source.key
        return repr(key) if isinstance(key, str) else ", ".join(map(repr, key))

    def read(self, values: Mapping[str, Any], limits: ServerLimits) -> Float32[np.ndarray, "G"]:
        """Return the numbers of the group as the robot writes them. Raises ValueError with the faulty key."""
        group, found = self._group, []
        for key, indices in self._parts:
            numbers = _read_numbers(values, key, f"its proprio, {group.name} {group.size}", limits)
            if indices is not None and numbers.size <= max(indices):
                raise ValueError(f"{key!r} has {numbers.size} numbers, the mapping reads {self._key}")
            found.append(numbers if indices is None else numbers[indices])
        vector = np.concatenate(found)
        if vector.size != self._size or not np.isfinite(vector).all():
            raise ValueError(
                f"{self._key} has {vector.size} numbers, {self._size} finite ones are needed: {group.name}"
            )
        try:
            return self._convert(vector)
        except ValueError as error:  # numbers that are no rotation
            raise ValueError(f"{self._key}: {error}") from None

    def _convert(self, vector: Float32[np.ndarray, "C"]) -> Float32[np.ndarray, "G"]:
        group, source = self._group, self._source
        if source.rotation is not None:
            rotation = to_quaternions(vector * self._ratio, source.rotation)
            if source.tool is not None:
                rotation = compose(rotation, to_quaternions(np.array(source.tool), "quaternion_xyzw"))
            return write_rotations(group, canonicalize(rotation)).astype(np.float32)
        if source.gripper is not None and group.low is not None and group.high is not None:
            opened, closed = source.gripper
            share = (vector.astype(np.float64) - closed) / (opened - closed)  # 1 open, 0 closed
            share = share if group.open == group.high else 1 - share
            return (group.low + share * (group.high - group.low)).astype(np.float32)
        return vector if self._ratio == 1 else (vector.astype(np.float64) * self._ratio).astype(np.float32)


def _read_numbers(values: Mapping[str, Any], key: str, what: str, limits: ServerLimits) -> Float32[np.ndarray, "G"]:
    """Return the numbers at a key. Raises ValueError, also for a key that is missing."""
    found = find(values, key)
    if found is MISSING:
        raise MissingKeyError("proprio", quote(key), values, f"the policy reads {what}")
    with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite, which is refused
        return read_vector(found, key, limits).astype(np.float32)


def split_key(key: str) -> tuple[str, list[int] | None]:
    """Return "states[3:6, 8]" as "states" and 3, 4, 5, 8; None without brackets. Raises ConfigError."""
    match = _PARTS.fullmatch(key)
    if match is None:
        return key, None
    found: list[int] = []
    for part in match[2].split(","):
        ends = re.fullmatch(r"\s*(\d{1,5})(?::(\d{1,5}))?\s*", part)
        if ends is None or (ends[2] and int(ends[2]) <= int(ends[1])):
            raise ConfigError(f"the mapping's key {key!r}: expected numbers and ranges, such as [3:6, 8]")
        found += range(int(ends[1]), int(ends[2] or int(ends[1]) + 1))
    return match[1], found
