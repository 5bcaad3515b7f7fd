"""Units of lengths and angles: "m", "deg", or a part of one such as "0.05 rad"."""

from __future__ import annotations

import math
import re

_LENGTHS = {"m": 1.0, "cm": 0.01, "mm": 0.001}
_ANGLES = {"rad": 1.0, "deg": math.pi / 180}
_UNIT = re.compile(r"\s*([0-9.]+(?:[eE][-+]?\d+)?)?\s*(m|cm|mm|rad|deg)\s*")


def unit_ratio(source: str, target: str) -> float:
    """Return the factor from numbers in the unit `source` to numbers in `target`. Raises ValueError."""
    (number, kind), (other, other_kind) = _read(source), _read(target)
    if kind != other_kind:
        raise ValueError(f"{source!r} and {target!r} are no units of the same quantity")
    return number / other


def _read(unit: str) -> tuple[float, str]:
    """Return a unit in meters or radians, and which of the two."""
    match = _UNIT.fullmatch(unit)
    number = float(match[1] or 1) if match and (match[1] or "1").count(".") < 2 else 0.0
    if match is None or number <= 0:
        raise ValueError(f"the unit {unit!r} is not known: m, cm, mm, rad, deg or a part of one, as in '0.05 rad'")
    return (number * _LENGTHS[match[2]], "m") if match[2] in _LENGTHS else (number * _ANGLES[match[2]], "rad")
