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
    draw_curve,
    draw_difference,
    draw_rate,
    draw_rate_curve,
    format_interval,
    format_percent,
    format_points,
    format_tick,
)
from tests.report.reading import plain

NUMBERS = st.floats(-1e6, 1e6) | st.floats(1e-9, 1e-3)


@pytest.mark.parametrize(
    ("share", "text"),
    [(1, "100 %"), (0, "0 %"), (119 / 120, "99.2 %"), (0.99999, "> 99.9 %"), (0.00001, "< 0.1 %"), (0.5, "50 %")],
)
def test_percent(share, text):
    assert format_percent(share).replace("\N{NO-BREAK SPACE}", " ") == text


def test_span():
    assert format_interval(wilson(119, 120)) == "95.4\N{EN DASH}99.9\N{NO-BREAK SPACE}%"
    assert format_interval(wilson(0, 80)) == "0\N{EN DASH}4.6\N{NO-BREAK SPACE}%"


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_bar_is_drawn_to_scale_and_labeled(counts):
    interval = wilson(*counts)
    svg = ElementTree.fromstring(draw_rate(interval, "open <it> & wait", "high"))
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
    svg = ElementTree.fromstring(draw_curve(range(10, 10 * len(values) + 10, 10), values, "loss", log))
    points = [tuple(map(float, p.split(","))) for p in svg.find("polyline").get("points").split()]
    assert 1 <= len(points) <= 240
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP - 0.1 <= y <= HEIGHT for x, y in points)
    assert [x for x, _ in points] == sorted(x for x, _ in points)


def test_tick_labels_are_where_their_numbers_are():
    values = [1e-3 * (1 - i / 100) for i in range(100)]
    svg = ElementTree.fromstring(draw_curve(range(100), values, "lr"))
    ticks = [(float(t.text), float(t.get("y"))) for t in svg.findall("text") if t.get("x") == str(LEFT - 7)]
    assert [value for value, _ in ticks] == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4, 1e-3])
    steps = {round((b[1] - a[1]) / (b[0] - a[0])) for a, b in pairwise(ticks)}
    assert max(steps) - min(steps) <= abs(max(steps)) * 0.01


def test_each_point_has_its_value_as_title():
    svg = draw_curve([10, 20], [0.5, 0.25], "loss", log=True)
    assert "<title>step 10: 0.5</title>" in svg
    assert "<title>step 20: 0.25</title>" in svg


def test_values_that_are_not_finite_are_omitted():
    svg = ElementTree.fromstring(draw_curve([1, 2, 3], [0.5, math.nan, 0.25], "loss"))
    assert len(svg.find("polyline").get("points").split()) == 2
    with pytest.raises(ValueError, match="loss: there is no finite value"):
        draw_curve([1], [math.inf], "loss")
    with pytest.raises(ValueError, match="loss: 2 steps but 1 values"):
        draw_curve([1, 2], [0.1], "loss")


def test_two_curves_share_their_axes():
    svg = draw_curve([10, 20], [8.0, 4.0], "loss", names=("training", "held out"), second=[(15, 2.0), (40, 16.0)])
    tree = ElementTree.fromstring(svg)
    first, second = (
        [tuple(map(float, p.split(","))) for p in line.get("points").split()] for line in tree.findall("polyline")
    )
    (x0, y0), (x1, y1) = first
    at = [(x0 + (x1 - x0) * (step - 10) / 10, y0 + (y1 - y0) * (8 - value) / 4) for step, value in [(15, 2), (40, 16)]]
    assert [pytest.approx(p, abs=0.3) for p in at] == second
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP - 0.1 <= y <= HEIGHT for x, y in second)
    assert tree.get("aria-label") == "training: 8 at step 10, 4 at step 20; held out: 2 at step 15, 16 at step 40"
    assert "<title>step 40: 16</title>" in svg
    assert [t.text for t in tree.findall("text") if "key" in (t.get("class") or "")] == ["training", "held out"]


