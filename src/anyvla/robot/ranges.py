"""The range that each dim of a vector is scaled by, and which dims never vary.

A quantile range ignores outliers, but a dim that rests most of the time has its rare motion outside of the quantiles.
Four rules separate the two, all relative to the data's own scale:

- The core of a dim reaches from its 10th to its 90th percentile. A value is far if it is more than `FAR` core ranges
  outside of the core. If the core never varies (see below), the dim rests, and every other value is far.
- Motion that is nearer than that differs from a heavy tail by its shape. The values of a tail become fewer with the
  distance; motion reaches its amplitude and stays or turns there. So values more than `NEAR` core ranges outside of the
  core are far, too, if they are at least half of those that are more than `BESIDE` core ranges outside. (In normal,
  Laplace and log-normal data, and in Student's t down to one degree of freedom, they are fewer than that.)
- Far values are spikes if they are fewer than `FEW` frames, or fewer than `RARE` of all frames. Otherwise they are
  motion. In a dim that rests, all far values are motion, but for spikes among them.
- Quantiles that cut off motion are replaced by the whole range, without the spikes among the moving frames: those that
  are far from the range between the core of the dim and that of its motion.

A dim never varies if its range is within `PRECISION` of its largest magnitude: float32 cannot tell such values apart.
The dims of a rotation are computed from each other, so that they share the magnitude of the largest one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64

from anyvla.robot.space import ActionSpace, Group

# calvin: cut to +-0.65 whatever the statistics, as RoboVLMs (arXiv 2412.14058) does with CALVIN's relative actions
Method = Literal["quantile", "minmax", "meanstd", "calvin"]
CALVIN_LIMIT = 0.65
FAR, NEAR, BESIDE = 10.0, 3.0, 1.0  # core ranges
FEW = 3  # frames
RARE = 1e-3  # of the frames
PRECISION = 4 * float(np.finfo(np.float32).eps)  # of the largest magnitude: four float32 values apart, at most
_FAR_FROM_ZERO = 1e3  # from where on people should know of float32's resolution; changes no number
_SMALLEST = 8 * float(np.finfo(np.float32).tiny)  # below, float32 has no full precision

NEEDS: dict[Method, tuple[str, ...]] = {
    "quantile": ("q01", "q99"),
    "minmax": ("min", "max"),
    "meanstd": ("mean", "std"),
    "calvin": (),
}


def quantile_range(column: Float64[np.ndarray, "T"]) -> tuple[float, float]:
    """Return the 1st and 99th percentile, or a range that contains the motion which these would cut off."""
    low, bottom, top, high = (float(q) for q in np.quantile(column, (0.01, 0.1, 0.9, 0.99)))
    at_rest = _is_constant(bottom, top)
    far = _is_far(column, bottom, top, NEAR)
    if at_rest or far.sum() < _is_far(column, bottom, top, BESIDE).sum() / 2:
        far = _is_far(column, bottom, top)
    if not at_rest and far.sum() < max(FEW, RARE * len(column)):
        return low, high
    moving = column[far]
    if not len(moving) or (low <= moving.min() and moving.max() <= high):
        return low, high
    least, most = (float(q) for q in np.quantile(moving, (0.1, 0.9)))
    spike = _is_far(moving, min(bottom, least), max(top, most))
    if spike.sum() < max(FEW, RARE * len(moving)):
        far[np.flatnonzero(far)[~spike]] = False  # `far` now marks the spikes
        column = column[~far]
    return float(column.min()), float(column.max())


def _is_far(values: Float64[np.ndarray, "T"], low: float, high: float, ranges: float = FAR) -> Bool[np.ndarray, "T"]:
    """Return which values are more than `ranges` core ranges outside of the core, from low to high."""
    margin = ranges * (high - low)
    return (values < low - margin) | (values > high + margin)


def never_varies(low: float, high: float, magnitude: float) -> bool:
    """Return whether values from low to high are one value to float32, at this magnitude."""
    return high - low <= max(PRECISION * magnitude, _SMALLEST)


def constant_dims(space: ActionSpace, statistics: Mapping[str, Sequence[float]]) -> list[bool]:
    """Return which dims never vary. Without "min" and "max", as in statistics made by hand, every dim varies."""
    if "min" not in statistics or "max" not in statistics:
        return [False] * space.size
    low, high = statistics["min"], statistics["max"]
    magnitudes = [max(abs(a), abs(b)) for a, b in zip(low, high, strict=True)]
    for group, place in zip(space.groups, space.slices().values(), strict=True):
        if group.kind == "rotation":
            magnitudes[place] = [max(magnitudes[place])] * group.size
    return [never_varies(*dim) for dim in zip(low, high, magnitudes, strict=True)]


def compute_scalings(
    space: ActionSpace, statistics: Mapping[str, Sequence[float]], method: Method
) -> list[tuple[float, float, float]]:
    """Return (center, half range, limit in model units) of each dim, from the statistics that `method` needs.

    The half range of a gripper that closes upward is negative. The limit of a dim that never varies is 0, and its
    center is its value.
    """
    return [_scale(group, dim, method, constant) for group, dim, constant in _split_dims(space, statistics)]


def _scale(group: Group, dim: Mapping[str, float], method: Method, constant: bool) -> tuple[float, float, float]:
    if group.kind == "gripper" and group.low is not None and group.high is not None:
        half = (group.high - group.low) / 2
        return (group.low + group.high) / 2, -half if group.open == group.low else half, 1.0
    if method == "calvin":
        return 0.0, CALVIN_LIMIT, 1.0
    if constant:
        return dim["min"] if dim["min"] == dim["max"] else dim.get("q50", dim["min"]), 1.0, 0.0
    if method == "meanstd":
        center, half, limit = dim["mean"], dim["std"], math.inf
    else:
        low, high = (dim["min"], dim["max"]) if method == "minmax" else _get_quantiles(dim)
        center, half, limit = (low + high) / 2, (high - low) / 2, 1.0
    return (center, half, limit) if half > _SMALLEST else (center, 1.0, 0.0)


def _get_quantiles(dim: Mapping[str, float]) -> tuple[float, float]:
    """Return the range of `quantile_range`. Statistics made without it only say whether a dim rests."""
    if "low" in dim:
        return dim["low"], dim["high"]
    low, high = dim["q01"], dim["q99"]
    return (dim.get("min", low), dim.get("max", high)) if is_at_rest(dim) else (low, high)


def is_at_rest(dim: Mapping[str, float]) -> bool:
    """Return whether the core of a dim never varies. Without percentiles 10 and 90, percentiles 1 and 99 bound it."""
    return _is_constant(dim.get("q10", dim["q01"]), dim.get("q90", dim["q99"]))


def _is_constant(low: float, high: float) -> bool:
    return never_varies(low, high, max(abs(low), abs(high)))


def describe_unusual_dims(
    space: ActionSpace, statistics: Mapping[str, Sequence[float]], method: Method, what: str
) -> list[str]:
    """Return a sentence for each dim that never varies, that its quantiles would cut off, or that has spikes.

    `what` ("action" | "proprio") is the name of the vector.
    """
    out = []
    for dim, (group, values, constant) in enumerate(_split_dims(space, statistics)):
        name = f"{what} {space.locate(dim)}"
        if constant and group.kind == "gripper":
            out.append(f"{name}: the gripper never moves in this data; it keeps its declared range")
        elif constant and method != "calvin":
            value, _, _ = _scale(group, values, method, True)
            role = (
                f"it is not learned, and acting writes {value:.6g}" if what == "action" else "the policy reads it as 0"
            )
            shown = f"{value:.6g}"
            if abs(value) > _FAR_FROM_ZERO:
                shown += f"; float32 shows no differences below {PRECISION * abs(value):.2g}, so subtract an offset"
            out.append(f"{name} never varies in this data ({shown}): {role}")
        elif method == "quantile" and group.kind != "gripper" and not constant:
            low, high = _get_quantiles(values)
            if (low, high) != (values["q01"], values["q99"]):
                out.append(
                    f"{name} rests most of the time: q01 to q99 ({values['q01']:.4g} to {values['q99']:.4g}) would cut "
                    f"off its motion, so it is scaled by {low:.4g} to {high:.4g}"
                )
            ends = np.array([values.get("min", low), values.get("max", high)])
            core = values.get("q10", low), values.get("q90", high)
            if _is_far(ends, *core).any() and (ends[0] < low or high < ends[1]):
                out.append(
                    f"{name} has spikes from {ends[0]:.4g} to {ends[1]:.4g}, fewer than one in a thousand steps; it is "
                    f"scaled by {low:.4g} to {high:.4g} and cannot reach them. If they are motion, use normalization "
                    "minmax"
                )
    return out


def _split_dims(
    space: ActionSpace, statistics: Mapping[str, Sequence[float]]
) -> list[tuple[Group, dict[str, float], bool]]:
    """Return the group and the statistics (without the count) of each dim, and whether it never varies."""
    whole = {key: values for key, values in statistics.items() if len(values) == space.size and key != "count"}
    columns = [{key: values[dim] for key, values in whole.items()} for dim in range(space.size)]
    groups = [group for group in space.groups for _ in range(group.size)]
    return list(zip(groups, columns, constant_dims(space, statistics), strict=True))
