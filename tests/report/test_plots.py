from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anyvla.evaluation.intervals import Interval, wilson
from anyvla.report.plots import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    curve,
    difference_bar,
    interval_bar,
    percent,
    rate_curve,
    signed,
    span,
)

NUMBERS = st.floats(-1e6, 1e6) | st.floats(1e-9, 1e-3)


@pytest.mark.parametrize(
    ("share", "text"),
    [(1, "100 %"), (0, "0 %"), (119 / 120, "99.2 %"), (0.99999, "> 99.9 %"), (0.00001, "< 0.1 %"), (0.5, "50 %")],
)
def test_percent(share, text):
    assert percent(share).replace("\N{NO-BREAK SPACE}", " ") == text


def test_span():
    assert span(wilson(119, 120)) == "95.4\N{EN DASH}99.9\N{NO-BREAK SPACE}%"
    assert span(wilson(0, 80)) == "0\N{EN DASH}4.6\N{NO-BREAK SPACE}%"


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_bar_is_drawn_to_scale_and_says_what_it_shows(counts):
    interval = wilson(*counts)
    svg = ElementTree.fromstring(interval_bar(interval, "open <it> & wait", "told"))
    track, fill = svg.findall("rect")
    assert track.get("width") == "100%"
    assert float(fill.get("width").rstrip("%")) == pytest.approx(100 * interval.value, abs=0.01)
    whisker = svg.findall("line")[0]
    assert float(whisker.get("x1").rstrip("%")) == pytest.approx(100 * interval.low, abs=0.01)
    assert float(whisker.get("x2").rstrip("%")) == pytest.approx(100 * interval.high, abs=0.01)
    assert svg.get("aria-label").startswith(f"open <it> & wait: {counts[0]} of {counts[1]}, ")


@given(st.lists(NUMBERS, min_size=1, max_size=600), st.booleans())
@example([5e-324], False)
@example([5e-324, 1.0], True)
def test_a_curve_stays_in_its_frame(values, log):
    svg = ElementTree.fromstring(curve(range(10, 10 * len(values) + 10, 10), values, "loss", log))
    points = [tuple(map(float, p.split(","))) for p in svg.find("polyline").get("points").split()]
    assert 1 <= len(points) <= 240
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP - 0.1 <= y <= HEIGHT for x, y in points)
    assert [x for x, _ in points] == sorted(x for x, _ in points)


def test_tick_labels_are_where_their_numbers_are():
    values = [1e-3 * (1 - i / 100) for i in range(100)]
    svg = ElementTree.fromstring(curve(range(100), values, "lr"))
    ticks = [(float(t.text), float(t.get("y"))) for t in svg.findall("text") if t.get("x") == str(LEFT - 7)]
    assert [value for value, _ in ticks] == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4, 1e-3])
    steps = {round((b[1] - a[1]) / (b[0] - a[0])) for a, b in pairwise(ticks)}
    assert max(steps) - min(steps) <= abs(max(steps)) * 0.01


def test_each_point_tells_its_value():
    svg = curve([10, 20], [0.5, 0.25], "loss", log=True)
    assert "<title>step 10: 0.5</title>" in svg
    assert "<title>step 20: 0.25</title>" in svg


def test_what_is_not_finite_is_left_out():
    svg = ElementTree.fromstring(curve([1, 2, 3], [0.5, math.nan, 0.25], "loss"))
    assert len(svg.find("polyline").get("points").split()) == 2
    with pytest.raises(ValueError, match="loss: there is no finite value"):
        curve([1], [math.inf], "loss")
    with pytest.raises(ValueError, match="loss: 2 steps but 1 values"):
        curve([1, 2], [0.1], "loss")


def test_differences_go_to_their_side_of_the_middle():
    def parts(value, low, high, reach=0.5):
        svg = ElementTree.fromstring(difference_bar(Interval(value, low, high, 40), "b against a", reach))
        fill = next(r for r in svg.iter("rect") if r.get("class") == "fill")
        return [float(fill.get(key).rstrip("%")) for key in ("x", "width")], svg.get("aria-label"), svg.get("class")

    assert parts(0.25, 0.1, 0.4) == ([50, 25], "b against a: +25, interval +10 to +40", "bar told")
    assert parts(-0.25, -0.4, 0.0) == ([25, 25], "b against a: -25, interval -40 to 0", "bar first")
    assert parts(0.9, 0.8, 1.0)[0] == [50, 50]  # no further than the cell


def test_small_differences_are_not_noise():
    assert [signed(v) for v in (0.0, -0.0001, 0.025, -1.0)] == ["0", "0", "+2.5", "-100"]


def test_rates_fall_where_they_are():
    rates = {8: wilson(0, 10), 0: wilson(10, 10), 4: wilson(5, 10)}
    svg = ElementTree.fromstring(rate_curve(rates, "delay, <actions>", "success"))
    points = [tuple(map(float, p.split(","))) for p in svg.find("polyline").get("points").split()]
    assert [y for _, y in points] == pytest.approx([TOP, (TOP + HEIGHT - BOTTOM) / 2, HEIGHT - BOTTOM], abs=0.1)
    assert points[1][0] == pytest.approx((points[0][0] + points[2][0]) / 2, abs=0.1)
    whisker = next(line for line in svg.iter("line") if line.get("class") == "whisker")
    assert float(whisker.get("y1")) - TOP == pytest.approx((1 - rates[0].low) * (HEIGHT - BOTTOM - TOP), abs=0.1)
    assert svg.find("text[@class='axis']").text == "delay, <actions>"
    assert ElementTree.fromstring(rate_curve({3: wilson(1, 2)}, "delay", "one")).find("polyline") is not None
    with pytest.raises(ValueError, match="none: there is no rate to draw"):
        rate_curve({}, "delay", "none")
