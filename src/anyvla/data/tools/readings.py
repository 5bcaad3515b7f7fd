"""Reads the columns of undeclared data as groups, by the names of their dims, their keys and their numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from anyvla.data.tools import usual
from anyvla.data.tools.measured import MeasuredNumbers, VectorName, orientation_mode, relate
from anyvla.data.tools.usual import Dim
from anyvla.robot.space import Group, Rotation

TURN = {"rad": 2 * math.pi, "deg": 360.0}  # a whole turn
UNIT = 0.02  # tolerance of the length 1 of quaternions and columns of matrices
NORMALIZED = "normalized"  # LeRobot's -100..100 of a joint's range
_ROTATIONS = ("quaternion", "euler", "axis_angle", "rot6d")
_SIZES = {"position": 3, "quaternion": 4, "euler": 3, "axis_angle": 3, "rot6d": 6}
# Robots whose joints LeRobot writes in degrees or in -100..100 of the calibrated range, by a setting.
_LEROBOT = ("SO-100 or SO-101", "Koch", "LeKiwi")


@dataclass(frozen=True)
class Column:
    """A vector of the data: its key, the names of its dims (or none), and its position in proprio or actions."""

    key: str
    names: tuple[str, ...]
    part: VectorName
    place: slice
    measured: MeasuredNumbers
    robot: str | None  # of the table `usual.yaml`
    alone: bool  # the only column of proprio or actions

    @property
    def size(self) -> int:
        """Return the number of dims."""
        return self.place.stop - self.place.start


@dataclass(frozen=True)
class GroupReading:
    """A group, with the reasons for it and the questions for a person."""

    group: Group
    part: VectorName
    place: slice
    is_: str
    key: str
    why: tuple[str, ...] = ()
    check: tuple[str, ...] = ()
    by_size: str = ""  # the reason for a unit that the size of the numbers shows

    def with_changes(self, *, why: Sequence[str] = (), check: Sequence[str] = (), **changes: Any) -> GroupReading:
        """Return a copy with changes to the group, and their reasons and questions."""
        return replace(self, group=replace(self.group, **changes), why=(*self.why, *why), check=(*self.check, *check))


def read_column(column: Column) -> list[GroupReading]:
    """Return the groups of a column, without units, ranges and modes."""
    dims, names, why, check = _dims(column)
    out: list[GroupReading] = []
    # each gripper is a group; other dims of one kind and side form a run
    runs = itertools.groupby(enumerate(dims), lambda at: (at[1], at[0] if at[1].is_ == "gripper" else -1))
    for (dim, _), run in runs:
        numbers = [i for i, _ in run]
        size = _SIZES.get(dim.is_, len(numbers))  # a run may hold several vectors of this size
        size = len(numbers) if len(numbers) % size else size
        for begin in range(0, len(numbers), size):
            own = numbers[begin : begin + size]
            place = slice(column.place.start + own[0], column.place.start + own[-1] + 1)
            group, doubts = _group(dim, tuple(names[i] for i in own) if names else (), len(own))
            out.append(GroupReading(group, column.part, place, dim.is_, column.key, (why,), (*check, *doubts)))
            check = ()  # the questions of a column are asked once
    return out


def _dims(column: Column) -> tuple[list[Dim], tuple[str, ...], str, tuple[str, ...]]:
    """Return the kind of each dim, the names, the reason, and questions."""
    key, names = column.key, column.names
    if names:
        dims = usual.read_names(names, column.robot)
        if any(d.is_ != "unknown" for d in dims):
            unknown = [n for n, d in zip(names, dims, strict=True) if d.is_ == "unknown"]
            check = (f"kind: nothing is known of the names {', '.join(unknown)}",) if unknown else ()
            return dims, names, f"{key}: by the names of its dims", check
    if column.alone and (lay := usual.usual_names(column.robot, column.size)):
        check = (f"names: the data does not name these dims; these are the usual ones of {column.robot}",)
        return usual.read_names(lay, column.robot), lay, f"{key}: {column.size} dims of {column.robot}", check
    dims = usual.read_key(key, column.size)
    if any(d.is_ != "unknown" for d in dims):
        return dims, names, f"{key}: by its name", ("kind: the data does not name these dims",)
    dims = _by_numbers(column)
    naming = "names that only count" if names else "no names of dims"
    return dims, names, f"{key}: {naming}", (f"kind: {key} has {naming}; declare each dim and split the group",)


def _by_numbers(column: Column) -> list[Dim]:
    """Recognize dims by their numbers: four that are a unit quaternion, and a last one that opens and closes."""
    values = column.measured.values(column.part, column.place).astype(np.float64)
    dims = [Dim("", "unknown")] * column.size
    if not len(values):
        return dims
    begin = 0
    while begin + 4 <= column.size:
        block = values[:, begin : begin + 4]
        norm = np.linalg.norm(block, axis=1)
        if np.all(np.abs(norm - 1) < 0.01) and (block.std(0) > 1e-4).sum() >= 2:
            dims[begin : begin + 4] = [Dim("", "quaternion")] * 4
            begin += 4
        else:
            begin += 1
    last = values[:, -1]
    if column.size > 1 and dims[-1].is_ == "unknown" and 2 <= len(np.unique(last)) <= 3:
        dims[-1] = Dim("", "gripper")
    return dims


def _group(dim: Dim, names: tuple[str, ...], size: int) -> tuple[Group, tuple[str, ...]]:
    """Return the group of a run of dims; a gripper's range is filled in by `add_range`."""
    side = f"{dim.side}_" if dim.side else ""
    if dim.is_ == "gripper":
        return Group(name=f"{side}gripper", size=size, kind="gripper", low=0, high=1, names=names), ()
    if dim.is_ in _ROTATIONS:
        rotation, doubts = _rotation(dim.is_, names, size)
        return Group(name=f"{side}rotation", size=size, kind="rotation", rotation=rotation, names=names), doubts
    if dim.is_ in ("joints", "position"):
        return Group(name=f"{side}{dim.is_}", size=size, kind=dim.is_, names=names), ()
    if dim.is_ == "fingers":
        doubts = ("unit: rad, or a share of the range of the fingers?",)
        return Group(name=f"{side}fingers", size=size, kind="joints", names=names), doubts
    name = {"rate": "velocity", "other": "other"}.get(dim.is_, "numbers")
    doubts = ("unit: a speed or a force? Declare its unit",) if dim.is_ == "rate" else ()
    return Group(name=f"{side}{name}", size=size, names=names), doubts


