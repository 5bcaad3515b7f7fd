from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anyvla.evaluation.statistics import wilson
from anyvla.report.plots import HEIGHT, LEFT, RIGHT, TOP, WIDTH, curve, interval_bar, percent, span

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
