"""Recognizes robots, and the joints and grippers among dims, by names in the table `usual.yaml`."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import yaml

Is = Literal[
    "joints", "gripper", "position", "quaternion", "euler", "axis_angle", "rot6d", "fingers", "rate", "other", "unknown"
]


@dataclass(frozen=True)
class Dim:
    """The kind and the side of a dim."""

    side: str  # "left" | "right" | ""
    is_: Is


@functools.cache
def table() -> Mapping[str, Any]:
    """Return the table `usual.yaml`."""
    return yaml.safe_load(resources.files("anyvla.data.tools").joinpath("usual.yaml").read_text(encoding="utf-8"))


def recognize_robot(robot_type: str, folder: str) -> str | None:
    """Return the robot of the table named by the robot's type or by the data set's folder; None if there is none."""
    by_type, by_folder = _find_robot(robot_type), _find_robot(folder)
    if by_type is None or (by_folder is not None and by_folder.get("arm") == by_type["name"]):
        by_type = by_folder
    return None if by_type is None else str(by_type["name"])


def _find_robot(text: str) -> Mapping[str, Any] | None:
    return next((robot for robot in table()["robots"] if re.search(robot["pattern"], text.lower())), None)


def usual_names(robot: str | None, size: int) -> tuple[str, ...]:
    """Return the usual names of the dims of this robot's vectors of `size` dims; () if unknown."""
    for entry in table()["layouts"]:
        if robot in entry["robots"] and len(entry["names"]) == size:
            return tuple(entry["names"])
    return ()


def read_names(names: Sequence[str], robot: str | None) -> list[Dim]:
    """Return the kind of each dim of a robot's vector. Names that only count (motor_0) are unknown."""
    split = [_split(name) for name in names]
    stems = {stem for _, stem in split}
    return [Dim(side, _read_kind(stem, stems, robot)) for side, stem in split]


def is_real_part(name: str) -> bool:
    """Return whether a dim of a quaternion is its real part by its name: qw, ee_quat_w."""
    return bool(re.search(r"(?:^|[^a-z]|[qr])w$", _split(name)[1]))


def read_key(key: str, size: int) -> list[Dim]:
    """Return the kinds of the dims of a column without names, by its key."""
    parts = re.sub(r"[^a-z0-9]+", "_", key.lower()).strip("_")
    side = next((s for s in ("left", "right") if s in parts.split("_")), "")
    for entry in table()["columns"]:
        if entry.get("size", size) == size and re.fullmatch(entry["pattern"], parts):
            kinds = [entry["is"]] * size if "is" in entry else []
            for part in entry.get("parts", ()):
                kinds += [part] * (4 if part == "quaternion" else 3)
            return [Dim(side, kind) for kind in kinds]
    return [Dim(side, "unknown")] * size


def find_open_end(
    name: str, robot: str | None, ends: tuple[float, float], unit: str
) -> tuple[Literal["low", "high"], str] | tuple[None, str]:
    """Return the end of its range at which a gripper is open, and the reason; (None, "") if unknown."""
    stem = _split(name)[1]
    for entry in table()["open"]:
        if "name" in entry and not re.fullmatch(entry["name"], stem):
            continue
        if "robots" in entry and robot not in entry["robots"]:
            continue
        if "range" in entry and not _near(ends, entry["range"]):
            continue
        if entry.get("unit", unit) == unit:
            return entry["open"], str(entry["why"])
    return None, ""


def gripper_range(low: float, high: float, robot: str | None) -> tuple[float, float, str] | None:
    """Return (low, high, unit) of this robot's gripper, or the usual range for such numbers, or None."""
    own = [entry["range"] for entry in table()["open"] if "range" in entry and robot in entry.get("robots", ())]
    for begin, end in own:
        if _holds(begin, end, low, high) and (high == low or high - low >= 0.05 * (end - begin)):
            return float(begin), float(end), ""
    for begin, end, unit in table()["ranges"]:
        if _holds(begin, end, low, high) and high - low >= 0.2 * (end - begin):
            return float(begin), float(end), str(unit)
    return None


def _holds(begin: float, end: float, low: float, high: float) -> bool:
    slack = 0.02 * (end - begin)
    return begin - slack <= low and high <= end + slack


def _near(ends: tuple[float, float], usual: Sequence[float]) -> bool:
    slack = 0.15 * (usual[1] - usual[0])
    return all(abs(a - b) <= slack for a, b in zip(ends, usual, strict=True))


def _split(name: str) -> tuple[str, str]:
    """Return the side, and the rest of a name without uninformative words: ("left", "wrist_roll")."""
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    words = [w for w in re.split(r"[^a-z0-9]+", plain.lower()) if w]
    sides, side = table()["sides"], ""
    while len(words) > 1:
        if words[0] in table()["ignored"]:
            words = words[1:]
        elif not side and words[0] in sides:
            side, words = sides[words[0]], words[1:]
        elif not side and words[-1] in ("left", "right"):
            side, words = words[-1], words[:-1]
        elif words[-1] in table()["endings"]:
            words = words[:-1]
        else:
            break
    return side, "_".join(words)


def _read_kind(stem: str, stems: set[str], robot: str | None) -> Is:
    if re.fullmatch(table()["counted"], stem):
        return "unknown"
    for rule in table()["dims"]:
        found = re.fullmatch(rule["pattern"].replace("{tool}", table()["tool"]), stem)
        among = any(s.endswith(rule.get("among", "")) for s in stems)
        if found and among and robot in rule.get("robots", [robot]):
            return rule["is"]
    return "unknown"
