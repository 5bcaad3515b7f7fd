"""Checks of statistics: values that no data set has are refused before anything is computed from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch

LARGEST = float(torch.finfo(torch.float32).max) / 4  # sums and differences of two must be finite
_ASCENDING = ("min", "q01", "q10", "q50", "q90", "q99", "max")
_PER_DIM = (*_ASCENDING, "mean", "std", "low", "high")


def check_robot(of: Any, where: str) -> None:
    """Check the statistics of one robot in `statistics.json`. Raises a ValueError that begins with `where`."""
    if not isinstance(of, Mapping):
        raise ValueError(f"{where}: expected action, proprio and fingerprint, found {type(of).__name__}")
    for vector in ("action", "proprio"):
        _check_vector(of.get(vector), f"{where}, {vector}")
    if not isinstance(of.get("fingerprint"), str):
        raise ValueError(f"{where}, fingerprint: expected text")


def check_size(vector: Mapping[str, Any], size: int, where: str) -> None:
    """Raise ValueError for too many or too few numbers for a robot's vector."""
    for key in _PER_DIM:
        if key in vector and len(vector[key]) != size:
            raise ValueError(f"{where}, {key}: {len(vector[key])} numbers for {size} dims")


def _check_vector(of: Any, where: str) -> None:
    if not isinstance(of, Mapping):
        raise ValueError(f"{where}: expected lists of numbers by name")
    for key, values in of.items():
        if not isinstance(values, list) or not all(map(_is_number, values)):
            raise ValueError(f"{where}, {key}: expected a list of finite numbers within ±{LARGEST:.1g}")
    size = next((len(of[key]) for key in _PER_DIM if key in of), 0)
    check_size(of, size, where)
    if any(value < 0 for value in of.get("std", ())):
        raise ValueError(f"{where}, std: a standard deviation is never below 0")
    for dim in range(size):
        for lower, upper in pairwise(key for key in _ASCENDING if key in of):
            if of[lower][dim] > of[upper][dim]:
                raise ValueError(f"{where}: dim {dim} has {lower} {of[lower][dim]:g} above {upper} {of[upper][dim]:g}")


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and abs(value) <= LARGEST
    )
