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
from jaxtyping import Float
from torch import Tensor, nn

from anyvla.actions.space import ActionSpace

Method = Literal["quantile", "minmax", "meanstd"]
_NEEDS: dict[str, tuple[str, str]] = {"quantile": ("q01", "q99"), "minmax": ("min", "max"), "meanstd": ("mean", "std")}


class StatisticsError(ValueError):
    """Statistics that are missing or do not fit the action space."""


@dataclass(frozen=True)
class Statistics:
    """What the data looked like, per dim, and which data it was."""

    action: Mapping[str, Sequence[float]]  # "min" | "max" | "mean" | "std" | "q01" | "q99" -> one value per dim
    proprio: Mapping[str, Sequence[float]]
    fingerprint: str  # of the data set the values come from

    def to_json(self) -> str:
        """The contents of `statistics.json`."""
        return json.dumps({"fingerprint": self.fingerprint, "action": self.action, "proprio": self.proprio}, indent=1)

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read `statistics.json`. Raises StatisticsError if it is missing or incomplete."""
        if not path.is_file():
            raise StatisticsError(
                f"no statistics at {path}: without them actions cannot be turned into robot units. "
                "Take the whole checkpoint folder, or train again"
            )
        try:
            data: dict[str, Any] = json.loads(path.read_text())
            return cls(data["action"], data["proprio"], data["fingerprint"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise StatisticsError(f"{path} is not a statistics file of anyvla ({error!r}); train again") from None


class Normalizer(nn.Module):
    """One vector, group by group, to [-1, 1] and back. Group ranges: declared for grippers, else from statistics.

    A dim that never varies in the data maps to 0 plus its distance from that value.
    """

    offset: Tensor
    scale: Tensor
    limit: Tensor

    def __init__(
        self, space: ActionSpace, statistics: Mapping[str, Sequence[float]], method: Method, *, what: str, clip: bool
    ) -> None:
        """`what` ("action" | "proprio") names the vector in errors. `clip`: outliers are cut to the range's ends."""
        super().__init__()
        first, second = _NEEDS[method]
        missing = [key for key in (first, second) if key not in statistics]
        if missing:
            raise StatisticsError(f"{what} statistics lack {missing}, needed by {method!r}; have {sorted(statistics)}")
        a, b = statistics[first], statistics[second]
        if len(a) != space.size or len(b) != space.size:
            raise StatisticsError(f"{what} statistics have {len(a)} dims, the {what} space has {space.size}")
        if not all(map(math.isfinite, (*a, *b))):
            raise StatisticsError(f"{what} statistics hold values that are not finite: {list(a)}, {list(b)}")
        offset, scale, limit = [], [], []
        for group, place in zip(space.groups, space.slices().values(), strict=True):
            for x, y in zip(a[place], b[place], strict=True):
                unbounded = False
                if group.kind == "gripper" and group.low is not None and group.high is not None:
                    center, half = (group.low + group.high) / 2, (group.high - group.low) / 2
                elif method == "meanstd":
                    center, half, unbounded = x, y, True
                else:
                    center, half = (x + y) / 2, (y - x) / 2
                offset.append(center)
                scale.append(half if half > 1e-6 else 1.0)
                limit.append(1.0 if clip and not unbounded else math.inf)
        for name, values in (("offset", offset), ("scale", scale), ("limit", limit)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    def normalise(self, x: Float[Tensor, "... A"]) -> Float[Tensor, "... A"]:
        """Robot units -> model units."""
        y = (x.float() - self.offset) / self.scale
        return torch.minimum(torch.maximum(y, -self.limit), self.limit)

    def denormalise(self, y: Float[Tensor, "... A"]) -> Float[Tensor, "... A"]:
        """Model units -> robot units; what leaves the range is cut to its end first."""
        y = torch.minimum(torch.maximum(y.float(), -self.limit), self.limit)
        return y * self.scale + self.offset
