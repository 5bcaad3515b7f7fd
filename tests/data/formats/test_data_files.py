"""Tests of the order of numbered names."""

from __future__ import annotations

from anyvla.data.formats.data_files import natural_order


def test_names_are_in_the_order_of_their_numbers() -> None:
    assert sorted(["demo_10", "demo_2", "demo_1"], key=natural_order) == ["demo_1", "demo_2", "demo_10"]


def test_a_digit_that_is_no_decimal_is_text() -> None:
    assert natural_order("²") == ["²"]  # isdigit accepts it, int does not