def _rotation(is_: str, names: tuple[str, ...], size: int) -> tuple[Rotation | None, tuple[str, ...]]:
    if size != _SIZES[is_]:
        return None, (f"rotation: {size} dims are no whole rotation of the kind {is_}",)
    if is_ == "quaternion":
        real = [i for i, name in enumerate(names) if usual.is_real_part(name)]
        if real in ([0], [3]):
            return ("quaternion_wxyz" if real == [0] else "quaternion_xyzw"), ()
        return "quaternion_xyzw", ("rotation: is the real part last (xyzw) or first (wxyz)?",)
    if is_ == "euler":
        return "euler", ("rotation: euler about the fixed x, y, z? Some data writes axis_angle under these names",)
    if is_ == "rot6d":
        return "rot6d", ("rotation: rot6d is the first two COLUMNS of the matrix; rows are the inverse rotation",)
    return "axis_angle", ()


def add_range(read: GroupReading, measured: MeasuredNumbers, robot: str | None) -> GroupReading:
    """Return a group with the unit and the range that its numbers show."""
    found = measured.range_of(read.part, read.place)
    if found is None:
        return read.with_changes(check=["unit: there are no numbers to look at"])
    low, high = found
    seen = f"from {low:.4g} to {high:.4g}"
    read = read.with_changes(why=[seen])
    if read.is_ == "gripper":
        return _gripper(read, low, high, seen, robot)
    if read.is_ in ("joints", "euler", "axis_angle"):
        return _angles(read, max(-low, high), seen, robot)
    if read.is_ == "position":
        return _lengths(read, max(-low, high), seen)
    if read.group.rotation is not None and (
        odd := find_odd_lengths(read.group.rotation, measured, read.part, read.place)
    ):
        least, largest = odd
        question = f"rotation: by its name {read.is_}, but with lengths from {least:.3g} to {largest:.3g} instead of 1"
        return read.with_changes(check=[question], rotation=None)
    return read


def find_odd_lengths(
    rotation: Rotation, measured: MeasuredNumbers, part: VectorName, place: slice
) -> tuple[float, float] | None:
    """Return the range of the lengths of quaternions, or of columns of matrices, that are not of length 1."""
    values = measured.values(part, place).astype(np.float64)
    if not len(values) or rotation not in ("quaternion_xyzw", "quaternion_wxyz", "rot6d"):
        return None
    width = 3 if rotation == "rot6d" else 4
    lengths = np.linalg.norm(values.reshape(len(values), -1, width), axis=2)
    return None if np.abs(lengths - 1).max() <= UNIT else (float(lengths.min()), float(lengths.max()))


def _gripper(read: GroupReading, low: float, high: float, seen: str, robot: str | None) -> GroupReading:
    known = usual.gripper_range(low, high, robot)
    check: list[str] = []
    if known is None:
        begin, end, unit = *_outward(low, high), ""
        check.append(f"low, high: {seen} is none of the usual ranges of a gripper; give both ends of its range")
    else:
        begin, end, unit = known
    name = read.group.names[0] if read.group.names else read.key
    at, why = usual.find_open_end(name, robot, (begin, end), unit)
    if known is not None and high - low < (0.5 if at is None else 0.2) * (end - begin):
        check.append(f"low, high: the data goes {seen} only; give both ends of the gripper's range")
    if at is None:
        check.append(f"open: at which end is it open, {begin:g} or {end:g}? Add open: {begin:g} or open: {end:g}")
    return read.with_changes(
        why=[f"open at {begin if at == 'low' else end:g}: {why}"] if at else [],
        check=check,
        low=begin,
        high=end,
        unit=unit,
        open=None if at is None else begin if at == "low" else end,
    )


