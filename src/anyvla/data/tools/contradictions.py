"""Finds declarations that contradict the numbers, such as radians of 60 or deltas that are next states.

Each finding names the group, the dim and its range. A policy trained with a wrong declaration, or a robot that executes
it, behaves wrongly, so clear contradictions are errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from anyvla.data.tools import usual
from anyvla.data.tools.findings import Finding, Severity
from anyvla.data.tools.measured import MeasuredNumbers, VectorName, orientation_mode, relate
from anyvla.data.tools.readings import NORMALIZED, TURN, UNIT, find_odd_lengths
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.space import ActionSpace, Group

_UNITS = {"radian": "rad", "radians": "rad", "degree": "deg", "degrees": "deg", "\N{DEGREE SIGN}": "deg"}
_METRES = 10.0  # more than the reach of an arm


@dataclass(frozen=True)
class _Declared:
    """A declared group and the position of its numbers."""

    part: VectorName
    group: Group
    place: slice
    measured: MeasuredNumbers

    def finding(self, text: str, fix: str, severity: Severity = "error", dim: int | None = None) -> Finding:
        """Return a finding about the group, or about one of its dims, whose range it then names."""
        at = ""
        if dim is not None:
            low, high = self.range_of(dim)
            at = f" dim {self.group.label(dim)}, goes from {low:.4g} to {high:.4g},"
        return Finding("meaning", severity, None, f"{self.part}, group {self.group.name!r},{at} {text}", fix)

    def range_of(self, dim: int) -> tuple[float, float]:
        """Return the smallest and the largest number of a dim."""
        at = self.place.start + dim
        return float(self.measured.low[self.part][at]), float(self.measured.high[self.part][at])

    def farthest(self) -> tuple[int, float, float]:
        """Return the dim whose numbers are farthest from 0, and its range."""
        ranges = [(dim, *self.range_of(dim)) for dim in range(self.group.size)]
        return max(ranges, key=lambda found: max(-found[1], found[2]))


def find_contradictions(robot: Embodiment, measured: MeasuredNumbers) -> list[Finding]:
    """Return a finding for each declaration of the embodiment that contradicts the numbers."""
    found: list[Finding] = []
    proprio = _declared("proprio", robot.proprio, measured)
    for declared in (*_declared("actions", robot.action, measured), *proprio):
        if measured.range_of(declared.part, declared.place) is not None:
            for look in _LOOKS:
                found += look(declared)
            if declared.part == "actions":
                found += _mode(declared, proprio)
            found += _open_end(declared, usual.recognize_robot(robot.name, ""))
    return found


def _declared(part: VectorName, space: ActionSpace, measured: MeasuredNumbers) -> list[_Declared]:
    places = space.slices().values()
    return [_Declared(part, group, place, measured) for group, place in zip(space.groups, places, strict=True)]


def _angles(declared: _Declared) -> Iterator[Finding]:
    group = declared.group
    is_angle = group.kind == "joints" or group.rotation in ("euler", "axis_angle")
    unit = _UNITS.get(group.unit.lower(), group.unit) or ("rad" if group.kind == "rotation" else "")
    dim, low, high = declared.farthest()
    largest = max(-low, high)
    if is_angle and unit == "rad" and largest > 2 * TURN["rad"]:
        text = f"declared in rad: {largest:.4g} rad are {largest / TURN['rad']:.3g} turns"
        yield declared.finding(text, "declare unit: deg, or normalized for LeRobot's -100..100", dim=dim)
    elif is_angle and unit == "rad" and largest > TURN["rad"] * 1.02:
        yield declared.finding("declared in rad: more than a turn", "is it unit: deg?", "warning", dim)
    if is_angle and unit == "deg" and largest > 2 * TURN["deg"]:
        yield declared.finding("declared in deg: more than two turns", "declare the unit of the data", dim=dim)
    if is_angle and unit == "deg" and group.mode == "absolute" and 0.5 < largest <= TURN["rad"] / 2 * 1.02:
        text = f"declared in deg: no dim of the group moves farther than {largest:.3g} degrees"
        yield declared.finding(text, "is it unit: rad?", "warning", dim)
    if unit == NORMALIZED and largest > 105:
        yield declared.finding(f"declared as {NORMALIZED}, which ends at -100 and 100", "declare unit: deg", dim=dim)


def _named(declared: _Declared) -> Iterator[Finding]:
    """Compare the names that the data gives to dims with the kind of the group, and with the order of a quaternion."""
    group = declared.group
    if not group.names or group.kind == "other":
        return
    for dim, read in enumerate(usual.read_names(group.names, None)):
        if read.is_ == "gripper" and group.kind != "gripper":
            text = f"declared as {group.kind}, but is a gripper by its name"
            yield declared.finding(text, "give it its own group: kind: gripper", "warning", dim)
    real = [dim for dim, name in enumerate(group.names) if usual.is_real_part(name)]
    order = {"0": "quaternion_wxyz", "3": "quaternion_xyzw"}.get(",".join(map(str, real)))
    if group.rotation in ("quaternion_xyzw", "quaternion_wxyz") and order not in (None, group.rotation):
        text = f"has its real part at dim {group.label(real[0])} by its names, declared as {group.rotation}"
        yield declared.finding(text, f"declare rotation: {order}")


def _lengths(declared: _Declared) -> Iterator[Finding]:
    if declared.group.kind == "position" and declared.group.unit == "m":
        dim, low, high = declared.farthest()
        if max(-low, high) > _METRES:
            severity: Severity = "error" if max(-low, high) > 5 * _METRES else "warning"  # a base may drive
            text = "declared in m: no arm reaches that far"
            yield declared.finding(text, "declare the unit of the data, as in unit: mm", severity, dim)


def _ends(declared: _Declared) -> Iterator[Finding]:
    """Compare a declared range with the numbers. `quality` finds grippers outside of their range by episode."""
    group = declared.group
    if group.low is None or group.high is None:
        return
    span = group.high - group.low
    for dim in range(group.size):
        low, high = declared.range_of(dim)
        ends, fix = f"of its declared range {group.low:g} to {group.high:g}", "declare the range that the data has"
        if group.kind != "gripper" and max(group.low - low, high - group.high) > 0.02 * span:
            severity: Severity = "error" if declared.part == "actions" else "warning"  # sensors overshoot
            yield declared.finding(f"outside {ends}", fix, severity, dim)
        elif group.kind == "gripper" and 0 < high - low < 0.05 * span:
            usually = usual.gripper_range(low, high, None)
            whole = usually is not None and high - low > 0.9 * (usually[1] - usually[0])
            yield declared.finding(f"{(high - low) / span:.1%} {ends}", fix, "error" if whole else "warning", dim)


def _open_end(declared: _Declared, robot: str | None) -> Iterator[Finding]:
    """Compare the end at which a gripper is declared open with that of the known robot."""
    group = declared.group
    if group.open is None or group.low is None or group.high is None:
        return
    name = group.names[0] if group.names else group.name
    end, why = usual.find_open_end(name, robot, (group.low, group.high), group.unit)
    if end is not None and group.open != (group.low if end == "low" else group.high):
        fix = f"look at it: open at {group.low if end == 'low' else group.high:g}?"
        yield declared.finding(f"declared open at {group.open:g}; but {why}", fix, "warning", declared.farthest()[0])


def _rotations(declared: _Declared) -> Iterator[Finding]:
    """Check that quaternions and columns of matrices have length 1."""
    rotation = declared.group.rotation
    if rotation is None:
        return
    if odd := find_odd_lengths(rotation, declared.measured, declared.part, declared.place):
        dims = f"dims {declared.group.label(0)} to {declared.group.label(declared.group.size - 1)}"
        text = f"{dims}, has lengths from {odd[0]:.4g} to {odd[1]:.4g}, declared as {rotation}, which has lengths of 1"
        yield declared.finding(text, "declare how the rotation is written, or correct the data")
        return
    if rotation == "rot6d":
        values = declared.measured.values(declared.part, declared.place).astype(np.float64)
        if len(values) and np.abs((values[:, :3] * values[:, 3:]).sum(1)).max() > 2 * UNIT:
            text = "has two columns that are not at right angles, declared as rot6d"
            yield declared.finding(text, "its rows, perhaps: write the columns instead")


def _mode(declared: _Declared, proprio: list[_Declared]) -> Iterator[Finding]:
    """Compare the declared mode with the relation between actions and proprio."""
    group = declared.group
    partner = _partner(declared, proprio)
    if partner is None:
        return
    rows, beside = declared.measured.rows, f"of proprio {partner.group.name!r}"
    if group.kind == "rotation":
        shown: str | None = orientation_mode(rows, (partner.group, partner.place), (group, declared.place))
        dim = declared.farthest()[0]
    else:
        found = relate(rows, partner.place, declared.place)
        shown = found.mode if found is not None else None
        dim = int(np.argmax(found.spread)) if found is not None else 0
    if group.mode == "delta" and shown == "absolute":
        text = f"declared as delta, but is the next state {beside}"
        yield declared.finding(text, "declare mode: absolute", dim=dim)
    if group.mode == "absolute" and shown == "delta":
        text = f"declared as absolute, but is the change of the state {beside}"
        yield declared.finding(text, "declare mode: delta", dim=dim)


def _partner(declared: _Declared, proprio: list[_Declared]) -> _Declared | None:
    """Return the group of the proprio that measures the same: by name, else the only similar one."""
    group = declared.group

    def alike(other: Group) -> bool:
        if group.kind == "rotation":
            return other.kind == "rotation" and None not in (group.rotation, other.rotation)
        same = (other.kind, other.size) == (group.kind, group.size)
        same_unit = other.unit == group.unit or not (other.unit and group.unit)
        return group.kind in ("joints", "position") and same and same_unit

    like = [p for p in proprio if alike(p.group)]
    named = [p for p in like if p.group.name == group.name]
    return named[0] if named else like[0] if len(like) == 1 else None


_LOOKS: tuple[Callable[[_Declared], Iterator[Finding]], ...] = (_angles, _named, _lengths, _ends, _rotations)
