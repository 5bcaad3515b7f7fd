"""Robot units <-> [-1, 1], by statistics that are saved in the checkpoint.

Missing statistics and statistics of a wrong size are errors. Grippers are scaled by their declared range.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from anyvla.files.documents import read_object
from anyvla.robot.exact_table import ExactBuffers
from anyvla.robot.ranges import NEEDS, Method, compute_scalings, is_at_rest
from anyvla.robot.shared_space import dim_indices
from anyvla.robot.space import ActionSpace
from anyvla.robot.statistics_check import LARGEST, check_robot


class StatisticsError(ValueError):
    """Statistics that are missing or do not fit the action space."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of a data set, per dim, and its fingerprint."""

    # "min" | "max" | "mean" | "std" | "q01" .. "q99" | "low" and "high" (of `quantile_range`) -> one value per dim
    action: Mapping[str, Sequence[float]]
    proprio: Mapping[str, Sequence[float]]
    fingerprint: str  # of the data the values come from


def write_statistics(robots: Mapping[str, Statistics]) -> str:
    """Return the contents of `statistics.json` for the robots of a policy, by name."""
    return json.dumps({name: vars(of) for name, of in robots.items()}, indent=1)


def read_statistics(path: Path) -> dict[str, Statistics]:
    """Read `statistics.json`. Raises StatisticsError if it is missing or incomplete."""
    if not path.is_file():
        raise StatisticsError(
            f"no statistics at {path}: without them actions cannot be turned into robot units. "
            "Take the whole checkpoint folder, or train again"
        )
    try:
        data = read_object(path)
        for name, of in data.items():
            check_robot(of, f"{path}, {name}")
        return {
            name: Statistics(_as_scaled(of["action"]), _as_scaled(of["proprio"]), of["fingerprint"])
            for name, of in data.items()
        }
    except ValueError as error:
        raise StatisticsError(f"{error}; take the checkpoint again, whole, or train again") from None


def _as_scaled(vector: dict[str, list[float]]) -> dict[str, list[float]]:
    """Return statistics under which an older checkpoint acts as it was trained.

    Before "low" and "high" were kept, a half range or a standard deviation up to 1e-6 was replaced by 1, around the
    same center, and `quantile` was q01 to q99 for every dim. Constant dims need no change: their center is their value.
    """
    if "low" in vector or not {"min", "max"} <= vector.keys():
        return vector
    out = {key: list(values) for key, values in vector.items()}
    ranges = [ends for ends in (("q01", "q99"), ("min", "max")) if set(ends) <= vector.keys()]
    varying = np.flatnonzero(np.array(vector["min"]) < np.array(vector["max"])).tolist()
    for dim in varying:
        if "std" in out and out["std"][dim] <= 1e-6:
            out["std"][dim] = 1.0
        for low, high in ranges:
            if out[high][dim] - out[low][dim] <= 2e-6:
                center = (out[low][dim] + out[high][dim]) / 2
                out[low][dim], out[high][dim] = center - 1, center + 1
    quantiles = [key for key in ("q01", "q10", "q90", "q99") if key in vector]
    if len(ranges) == 2 and any(is_at_rest({key: vector[key][dim] for key in quantiles}) for dim in varying):
        out |= {"low": out["q01"], "high": out["q99"]}
    return out


class Normalizer(ExactBuffers):
    """One vector of several robots, group by group, to [-1, 1] and back, each robot by its own statistics.

    `whole` is the layout that the robots share (`merge_spaces`); for one robot its own space. The range of a gripper is
    declared, and its +1 is open if the declaration says which end that is. All other ranges follow from statistics
    (`anyvla.robot.ranges`). A dim that never varies is 0 in model units and keeps its value in robot units. Dims that a
    robot lacks are 0. A value within the range returns from model units with an error of at most `ranges.PRECISION`
    times the largest magnitude of its dim.
    """

    exact = ("offset", "scale", "limit", "known")
    offset: Tensor
    scale: Tensor
    limit: Tensor
    known: Tensor  # (E, A): which dims each of the E robots has

    def __init__(
        self,
        whole: ActionSpace,
        robots: Sequence[tuple[ActionSpace, Mapping[str, Sequence[float]]]],
        method: Method,
        *,
        what: str,
        clip: bool,  # outliers to the range
    ) -> None:
        """`robots`: space and statistics of each. `what`: "action" or "proprio", for errors. Raises StatisticsError."""
        super().__init__()
        shape = (len(robots), whole.size)
        offset, scale, limit = torch.zeros(shape), torch.ones(shape), torch.zeros(shape)
        known = torch.zeros(shape, dtype=torch.bool)
        for row, (space, statistics) in enumerate(robots):
            _check_statistics(space, statistics, method, what)
            at = torch.from_numpy(dim_indices(space, whole))
            dims = torch.tensor(compute_scalings(space, statistics, method), dtype=torch.float32).view(-1, 3)  # (A, 3)
            offset[row, at], scale[row, at] = dims[:, 0], dims[:, 1]
            limit[row, at] = dims[:, 2] if clip else torch.where(dims[:, 2] > 0, math.inf, 0.0)
            known[row, at] = True
        for name, values in (("offset", offset), ("scale", scale), ("limit", limit), ("known", known)):
            self.register_buffer(name, values, persistent=False)
        # Kept, since asking a device takes time: whether all dims are learned, and how many are of each robot.
        self.learns_all = bool(self.learned.all())
        self.learned_counts: list[int] = self.learned.sum(1).tolist()

    @property
    def learned(self) -> Bool[Tensor, "E A"]:
        """Return which dims of each robot a policy learns: dims that the robot has and that vary."""
        return self.limit > 0

    def normalize(self, x: Float[Tensor, "B ... A"], robots: Int64[Tensor, "B"]) -> Float[Tensor, "B ... A"]:
        """Convert robot units to model units. `robots` is the index of the robot of each row."""
        offset, scale, limit = self._get_tables(robots, x.ndim)
        y = (x.float() - offset) / scale
        return torch.minimum(torch.maximum(y, -limit), limit)

    def denormalize(self, y: Float[Tensor, "B ... A"], robots: Int64[Tensor, "B"]) -> Float[Tensor, "B ... A"]:
        """Convert model units to robot units, after clipping to the range."""
        offset, scale, limit = self._get_tables(robots, y.ndim)
        y = torch.minimum(torch.maximum(y.float(), -limit), limit)
        return y * scale + offset

    def _get_tables(self, robots: Int64[Tensor, "B"], dims: int) -> list[Tensor]:
        """Return offset, scale and limit of each row, shaped to broadcast."""
        between = (len(robots), *[1] * (dims - 2), -1)
        return [values[robots].view(between) for values in (self.offset, self.scale, self.limit)]


def _check_statistics(space: ActionSpace, statistics: Mapping[str, Sequence[float]], method: Method, what: str) -> None:
    """Raise StatisticsError for statistics that lack a value or hold one that float32 cannot."""
    missing = [key for key in NEEDS[method] if key not in statistics]
    if missing:
        raise StatisticsError(f"{what} statistics lack {missing}, needed by {method!r}; have {sorted(statistics)}")
    for key in (key for key in statistics if key != "count"):
        if len(statistics[key]) != space.size:
            raise StatisticsError(
                f"{what} statistics have {len(statistics[key])} dims, the {what} space has {space.size}"
            )
        if not all(abs(value) <= LARGEST for value in statistics[key]):  # NaN too
            raise StatisticsError(
                f"{what} statistics hold values that are not finite, or above {LARGEST:.1g}, too large for float32: "
                f"{key} {list(statistics[key])}"
            )