def test_differences_go_to_their_side_of_the_middle():
    def parts(value, low, high, reach=0.5):
        svg = ElementTree.fromstring(draw_difference(Interval(value, low, high, 40), "b against a", reach))
        fill = next(r for r in svg.iter("rect") if r.get("class") == "fill")
        return [float(fill.get(key).rstrip("%")) for key in ("x", "width")], svg.get("aria-label"), svg.get("class")

    assert parts(0.25, 0.1, 0.4) == ([50, 25], "b against a: +25, interval +10 to +40", "bar high")
    assert parts(-0.25, -0.4, 0.0) == ([25, 25], "b against a: -25, interval -40 to 0", "bar low")
    assert parts(0.9, 0.8, 1.0)[0] == [50, 50]  # no further than the cell


def test_tiny_differences_are_zero():
    assert [format_points(v) for v in (0.0, -0.0001, 0.025, -1.0)] == ["0", "0", "+2.5", "-100"]


def test_rates_are_drawn_to_scale():
    rates = {8: wilson(0, 10), 0: wilson(10, 10), 4: wilson(5, 10)}
    svg = ElementTree.fromstring(draw_rate_curve(rates, "delay, <actions>", "success"))
    points = [tuple(map(float, p.split(","))) for p in svg.find("polyline").get("points").split()]
    assert [y for _, y in points] == pytest.approx([TOP, (TOP + HEIGHT - BOTTOM) / 2, HEIGHT - BOTTOM], abs=0.1)
    assert points[1][0] == pytest.approx((points[0][0] + points[2][0]) / 2, abs=0.1)
    whisker = next(line for line in svg.iter("line") if line.get("class") == "whisker")
    assert float(whisker.get("y1")) - TOP == pytest.approx((1 - rates[0].low) * (HEIGHT - BOTTOM - TOP), abs=0.1)
    assert svg.find("text[@class='axis']").text == "delay, <actions>"
    assert not [line for line in svg.iter("line") if line.get("class") == "chance"]
    leveled = ElementTree.fromstring(draw_rate_curve(rates, "delay", "success", chance=0.25))
    level = next(line for line in leveled.iter("line") if line.get("class") == "chance")
    assert float(level.get("y1")) - TOP == pytest.approx(0.75 * (HEIGHT - BOTTOM - TOP), abs=0.1)
    assert leveled.find("text[@class='axis']").text == "delay (dashed: chance, 25\N{NO-BREAK SPACE}%)"
    assert ElementTree.fromstring(draw_rate_curve({3: wilson(1, 2)}, "delay", "one")).find("polyline") is not None
    with pytest.raises(ValueError, match="none: there is no rate to draw"):
        draw_rate_curve({}, "delay", "none")


def parts_of(svg):
    """Return the points of the line, and the numbers along both axes with their positions."""
    root = ElementTree.fromstring(svg)
    points = [tuple(map(float, p.split(","))) for p in root.find("polyline").get("points").split()]
    labels = [(t.text, float(t.get("x")), float(t.get("y"))) for t in root.findall("text") if t.get("class") != "axis"]

    def number(text):
        return float(text.rstrip("k")) * (1000 if text.endswith("k") else 1)

    upwards = [(number(text), y - 4) for text, x, y in labels if x == LEFT - 7]  # a label is 4 below its line
    across = [(number(text), x) for text, x, _ in labels if x != LEFT - 7]
    return points, upwards, across


@pytest.mark.parametrize("log", [False, True])
def test_points_fit_the_axes(log):
    """Interpolating between the labels of the axes gives the values of each point."""
    steps, values = [100, 700, 1000, 1900], [3.0, 0.4, 1.5, 0.11]
    points, upwards, across = parts_of(draw_curve(steps, values, "loss", log))
    assert len(points) == 4
    assert [v for v, _ in upwards] == sorted(v for v, _ in upwards)
    assert (across[0], across[-1]) == ((0, LEFT), (2000, WIDTH - RIGHT))  # the axis is as wide as the frame
    scale = math.log if log else float
    (low, y0), (high, y1) = ((scale(v), y) for v, y in (upwards[0], upwards[-1]))
    (first, x0), (last, x1) = across[0], across[-1]
    for step, value, (x, y) in zip(steps, values, points, strict=True):
        assert low + (high - low) * (y - y0) / (y1 - y0) == pytest.approx(scale(value), abs=(high - low) / 200)
        assert first + (last - first) * (x - x0) / (x1 - x0) == pytest.approx(step, abs=(last - first) / 200)
    for (a, ya), (b, yb) in pairwise((scale(v), y) for v, y in upwards):  # the labels between are to scale too
        assert (yb - ya) / (b - a) == pytest.approx((y1 - y0) / (high - low), rel=0.02)


