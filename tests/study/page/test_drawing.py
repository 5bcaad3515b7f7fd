import json
import math
import xml.etree.ElementTree as ElementTree

import pytest

from anyvla.evaluation.intervals import Interval
from anyvla.report.plots import BOTTOM, HEIGHT, TOP
from anyvla.study.page.drawing import CostDot, Dot, Series, draw_front, draw_score, draw_series, draw_tasks
from anyvla.study.page.scale import PERCENT, Scale

CHAINS = Scale(5.0, percent=False, title="Tasks in a row")


def score(value, low=None, high=None):
    return Interval(value, value if low is None else low, value if high is None else high, 40)


def height(y, top=1.0):
    """Return the score at a height of a figure."""
    return top * (HEIGHT - BOTTOM - float(y)) / (HEIGHT - BOTTOM - TOP)


def dots(svg):
    return [dot for dot in ElementTree.fromstring(svg).iter("circle") if dot.get("class", "").startswith("dot")]


@pytest.mark.parametrize(("scale", "top"), [(PERCENT, 1.0), (CHAINS, 5.0)])
def test_scores_and_intervals_are_drawn_to_scale(scale, top):
    series = [Series("a", [Dot("1", score(0.5 * top, 0.25 * top, 0.75 * top)), Dot("2", score(top))])]
    svg = ElementTree.fromstring(draw_series(series, "window", scale, ["1", "2"], numbers=True))
    assert [height(dot.get("cy"), top) for dot in dots(ElementTree.tostring(svg))] == pytest.approx([0.5 * top, top])
    reach = next(line for line in svg.iter("line") if line.get("class") == "reach")
    assert [height(reach.get(y), top) for y in ("y1", "y2")] == pytest.approx([0.25 * top, 0.75 * top], abs=0.01)


def test_numbers_that_spread_far_are_on_a_logarithmic_axis_and_others_are_not():
    def positions(labels):
        series = [Series("", [Dot(label, score(0.5)) for label in labels])]
        x = [float(dot.get("cx")) for dot in dots(draw_series(series, "n", PERCENT, labels, numbers=True))]
        return [(at - x[0]) / (x[-1] - x[0]) for at in x]

    assert positions(["1", "2", "4", "8"]) == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=0.01)
    assert positions(["5", "10", "40"])[1] == pytest.approx(math.log(2) / math.log(8), abs=0.01)
    assert positions(["0", "1", "4"])[1] == pytest.approx(0.25, abs=0.01)


def test_a_series_without_a_label_does_not_shift_the_others():
    one = Series("one", [Dot(at, score(0.5)) for at in "abc"])
    other = Series("other", [Dot("c", score(0.2))])
    x = [float(dot.get("cx")) for dot in dots(draw_series([one, other], "axis", PERCENT, "abc", numbers=False))]
    assert x[3] == pytest.approx(x[2], abs=7)


def test_labels_keep_their_order_where_the_first_series_lacks_one():
    series = [
        Series("one", [Dot(at, score(0.5)) for at in "ac"]),
        Series("other", [Dot(at, score(0.2)) for at in "abc"]),
    ]
    x = [float(dot.get("cx")) for dot in dots(draw_series(series, "axis", PERCENT, "abc", numbers=False, lines=False))]
    assert x[2] < x[3] < x[4]


def test_labels_of_figures_pick_their_cells():
    pick = {"history": 'a "quoted" <one>'}
    svg = ElementTree.fromstring(
        draw_series([Series("s & t", [Dot("<x>", score(0.5), pick)])], "a<b", PERCENT, ["<x>"], numbers=False)
    )
    (point,) = [group for group in svg.iter("g") if group.get("data-pick")]
    assert json.loads(point.get("data-pick")) == pick
    assert point.get("data-tip").replace("\N{NO-BREAK SPACE}", " ") == "s & t, <x>: 50 %, interval 50\N{EN DASH}50 %"


def test_the_front_joins_the_unbeaten_labels_in_the_order_of_their_costs():
    made = [
        CostDot("cheap", 0, 1e6, score(0.4), True, "", {}),
        CostDot("best", 0, 1e9, score(0.9), True, "", {}),
        CostDot("worse", 0, 1e7, score(0.3), False, ", beaten by cheap by their test", {}),
        CostDot("middle", 0, 3e7, score(0.6), True, "", {}),
    ]
    svg = draw_front(made, "parameters", PERCENT)
    (front,) = [line for line in ElementTree.fromstring(svg).iter("polyline") if line.get("class") == "front"]
    points = [tuple(map(float, point.split(","))) for point in front.get("points").split()]
    assert [height(y) for _, y in points] == pytest.approx([0.4, 0.6, 0.9], abs=0.01)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    kinds = {round(height(dot.get("cy")), 1): dot.get("class") for dot in dots(svg)}
    assert kinds == {0.4: "dot", 0.9: "dot", 0.3: "dot off", 0.6: "dot"}
    assert "worse, 10M parameters, beaten by cheap by their test" in svg


def test_equal_costs_and_scores_can_be_drawn():
    made = [CostDot(name, 0, 0.0, score(0.0), True, "", {}) for name in "ab"]
    assert len(dots(draw_front(made, "minutes", PERCENT))) == 2


def test_bars_of_scores_have_chance_and_ends_where_they_are():
    svg = ElementTree.fromstring(draw_score(score(2.0, 1.0, 3.0), CHAINS, "gru", chance=0.5))
    rects, lines = list(svg.iter("rect")), list(svg.iter("line"))
    assert rects[1].get("width") == "40.00%"
    assert [(line.get("class"), line.get("x1"), line.get("x2")) for line in lines[:2]] == [
        ("chance", "10.00%", "10.00%"),
        ("whisker", "20.00%", "60.00%"),
    ]
    assert svg.get("aria-label") == "gru: 2.00, interval 1.00\N{EN DASH}3.00"


def test_squares_of_tasks_are_as_dark_as_their_rates():
    svg = ElementTree.fromstring(draw_tasks({"push": 0.25, "<reach>": 1.0}))
    fills = [rect for rect in svg.iter("rect") if rect.get("class") == "fill"]
    assert [(rect.get("data-tip"), rect.get("opacity")) for rect in fills] == [
        ("push: 25 %", "0.25"),
        ("<reach>: 100 %", "1.00"),
    ]


def test_names_that_do_not_fit_are_turned_and_none_is_left_out():
    names = [f"structure-{number}" for number in range(9)]
    series = [Series("", [Dot(name, score(0.5)) for name in names])]
    turned = draw_series(series, "structure", PERCENT, names, numbers=False)
    assert [name for name in names if f">{name}</text>" in turned] == names
    assert turned.count("rotate(-45") == 9
    few = draw_series([Series("", series[0].dots[:2])], "structure", PERCENT, names, numbers=False)
    assert "rotate" not in few
    height = [float(svg.partition('viewBox="0 0 ')[2].split('"')[0].split()[1]) for svg in (turned, few)]
    assert height[0] > height[1]
