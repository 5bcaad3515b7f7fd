from __future__ import annotations

import math

import pytest

from anyvla.robot.units import unit_ratio


def test_ratios() -> None:
    for source, target, ratio in (
        ("m", "m", 1),
        ("mm", "m", 0.001),
        ("0.02 m", "m", 0.02),
        ("m", "0.02 m", 50),
        ("0.05 rad", "deg", 0.05 * 180 / math.pi),
        ("cm", "mm", 10),
    ):
        assert unit_ratio(source, target) == pytest.approx(ratio)
    assert unit_ratio("0.02 m", "0.02 m") == 1


@pytest.mark.parametrize(
    ("source", "target"), [("m", "rad"), ("", "m"), ("m", ""), ("0 m", "m"), ("1.2.3 m", "m"), ("N", "N")]
)
def test_unknown_units_are_refused(source: str, target: str) -> None:
    with pytest.raises(ValueError, match="unit"):
        unit_ratio(source, target)
