"""Statistics that no data set has are refused, and ordinary ones are not."""

from __future__ import annotations

from typing import Any

import pytest

from anyvla.robot.statistics_check import check_robot, check_size

KEYS = ("min", "q01", "q10", "q50", "q90", "q99", "max")  # in ascending order


def make_vector(**changes: list[float]) -> dict[str, Any]:
    """Return the statistics of two dims."""
    of = {key: [float(rank), -7.0 + rank] for rank, key in enumerate(KEYS)}
    return of | {"mean": [3.0, -4.0], "std": [0.0, 2.0], "low": [1.0, -6.0], "high": [5.0, -2.0]} | changes


def make_robot(part: str, changes: dict[str, Any]) -> dict[str, Any]:
    return {"action": make_vector(), "proprio": make_vector(), "fingerprint": "f"} | {part: make_vector(**changes)}


PARTS = pytest.mark.parametrize("part", ["action", "proprio"])


@PARTS
def test_ordinary_statistics_pass(part: str) -> None:
    check_robot(make_robot(part, {}), "arm")
    check_robot(make_robot(part, {key: [4.0, 4.0] for key in KEYS}), "arm")  # a constant dim
    check_robot(make_robot(part, {"q10": [3.0, -4.0], "q90": [3.0, -4.0]}), "arm")  # percentiles may be equal


@PARTS
@pytest.mark.parametrize("rank", range(6))
def test_percentiles_ascend_in_every_dim(part: str, rank: int) -> None:
    lower, upper = KEYS[rank], KEYS[rank + 1]
    below = {upper: [float(rank + 1), -7.0 + rank - 0.01]}
    with pytest.raises(ValueError, match=f"arm, {part}: dim 1 has {lower} .* above {upper}"):
        check_robot(make_robot(part, below), "arm")


@PARTS
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"std": [0.0, -1e-6]}, "std: a standard deviation is never below 0"),
        ({"mean": [0.0]}, "mean: 1 numbers for 2 dims"),
        ({"high": [0.0, 0.0, 0.0]}, "high: 3 numbers for 2 dims"),
        ({"max": [1e300, 1.0]}, "max: expected a list of finite numbers"),
        ({"max": [3e38, 1.0]}, "max: expected a list of finite numbers"),  # float32 holds it, but not twice it
        ({"min": [-3e38, 1.0]}, "min: expected a list of finite numbers"),
        ({"mean": [float("nan"), 1.0]}, "mean: expected a list of finite numbers"),
        ({"mean": [True, 1.0]}, "mean: expected a list of finite numbers"),
        ({"mean": "abc"}, "mean: expected a list of finite numbers"),
    ],
)
def test_impossible_statistics_are_refused(part: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"arm, {part}, {message}"):
        check_robot(make_robot(part, changes), "arm")


@pytest.mark.parametrize("lacking", ["action", "proprio", "fingerprint"])
def test_every_part_is_needed(lacking: str) -> None:
    with pytest.raises(ValueError, match=f"arm, {lacking}: expected"):
        check_robot({key: value for key, value in make_robot("action", {}).items() if key != lacking}, "arm")


def test_a_vector_of_another_size_is_refused() -> None:
    check_size(make_vector(), 2, "arm")
    for size in (1, 3):
        with pytest.raises(ValueError, match=f"arm, min: 2 numbers for {size} dims"):
            check_size(make_vector(), size, "arm")
