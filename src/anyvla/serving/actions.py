"""Convert actions to the client's convention: grippers, units and rotations, only as the mapping declares."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32

from anyvla.config import ConfigError
from anyvla.registry import suggest
from anyvla.robot.rotations import (
    canonicalize,
    check_convertible,
    from_quaternions,
    read_rotations,
    to_quaternions,
    write_rotations,
)
from anyvla.robot.space import ROTATION_DIMS, ActionSpace, Group, Rotation
from anyvla.robot.units import unit_ratio
from anyvla.serving.proprio import split_key


class ActionWriter:
    """Writes the actions of a robot for a client."""

    def __init__(
        self,
        space: ActionSpace,
        gripper: tuple[float, float] | None,
        units: Mapping[str, str],
        rotation: Rotation | None,
        names: Mapping[str, str],
    ) -> None:
        """The arguments are those of `ClientMapping`. Raise ConfigError if the robot's groups don't allow them."""
        self._space, self._slices = space, space.slices()
        for name in units:
            self._check_group(name)
        self._gripper, self._grippers = gripper, [] if gripper is None else self._find_grippers(gripper)
        self._factors = self._find_factors(units)
        self._rotation = rotation
        self._rotations = [] if rotation is None else self._find_rotations(rotation, units)
        self.parts = self._find_parts(names)  # the dims of each part that the client names

    def convert(self, actions: Float32[np.ndarray, "*b A"]) -> Float32[np.ndarray, "*b A"]:
        """Return actions in the client's convention. Raises ValueError if one is not finite."""
        theirs = np.array(actions, np.float32)
        if not np.isfinite(theirs).all():
            raise ValueError("the policy returned an action that is not finite; it is not sent")
        if self._factors is not None:
            theirs = (actions * self._factors).astype(np.float32)
        for group in self._rotations:
            assert self._rotation is not None
            where = self._slices[group.name]
            rotation = canonicalize(read_rotations(group, actions[..., where]))
            theirs[..., where] = from_quaternions(rotation, self._rotation)
        for where, opened, closed in self._grippers:
            assert self._gripper is not None
            share = (actions[..., where] - closed) / (opened - closed)  # 1 open, 0 closed
            theirs[..., where] = self._gripper[1] + share * (self._gripper[0] - self._gripper[1])
        return theirs

    def invert(self, theirs: Float32[np.ndarray, "K A"]) -> Float32[np.ndarray, "K A"]:
        """Return actions of a client as the robot writes them. Raises ValueError for another size, or no rotation."""
        if theirs.ndim != 2 or theirs.shape[1] != self._space.size:
            groups = ", ".join(f"{group.name} {group.size}" for group in self._space.groups)
            raise ValueError(f"actions have the shape {theirs.shape}, (K, {self._space.size}) is needed: {groups}")
        own = np.array(theirs, np.float64) if self._factors is None else theirs / self._factors
        for group in self._rotations:
            assert self._rotation is not None
            where = self._slices[group.name]
            own[:, where] = write_rotations(group, canonicalize(to_quaternions(theirs[:, where], self._rotation)))
        for where, opened, closed in self._grippers:
            assert self._gripper is not None
            share = (theirs[:, where] - self._gripper[1]) / (self._gripper[0] - self._gripper[1])  # 1 open, 0 closed
            own[:, where] = closed + share * (opened - closed)
        return own.astype(np.float32)

    def _find_grippers(self, theirs: tuple[float, float]) -> list[tuple[slice, float, float]]:
        """Return the dims of each gripper, and its values for open and closed, unless the client's are the same."""
        found = []
        for group in self._space.groups:
            match (group.kind, group.open, group.low, group.high):
                case ("gripper", float(opened), float(low), float(high)):
                    found.append((self._slices[group.name], opened, low + high - opened))
                case ("gripper", *_):
                    raise ConfigError(
                        f"the mapping converts the gripper {group.name!r}, and the policy's data did not declare its "
                        "open end: give a --mapping without gripper if the client's convention is the same"
                    )
        if not found:
            raise ConfigError("the mapping converts a gripper, and the robot has none")
        return [ends for ends in found if ends[1:] != theirs]

    def _find_factors(self, theirs: Mapping[str, str]) -> np.ndarray | None:
        """Return a factor for each dim; None if all are 1."""
        factors, units = np.ones(self._space.size), {group.name: group.unit for group in self._space.groups}
        for name, unit in theirs.items():
            try:
                factors[self._slices[name]] = unit_ratio(units[name], unit)
            except ValueError as error:
                raise ConfigError(f"the mapping converts the action group {name!r}: {error}") from None
        return None if (factors == 1).all() else factors

    def _find_rotations(self, target: Rotation, units: Mapping[str, str]) -> list[Group]:
        """Return the groups whose rotations the client writes in another way."""
        groups = [g for g in self._space.groups if g.kind == "rotation" and g.rotation != target]
        for group in groups:
            where = f"the mapping converts the action group {group.name!r}"
            if group.name in units:
                raise ConfigError(f"{where} by its unit, too; a converted rotation is in radians")
            if group.size != ROTATION_DIMS[target]:
                raise ConfigError(f"{where} of {group.size} dims to {target}, which has {ROTATION_DIMS[target]}")
            try:
                check_convertible(group, where)
            except ValueError as error:
                raise ConfigError(str(error)) from None
        return groups

    def _find_parts(self, names: Mapping[str, str]) -> dict[str, list[int]]:
        dims = {name: list(range(self._space.size))[place] for name, place in self._slices.items()}
        if not names:
            return dims
        found = {}
        for name, key in names.items():
            group, indices = split_key(key)
            self._check_group(group)
            if indices is not None and max(indices) >= len(dims[group]):
                raise ConfigError(f"the mapping's action {name!r}: {key!r}, but the group has {len(dims[group])} dims")
            found[name] = dims[group] if indices is None else [dims[group][i] for i in indices]
        if sorted(dim for part in found.values() for dim in part) != list(range(self._space.size)):
            raise ConfigError(f"the mapping's actions do not name each of the {self._space.size} dims once")
        return found

    def _check_group(self, name: str) -> None:
        if name not in self._slices:
            known = suggest(name, self._slices)
            raise ConfigError(f"the mapping names the action group {name!r}, which the policy has not: {known}")
