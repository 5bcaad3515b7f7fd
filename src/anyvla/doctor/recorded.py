"""Compare predicted with recorded actions: delay, sign and scale, so that a person sees why a robot would misbehave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from anyvla.robot.space import ActionSpace, Group, label_dims

MOST_LAG = 8  # control steps
_ENOUGH = 12  # steps that overlap, for a correlation that means something
_CLEAR = 0.5  # correlation
_GAIN = 0.1  # of the correlation by a delay that is reported
_SCALE = (0.5, 2.0)  # of the recorded motion; a trained policy is somewhat smoother than people are


@dataclass(frozen=True)
class DimAgreement:
    """How the predicted values of a dim follow the recorded ones, at the best delay of the group."""

    name: str
    correlation: float | None  # None: one of both is constant
    scale: float | None  # standard deviation, predicted by recorded
    offset: float  # of the means, in the robot's unit


@dataclass(frozen=True)
class GroupAgreement:
    """How the predicted actions of a group follow the recorded ones."""

    group: str
    delay: int  # control steps that the predicted actions are late; negative: early
    correlation: float | None  # at that delay, mean over the dims, weighted by their variances
    undelayed: float | None  # without a delay
    dims: tuple[DimAgreement, ...]
    gripper: float | None  # share of the steps on which the gripper agrees; None: no gripper
    remarks: tuple[str, ...]


def compare_with_recorded(
    space: ActionSpace, predicted: Sequence[Float32[np.ndarray, "T A"]], recorded: Sequence[Float32[np.ndarray, "T A"]]
) -> list[GroupAgreement]:
    """Return the agreement of each group, over episodes: `predicted[e][t]` would be executed after observing step t."""
    return [
        _compare_group(group, [p[:, place] for p in predicted], [r[:, place] for r in recorded])
        for group, place in zip(space.groups, space.slices().values(), strict=True)
    ]


def _compare_group(group: Group, predicted: Sequence[np.ndarray], recorded: Sequence[np.ndarray]) -> GroupAgreement:
    moving = group.mode == "absolute" and group.kind != "gripper"
    p = [np.diff(x, axis=0) if moving else x for x in predicted]  # an absolute position is like the one before
    r = [np.diff(x, axis=0) if moving else x for x in recorded]
    found = {lag: _correlate(*_align(p, r, lag)) for lag in range(-MOST_LAG, MOST_LAG + 1)}
    weights = np.concatenate(r).astype(np.float64).var(0) if r else np.zeros(group.size)
    means = {lag: _average(c, weights) for lag, c in found.items()}
    known = {lag: value for lag, value in means.items() if value is not None}
    best = max(known, key=lambda lag: (abs(known[lag]), -abs(lag)), default=0)
    undelayed = means[0]
    if undelayed is not None and (abs(known[best]) < _CLEAR or abs(known[best]) < abs(undelayed) + _GAIN):
        best = 0
    x, y = _align(p, r, best)
    correlations = found[best]
    dims = [
        _compare_dim(label, correlations[d], x[:, d], y[:, d], np.concatenate(predicted), np.concatenate(recorded), d)
        for d, label in enumerate(label_dims(group))
    ]
    gripper = _agree(group, predicted, recorded)
    return GroupAgreement(
        group.name,
        best,
        means[best],
        undelayed,
        tuple(dims),
        gripper,
        tuple(_remark(group, best, means, dims, gripper)),
    )


def _align(
    predicted: Sequence[np.ndarray], recorded: Sequence[np.ndarray], lag: int
) -> tuple[Float64[np.ndarray, "K d"], Float64[np.ndarray, "K d"]]:
    """Return pairs predicted[t], recorded[t - lag] of all episodes."""
    xs, ys = [], []
    for p, r in zip(predicted, recorded, strict=True):
        count = min(len(p), len(r))
        begin, end = max(0, lag), max(0, min(count, count + lag))
        xs.append(p[begin:end].astype(np.float64))
        ys.append(r[begin - lag : max(begin, end) - lag].astype(np.float64))
    return np.concatenate(xs), np.concatenate(ys)


def _correlate(x: Float64[np.ndarray, "K d"], y: Float64[np.ndarray, "K d"]) -> Float64[np.ndarray, "d"]:
    """Return the correlation of each dim; nan where there is none."""
    if len(x) < _ENOUGH:
        return np.full(x.shape[1], np.nan)
    x, y = x - x.mean(0), y - y.mean(0)
    size = np.sqrt((x**2).sum(0) * (y**2).sum(0))
    return np.where(size > 1e-12, (x * y).sum(0) / np.where(size > 1e-12, size, 1), np.nan)


def _average(correlations: Float64[np.ndarray, "d"], weights: Float64[np.ndarray, "d"]) -> float | None:
    there = np.isfinite(correlations) & (weights > 0)
    if not there.any():
        return None
    return float((np.abs(correlations[there]) * weights[there]).sum() / weights[there].sum())


def _compare_dim(
    name: str, correlation: float, x: np.ndarray, y: np.ndarray, predicted: np.ndarray, recorded: np.ndarray, dim: int
) -> DimAgreement:
    known = bool(np.isfinite(correlation))
    return DimAgreement(
        name,
        float(correlation) if known else None,
        float(x.std() / y.std()) if known and y.std() > 0 else None,
        float(predicted[:, dim].mean() - recorded[:, dim].mean()),
    )


def _agree(group: Group, predicted: Sequence[np.ndarray], recorded: Sequence[np.ndarray]) -> float | None:
    if group.kind != "gripper" or group.low is None or group.high is None:
        return None
    middle = (group.low + group.high) / 2
    p, r = np.concatenate(predicted), np.concatenate(recorded)
    return float(((p >= middle) == (r >= middle)).mean())


def _remark(
    group: Group, delay: int, means: dict[int, float | None], dims: Sequence[DimAgreement], gripper: float | None
) -> list[str]:
    """Return sentences about everything that would make a robot misbehave."""
    out = []
    if gripper is not None:
        if gripper < 0.3:
            out.append(f"the gripper does the opposite on {100 * (1 - gripper):.0f} % of the steps")
        return out
    if delay:
        late = f"{abs(delay)} control step{'s' if abs(delay) > 1 else ''} {'late' if delay > 0 else 'early'}"
        out.append(f"{late} (correlation {means[delay]:.2f}, {means[0] or 0:.2f} without the delay)")
    for dim in dims:
        if dim.correlation is None or abs(dim.correlation) < _CLEAR:
            continue
        if dim.correlation < 0:
            out.append(f"{dim.name} is mirrored (correlation {dim.correlation:.2f})")
        if dim.scale is not None and not _SCALE[0] <= dim.scale <= _SCALE[1]:
            out.append(f"{dim.name} moves {dim.scale:.2g} times as much as recorded")
    found = means[delay]
    if found is not None and found < _CLEAR:
        out.append(f"follows the recorded motion little (correlation {found:.2f})")
    return out
