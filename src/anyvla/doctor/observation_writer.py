"""Write a recorded observation as a client does, under the keys and in the conventions that a mapping declares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32

from anyvla.robot.embodiment import Embodiment
from anyvla.robot.rotations import canonicalize, compose, from_quaternions, invert, read_rotations, to_quaternions
from anyvla.robot.space import Group
from anyvla.robot.units import unit_ratio
from anyvla.serving.mapping import ClientMapping
from anyvla.serving.proprio import ProprioKey, split_key
from anyvla.types import Observation


class ObservationWriter:
    """The inverse of `Translator.request`."""

    def __init__(self, mapping: ClientMapping, robot: Embodiment) -> None:
        self._mapping, self._robot = mapping, robot

    def write(
        self,
        observation: Observation,
        instruction: str,
        image: Callable[[np.ndarray], Any] = lambda pixels: pixels,
        flat: str | None = None,
    ) -> dict[str, Any]:
        """Return the values of a client: arrays, text, and `image(pixels)` for each camera of the policy.

        Keys with a slash become nested maps, but those that begin with the map `flat` stay one key.
        """
        found: dict[str, Any] = {self._mapping.instruction: instruction}
        for camera in self._robot.cameras:
            pixels = np.ascontiguousarray(observation.images[camera])
            if self._mapping.layout == "CHW":
                pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
            key = self._mapping.cameras.get(camera, camera)
            found[key if "/" in key else f"{self._mapping.images}/{key}"] = image(pixels)
        if self._robot.proprio.size:
            found |= self._write_proprio(observation.proprio)
        out: dict[str, Any] = {}
        for path, value in found.items():
            _put(out, path, value, flat)
        return out

    def _write_proprio(self, proprio: Float32[np.ndarray, "P"]) -> dict[str, Any]:
        keys = self._mapping.proprio
        if isinstance(keys, str):
            return {keys: proprio}
        numbers: dict[str, dict[int, float]] = {}  # by path and index
        slices = self._robot.proprio.slices()
        for group in self._robot.proprio.groups:
            values = _to_client(group, keys[group.name], proprio[slices[group.name]])
            for path, index, value in zip(*_list_places(keys[group.name], len(values)), values.tolist(), strict=True):
                numbers.setdefault(path, {})[index] = value
        return {path: _fill(found) for path, found in numbers.items()}


def _list_places(source: ProprioKey, count: int) -> tuple[list[str], list[int]]:
    """Return the path and the index of each number of a group."""
    parts = [split_key(key) for key in ((source.key,) if isinstance(source.key, str) else source.key)]
    each = count if len(parts) == 1 else 1  # several keys without indices have one number each
    paths, indices = [], []
    for path, chosen in parts:
        for index in range(each) if chosen is None else chosen:
            paths.append(path)
            indices.append(index)
    return paths, indices


def _to_client(group: Group, source: ProprioKey, values: Float32[np.ndarray, "G"]) -> np.ndarray:
    """Return the numbers of a group as the client writes them."""
    ratio = unit_ratio(source.unit, group.unit) if source.unit else 1.0
    if source.rotation is not None:
        rotation = read_rotations(group, values)
        if source.tool is not None:
            rotation = compose(rotation, invert(to_quaternions(np.array(source.tool), "quaternion_xyzw")))
        return from_quaternions(canonicalize(rotation), source.rotation) / ratio
    if source.gripper is not None and group.low is not None and group.high is not None:
        share = (values.astype(np.float64) - group.low) / (group.high - group.low)
        share = share if group.open == group.high else 1 - share
        opened, closed = source.gripper
        return closed + share * (opened - closed)
    return values.astype(np.float64) / ratio


def _fill(found: dict[int, float]) -> Float32[np.ndarray, "n"]:
    """Return an array of the numbers at their indices, zeros between them."""
    out = np.zeros(max(found) + 1, np.float32)
    for index, value in found.items():
        out[index] = value
    return out


def _put(out: dict[str, Any], path: str, value: Any, flat: str | None) -> None:
    """Put a value at a path of nested maps."""
    first, slash, rest = path.partition("/")
    if not slash or first == flat:
        out[path] = value
    else:
        _put(out.setdefault(first, {}), rest, value, None)