def test_many_points_are_averaged_in_groups():
    """480 steps are drawn as 240 means of two neighbors."""
    svg = draw_curve(range(480), [float(i % 2) + i // 2 for i in range(480)], "loss")
    assert "<title>step 0.5: 0.5</title>" in svg
    assert "<title>step 478.5: 239.5</title>" in svg
    assert svg.count("<title>") == 240


def test_the_label_of_a_curve_has_its_first_and_last_value():
    svg = ElementTree.fromstring(draw_curve([10, 20, 30], [0.5, 9.0, 0.25], "Loss"))
    assert svg.get("aria-label") == "Loss: 0.5 at step 10, 0.25 at step 30"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (800, "800"), (0.25, "0.25"), (12500, "12.5k"), (100000, "100k"), (0.00025, "2.5e-4"), (-2.5, "-2.5")],
)
def test_numbers_of_an_axis(value, text):
    assert format_tick(value) == text


def test_each_rate_of_a_curve_has_its_delay():
    rates = {4: wilson(5, 10), 0: wilson(9, 10)}
    svg = draw_rate_curve(rates, "delay", "success")
    root = ElementTree.fromstring(svg)
    titles = [plain(t.text).replace("\N{EN DASH}", "-") for t in root.iter("title")]
    assert titles == ["0: 90 %, interval 59.6-98.2 %", "4: 50 %, interval 23.7-76.3 %"]
    assert plain(root.get("aria-label")) == "success: 90 % at 0, 50 % at 4"
    numbers = {t.text: float(t.get("x")) for t in root.findall("text") if t.get("text-anchor") == "middle"}
    points = [float(p.split(",")[0]) for p in root.find("polyline").get("points").split()]
    assert [numbers["0"], numbers["4"]] == points
    ends = [(float(w.get("y1")), float(w.get("y2"))) for w in root.iter("line") if w.get("class") == "whisker"]
    floor, height = HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP
    for (low, high), rate in zip(ends, (rates[0], rates[4]), strict=True):
        assert (low, high) == pytest.approx((floor - height * rate.low, floor - height * rate.high), abs=0.06)


def test_rates_near_the_ends_of_a_curve_are_escaped():
    rates = {0: Interval(0.9999, 0.99, 1.0, 10_000), 4: Interval(0.0001, 0.0, 0.01, 10_000)}
    root = ElementTree.fromstring(draw_rate_curve(rates, "delay", 'a "<b>" & c'))
    assert plain(root.get("aria-label")) == 'a "<b>" & c: > 99.9 % at 0, < 0.1 % at 4'
    assert [plain(t.text).partition(",")[0] for t in root.iter("title")] == ["0: > 99.9 %", "4: < 0.1 %"]


def test_the_ends_of_an_interval_are_on_their_sides():
    svg = ElementTree.fromstring(draw_difference(Interval(0.1, -0.05, 0.2, 40), "b against a", 0.25))
    whiskers = [(w.get("x1"), w.get("x2")) for w in svg.findall("line") if w.get("class") == "whisker"]
    assert whiskers == [("40.00%", "90.00%"), ("40.00%", "40.00%"), ("90.00%", "90.00%")]
    svg = ElementTree.fromstring(draw_rate(Interval(0.5, 0.25, 0.8, 10), "a", "low"))
    whiskers = [(w.get("x1"), w.get("x2")) for w in svg.findall("line") if w.get("class") == "whisker"]
    assert whiskers == [("25.00%", "80.00%"), ("25.00%", "25.00%"), ("80.00%", "80.00%")]
    assert svg.get("class") == "bar low"
