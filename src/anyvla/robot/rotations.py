"""Rotations: exact conversion between their representations, composition, inverses and differences.

Everything passes through unit quaternions (x, y, z, w) in float64; q and -q are one rotation. Values may have any
leading dims. NaN stays NaN; values that are no rotation (a zero quaternion, parallel columns) are an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64
from numpy.typing import ArrayLike

from anyvla.registry import suggest
from anyvla.robot.space import ROTATION_DIMS, Group, Rotation

Quaternions = Float64[np.ndarray, "*b 4"]  # (x, y, z, w), of norm 1
Frame = Literal["base", "tool"]

_TINY = 1e-8  # below this length, float32 values do not determine a direction
_LOCKED = 1e-7  # sine of the distance to pitch +-90 degrees at which roll and yaw are not unique


def convert(values: ArrayLike, source: Rotation, target: Rotation) -> Float64[np.ndarray, "*b n"]:
    """Convert rotations (*b, k) from the representation `source` to `target`. Angles are in radians, at most pi.

    Returned quaternions have a real part >= 0 (`canonicalize`), rolls and yaws are in [-pi, pi], pitches in
    [-pi/2, pi/2]; in gimbal lock the yaw is 0. Raises a ValueError that says which row is no rotation.
    """
    return from_quaternions(canonicalize(to_quaternions(values, source)), target)


def to_quaternions(values: ArrayLike, source: Rotation) -> Quaternions:
    """Return unit quaternions of rotations (*b, k) in the representation `source`. Quaternions keep their sign.

    Six numbers need not be two columns of a matrix: Gram-Schmidt makes them so (arXiv 1812.07035).
    Raises a ValueError that says which row is no rotation.
    """
    values = np.asarray(values, np.float64)
    dims = ROTATION_DIMS[_known(source)]
    if values.ndim == 0 or values.shape[-1] != dims:
        raise ValueError(f"a rotation as {source} has {dims} numbers, got an array {values.shape}")
    return _READ[source](values)


def from_quaternions(rotation: Quaternions, target: Rotation) -> Float64[np.ndarray, "*b n"]:
    """Return unit quaternions in the representation `target`. Quaternions keep their sign."""
    return _WRITE[_known(target)](rotation)


def canonicalize(rotation: Quaternions) -> Quaternions:
    """Return q or -q, so that the real part is positive, or else the first of x, y, z that is not 0."""
    x, y, z, w = np.moveaxis(rotation, -1, 0)
    first = np.where(w != 0, w, np.where(x != 0, x, np.where(y != 0, y, z)))
    return np.where((first < 0)[..., None], -rotation, rotation)


def make_continuous(rotation: Float64[np.ndarray, "*b T 4"]) -> Float64[np.ndarray, "*b T 4"]:
    """Remove antipode jumps: the first is canonical, each other is the one nearest to its predecessor."""
    if rotation.shape[-2] == 0:
        return rotation
    flips = np.where((rotation[..., 1:, :] * rotation[..., :-1, :]).sum(-1) < 0, -1.0, 1.0)  # (..., T-1)
    start = canonicalize(rotation[..., :1, :])
    kept = np.where((start * rotation[..., :1, :]).sum(-1) < 0, -1.0, 1.0)  # (..., 1)
    return rotation * np.cumprod(np.concatenate([kept, flips], -1), -1)[..., None]


def compose(after: Quaternions, before: Quaternions) -> Quaternions:
    """Return `before` followed by `after`, about the same fixed axes: the matrix product after @ before."""
    (ax, ay, az, aw), (bx, by, bz, bw) = np.moveaxis(after, -1, 0), np.moveaxis(before, -1, 0)
    product = np.stack(
        [
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
            aw * bw - ax * bx - ay * by - az * bz,
        ],
        -1,
    )
    return product / np.linalg.norm(product, axis=-1, keepdims=True)


def invert(rotation: Quaternions) -> Quaternions:
    """Return the inverse rotation."""
    return rotation * np.array([-1.0, -1.0, -1.0, 1.0])


def relative(start: Quaternions, end: Quaternions, frame: Frame) -> Quaternions:
    """Return the delta from `start` to `end`, in the axes of the base, or of the tool at `start`."""
    if frame == "base":
        return compose(end, invert(start))
    return compose(invert(start), end)


def apply(delta: Quaternions, start: Quaternions, frame: Frame) -> Quaternions:
    """Return the end of a delta from `start`: the inverse of `relative` in the same frame."""
    return compose(delta, start) if frame == "base" else compose(start, delta)


def rotate(rotation: Quaternions, vectors: Float[np.ndarray, "*b 3"]) -> Float64[np.ndarray, "*b 3"]:
    """Return the rotated vectors."""
    axis, w = rotation[..., :3], rotation[..., 3:]
    across = 2 * np.cross(axis, np.asarray(vectors, np.float64))
    return vectors + w * across + np.cross(axis, across)


def check_convertible(group: Group, where: str) -> None:
    """Raise ValueError if the rotations of a group cannot be read, because its convention or its unit is unknown."""
    if group.rotation is None:
        raise ValueError(
            f"{where}: it is not known how its rotation is written; declare it (rotation: one of "
            f"{', '.join(ROTATION_DIMS)})"
        )
    try:
        radians_per_unit(group.unit)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def read_rotations(group: Group, values: Float[np.ndarray, "*b k"]) -> Quaternions:
    """Return the rotations of a group. Raises ValueError for unknown conventions or units and invalid numbers."""
    if group.rotation is None:
        raise ValueError(f"group {group.name!r} does not declare how its rotation is written")
    return to_quaternions(values.astype(np.float64) * _unit(group), group.rotation)


def write_rotations(group: Group, rotation: Quaternions) -> Float64[np.ndarray, "*b k"]:
    """Return rotations in the convention and the unit of the group."""
    assert group.rotation is not None
    return from_quaternions(rotation, group.rotation) / _unit(group)


def _unit(group: Group) -> float:
    return radians_per_unit(group.unit) if group.rotation in ("euler", "axis_angle") else 1.0


def radians_per_unit(unit: str) -> float:
    """Return the radians in "rad" or "" (1), "deg", or a multiple such as "0.05 rad"; ValueError for other units."""
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][-+]?\d+)?)?\s*(rad|deg)\s*", unit or "rad")
    if not match:
        raise ValueError(f"the unit {unit!r} is no angle: expected 'rad', 'deg' or a part of them, as in '0.05 rad'")
    return float(match[1] or 1) * (1.0 if match[2] == "rad" else np.pi / 180)


def _known(convention: Rotation) -> Rotation:
    if convention not in ROTATION_DIMS:
        raise ValueError(f"no rotation is written as {convention!r}: {suggest(convention, list(ROTATION_DIMS))}")
    return convention


def _refuse(bad: np.ndarray | np.bool_, values: np.ndarray, why: str) -> None:
    if bad.any():
        row = tuple(int(i) for i in np.argwhere(bad)[0])
        where = f"row {row[0] if len(row) == 1 else row}: " if row else ""
        raise ValueError(f"{where}{values[row].tolist()} is no rotation: {why}")


def _read_quaternion(values: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(values, axis=-1, keepdims=True)
    _refuse(norm[..., 0] < _TINY, values, "a quaternion must not be zero")
    return values / norm


def _read_axis_angle(values: np.ndarray) -> np.ndarray:
    half = np.linalg.norm(values, axis=-1, keepdims=True) / 2
    return np.concatenate([values * np.sinc(half / np.pi) / 2, np.cos(half)], -1)  # np.sinc(x) is sin(pi x) / (pi x)


def _read_euler(values: np.ndarray) -> np.ndarray:
    zero = np.zeros_like(values[..., :1])
    roll, pitch, yaw = (values[..., i : i + 1] for i in range(3))
    about_x = _read_axis_angle(np.concatenate([roll, zero, zero], -1))
    about_y = _read_axis_angle(np.concatenate([zero, pitch, zero], -1))
    about_z = _read_axis_angle(np.concatenate([zero, zero, yaw], -1))
    return compose(about_z, compose(about_y, about_x))


def _read_rot6d(values: np.ndarray) -> np.ndarray:
    first, second = values[..., :3], values[..., 3:]
    length, size = np.linalg.norm(first, axis=-1, keepdims=True), np.linalg.norm(second, axis=-1, keepdims=True)
    _refuse((length < _TINY)[..., 0] | (size < _TINY)[..., 0], values, "neither column may be zero")
    x = first / length
    rest = second - (x * second).sum(-1, keepdims=True) * x
    across = np.linalg.norm(rest, axis=-1, keepdims=True)
    _refuse((across < 1e-6 * size)[..., 0], values, "its two columns are parallel")
    y = rest / across
    return _of_matrix(np.stack([x, y, np.cross(x, y)], -1))


def _of_matrix(m: Float64[np.ndarray, "*b 3 3"]) -> np.ndarray:
    """Return the quaternion q of a matrix from 4 q q^T: all its rows are along q, and the longest is the most exact."""
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    xy, xz, yz = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    xw, yw, zw = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    rows = np.stack(
        [
            np.stack([1 + xx - yy - zz, xy, xz, xw], -1),
            np.stack([xy, 1 - xx + yy - zz, yz, yw], -1),
            np.stack([xz, yz, 1 - xx - yy + zz, zw], -1),
            np.stack([xw, yw, zw, 1 + xx + yy + zz], -1),
        ],
        -2,
    )  # (..., 4, 4)
    longest = np.argmax(np.diagonal(rows, axis1=-2, axis2=-1), -1)
    row = np.take_along_axis(rows, longest[..., None, None], -2)[..., 0, :]
    return row / np.linalg.norm(row, axis=-1, keepdims=True)


def _write_axis_angle(rotation: np.ndarray) -> np.ndarray:
    rotation = canonicalize(rotation)
    axis, w = rotation[..., :3], rotation[..., 3:]
    sine = np.linalg.norm(axis, axis=-1, keepdims=True)
    small = sine < 1e-12
    return axis * np.where(small, 2.0, 2 * np.arctan2(sine, w) / np.where(small, 1.0, sine))


def _write_euler(rotation: np.ndarray) -> np.ndarray:
    """With half angles r, p, y: (x + z, w - y) = (cos p - sin p) (sin, cos)(r + y), and likewise their difference.

    So sum and difference of roll and yaw are exact up to gimbal lock, where only one of them exists.
    """
    x, y, z, w = np.moveaxis(rotation, -1, 0)
    up, down = np.hypot(x + z, w - y), np.hypot(x - z, w + y)  # sqrt(2) cos(p + 45 deg), sqrt(2) sin(p + 45 deg)
    half_sum, half_difference = np.arctan2(x + z, w - y), np.arctan2(x - z, w + y)
    above, below = up < _LOCKED, down < _LOCKED  # pitch +90, -90
    roll = np.where(above, 2 * half_difference, np.where(below, 2 * half_sum, half_sum + half_difference))
    yaw = np.where(above | below, 0.0, half_sum - half_difference)
    pitch = 2 * np.arctan2(down, up) - np.pi / 2
    turn = 2 * np.pi
    wrapped = [angle - turn * np.round(angle / turn) for angle in (roll, yaw)]
    return np.stack([wrapped[0], pitch, wrapped[1]], -1)


def _write_rot6d(rotation: np.ndarray) -> np.ndarray:
    x, y = np.eye(3)[:2]
    return np.concatenate([rotate(rotation, np.broadcast_to(v, (*rotation.shape[:-1], 3))) for v in (x, y)], -1)


_READ: dict[Rotation, Callable[[np.ndarray], np.ndarray]] = {
    "euler": _read_euler,
    "axis_angle": _read_axis_angle,
    "quaternion_xyzw": _read_quaternion,
    "quaternion_wxyz": lambda values: np.roll(_read_quaternion(values), -1, -1),
    "rot6d": _read_rot6d,
}
_WRITE: dict[Rotation, Callable[[np.ndarray], np.ndarray]] = {
    "euler": _write_euler,
    "axis_angle": _write_axis_angle,
    "quaternion_xyzw": lambda rotation: rotation,
    "quaternion_wxyz": lambda rotation: np.roll(rotation, 1, -1),
    "rot6d": _write_rot6d,
}