def _outward(low: float, high: float) -> tuple[float, float]:
    """Return a range of two digits or so around the numbers."""
    if low == high:
        return low - 0.5, high + 0.5
    grain = 10 ** (math.floor(math.log10(high - low)) - 1)
    begin, end = math.floor(low / grain + 1e-3) * grain, math.ceil(high / grain - 1e-3) * grain
    return float(f"{begin:.6g}"), float(f"{end:.6g}")


def _angles(read: GroupReading, largest: float, seen: str, robot: str | None) -> GroupReading:
    if not largest:
        return read.with_changes(check=["unit: nothing moves, so the numbers do not show it"])
    if largest <= TURN["rad"] * 1.02 and robot in _LEROBOT:
        question = f"unit: rad by the size of the numbers, though LeRobot writes {robot} in deg or normalized"
        return read.with_changes(check=[question], unit="rad")
    if largest <= TURN["rad"] * 1.02:
        return replace(read, by_size="rad: within a turn").with_changes(unit="rad")
    ends_at_100 = read.is_ == "joints" and largest <= 100.5
    if ends_at_100 and (robot in _LEROBOT or largest >= 99.5):
        question = "unit: normalized (LeRobot's -100..100 of a joint's range) or deg (use_degrees of the robot)?"
        return read.with_changes(check=[question], unit=NORMALIZED)
    if largest <= 400:
        return replace(read, by_size="deg: too large for rad").with_changes(unit="deg")
    return read.with_changes(check=[f"unit: {seen} is neither rad nor deg; steps of a motor?"])


def _lengths(read: GroupReading, largest: float, seen: str) -> GroupReading:
    if largest <= 5:
        return replace(read, by_size="m: by its size").with_changes(unit="m")
    return read.with_changes(check=[f"unit: {seen} is too large for meters; mm?"], unit="mm" if largest <= 5000 else "")


def add_modes(
    actions: Sequence[GroupReading], proprio: Sequence[GroupReading], measured: MeasuredNumbers
) -> list[GroupReading]:
    """Return the groups of the actions with their mode, absolute or delta, by comparison with the states after them."""
    return [_add_mode(read, _partner(read, proprio), measured) for read in actions]


def _partner(read: GroupReading, proprio: Sequence[GroupReading]) -> GroupReading | None:
    """Return the group of the proprio that measures the same part of the robot."""
    same = [p for p in proprio if (p.group.name, p.group.kind) == (read.group.name, read.group.kind)]
    return next((p for p in same if read.group.kind == "rotation" or p.group.size == read.group.size), None)


def _add_mode(read: GroupReading, partner: GroupReading | None, measured: MeasuredNumbers) -> GroupReading:
    if read.group.kind not in ("joints", "position", "rotation"):
        return read
    hinted = "delta" in read.key.lower() or any("delta" in n.lower() for n in read.group.names)
    mode: str | None = None
    unit = read.group.unit
    if partner is not None and read.group.kind == "rotation":
        mode = orientation_mode(measured.rows, (partner.group, partner.place), (read.group, read.place))
    if partner is not None and mode is None and read.group.size == partner.group.size:
        turn = TURN.get(partner.group.unit) if read.is_ == "euler" else None
        found = relate(measured.rows, partner.place, read.place, turn)
        mode = found.mode if found is not None else None
        unit = partner.group.unit
    kept = read if unit == read.group.unit else replace(read, by_size="")
    if mode == "absolute":
        return kept.with_changes(why=["absolute: actions are close to the states after them"], unit=unit)
    if mode == "delta":
        return kept.with_changes(why=["delta: actions are close to the changes of the state"], mode="delta", unit=unit)
    if mode == "scaled delta" or hinted:
        reason = "actions follow the changes of the state, in another unit" if mode is not None else "by its name"
        return replace(read, by_size="").with_changes(
            why=[f"delta: {reason}"], check=["unit: what does 1 mean?"], mode="delta", unit=""
        )
    small = read.group.kind != "joints" and _centered(read, measured)
    guess: Literal["absolute", "delta"] = "delta" if small else "absolute"
    reason = "the numbers are around 0" if small else "nothing in the data contradicts it"
    beside = "" if partner is not None else ", and no group of the proprio measures the same"
    return read.with_changes(check=[f"mode: {guess} is a guess ({reason}{beside})"], mode=guess)


def _centered(read: GroupReading, measured: MeasuredNumbers) -> bool:
    values = measured.values(read.part, read.place)
    return bool(len(values)) and bool(np.all(np.abs(np.median(values, 0)) <= 0.25 * np.abs(values).max(0) + 1e-9))
