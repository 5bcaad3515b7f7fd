"""Robot units <-> [-1, 1], from statistics that travel inside the checkpoint.

Silent un-normalisation bugs are the commonest way to lose a policy: here statistics that are missing or of the wrong
size are an error, grippers are scaled by their declared range and never by quantiles, and undoing mirrors doing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from anyvla.actions.shared import places
from anyvla.actions.space import ActionSpace

# calvin: cut to +-0.65 whatever the statistics, as RoboVLMs (arXiv 2412.14058) does with CALVIN's relative actions
Method = Literal["quantile", "minmax", "meanstd", "calvin"]
CALVIN_LIMIT = 0.65
_NEEDS: dict[str, tuple[str, ...]] = {
    "quantile": ("q01", "q99"),
    "minmax": ("min", "max"),
    "meanstd": ("mean", "std"),
    "calvin": (),
}


class StatisticsError(ValueError):
    """Statistics that are missing or do not fit the action space."""


@dataclass(frozen=True)
class Statistics:
    """What the data looked like, per dim, and which data it was."""

    action: Mapping[str, Sequence[float]]  # "min" | "max" | "mean" | "std" | "q01" | "q99" -> one value per dim
    proprio: Mapping[str, Sequence[float]]
    fingerprint: str  # of the data the values come from


def write_statistics(robots: Mapping[str, Statistics]) -> str:
    """The contents of a checkpoint's `statistics.json`, for the robots of a policy by name."""
    return json.dumps({name: vars(of) for name, of in robots.items()}, indent=1)


def read_statistics(path: Path) -> dict[str, Statistics]:
    """Read `statistics.json`. Raises StatisticsError if it is missing or incomplete."""
    if not path.is_file():
        raise StatisticsError(
            f"no statistics at {path}: without them actions cannot be turned into robot units. "
            "Take the whole checkpoint folder, or train again"
        )
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {name: Statistics(of["action"], of["proprio"], of["fingerprint"]) for name, of in data.items()}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise StatisticsError(f"{path} is not a statistics file of anyvla ({error!r}); train again") from None


class Normalizer(nn.Module):
    """One vector of several robots, group by group, to [-1, 1] and back, each robot by its own statistics.

    `whole` is the layout that the robots share (`anyvla.actions.shared.union`); for one robot its own space. Ranges:
    declared for grippers, whose +1 is open if they say which end that is, else from statistics. A dim that never varies
    in the data maps to 0 plus its distance from that value; dims that a robot lacks are 0.
    """

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
        clip: bool,
    ) -> None:
        """`robots`: space and statistics of each. `what` ("action" | "proprio") names the vector in errors.
        `clip`: outliers are cut to the range's ends. Raises StatisticsError.
        """
        super().__init__()
        shape = (len(robots), whole.size)
        offset, scale, limit = torch.zeros(shape), torch.ones(shape), torch.zeros(shape)
        known = torch.zeros(shape, dtype=torch.bool)
        for row, (space, statistics) in enumerate(robots):
            at = torch.from_numpy(places(space, whole))
            dims = torch.tensor(_ranges(space, statistics, method, what), dtype=torch.float32)  # (A, 3)
            offset[row, at], scale[row, at] = dims[:, 0], dims[:, 1]
            limit[row, at] = dims[:, 2] if clip else math.inf
            known[row, at] = True
        for name, values in (("offset", offset), ("scale", scale), ("limit", limit), ("known", known)):
            self.register_buffer(name, values, persistent=False)

    def normalise(self, x: Float[Tensor, "B ... A"], robots: Int64[Tensor, "B"]) -> Float[Tensor, "B ... A"]:
        """Robot units -> model units; `robots`: which of the robots each row is of."""
        offset, scale, limit = self._of(robots, x.ndim)
        y = (x.float() - offset) / scale
        return torch.minimum(torch.maximum(y, -limit), limit)

    def denormalise(self, y: Float[Tensor, "B ... A"], robots: Int64[Tensor, "B"]) -> Float[Tensor, "B ... A"]:
        """Model units -> robot units; what leaves the range is cut to its end first."""
        offset, scale, limit = self._of(robots, y.ndim)
        y = torch.minimum(torch.maximum(y.float(), -limit), limit)
        return y * scale + offset

    def _of(self, robots: Int64[Tensor, "B"], dims: int) -> list[Tensor]:
        """Offset, scale and limit of each row, with dims between row and action to broadcast over."""
        between = (len(robots), *[1] * (dims - 2), -1)
        return [values[robots].view(between) for values in (self.offset, self.scale, self.limit)]


def _ranges(
    space: ActionSpace, statistics: Mapping[str, Sequence[float]], method: Method, what: str
) -> list[tuple[float, float, float]]:
    """(centre, half range, limit in model units) of each dim. The half range of a gripper that closes upward is < 0."""
    needed = _NEEDS[method]
    missing = [key for key in needed if key not in statistics]
    if missing:
        raise StatisticsError(f"{what} statistics lack {missing}, needed by {method!r}; have {sorted(statistics)}")
    for key in needed:
        if len(statistics[key]) != space.size:
            raise StatisticsError(
                f"{what} statistics have {len(statistics[key])} dims, the {what} space has {space.size}"
            )
        if not all(map(math.isfinite, statistics[key])):
            raise StatisticsError(f"{what} statistics hold values that are not finite: {key} {list(statistics[key])}")
    out = []
    for group, place in zip(space.groups, space.slices().values(), strict=True):
        for dim in range(place.start, place.stop):
            limit = 1.0
            if group.kind == "gripper" and group.low is not None and group.high is not None:
                center, half = (group.low + group.high) / 2, (group.high - group.low) / 2
                half = -half if group.open == group.low else half
            elif method == "calvin":
                center, half = 0.0, CALVIN_LIMIT
            else:
                a, b = (statistics[key][dim] for key in needed)
                center, half = (a, b) if method == "meanstd" else ((a + b) / 2, (b - a) / 2)
                limit = math.inf if method == "meanstd" else 1.0
            out.append((center, half if abs(half) > 1e-6 else 1.0, limit))
    return out
