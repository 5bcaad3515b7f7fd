"""Draw the figures of a study as inline SVG. The style sheet gives the colors.

study.js shows the text of `data-tip` under the pointer, hides and highlights the lines of `data-series`, and selects
the labels of `data-pick` in the filters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from anyvla.evaluation.intervals import Interval
from anyvla.report.plots import (
    BAR,
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WHISKER,
    WIDTH,
    format_tick,
    make_log_ticks,
    make_ticks,
    start_curve,
)
from anyvla.study.page.scale import Scale

COLORS = 8  # of series; further ones have the first colors again
_INNER = 22  # room beside the outer points
_APART = 6  # between points of different series at one label
_TURNED = 46  # more room for turned labels
_LOG = 15  # a larger ratio of numbers is drawn on a logarithmic axis


@dataclass(frozen=True)
class Dot:
    """A score at a position of the axis."""

    at: str
    score: Interval
    pick: Mapping[str, str] = field(default_factory=dict)  # axis -> label: of its cells
    has_interval: bool = True


@dataclass(frozen=True)
class Series:
    """The dots of one color."""

    name: str
    dots: Sequence[Dot]


@dataclass(frozen=True)
class CostDot:
    """A label in the plane of cost and score."""

    label: str
    series: int  # number of its color
    cost: float
    score: Interval
    on_front: bool
    note: str
    pick: Mapping[str, str]


def draw_score(score: Interval, scale: Scale, label: str, chance: float | None = None) -> Markup:
    """Draw a bar from 0 to the top of the scale with the interval as a whisker, and a mark at `chance`."""
    value, low, high = (f"{100 * v / scale.top:.2f}%" for v in (score.value, score.low, score.high))
    text = f"{label}: {scale.describe(score)}"
    track = '<rect class="track" width="100%" height="8" y="6" rx="2"/>'
    fill = '<rect class="fill" width="{value}" height="8" y="6" rx="2"/>'
    mark = "" if chance is None else '<line class="chance" x1="{chance}" x2="{chance}" y1="2" y2="18"/>'
    at = "" if chance is None else f"{100 * chance / scale.top:.2f}%"
    svg = Markup(f"{BAR}{track}{fill}{mark}{WHISKER}</svg>")
    return svg.format(kind="high", text=text, value=value, low=low, high=high, chance=at)


def draw_tasks(rates: Mapping[str, float]) -> Markup:
    """Draw a small square for each task, the darker the higher its rate."""
    parts = [f'<svg class="tasks" width="{10 * len(rates)}" height="14" role="img" aria-label="rate of each task">']
    for number, (task, rate) in enumerate(rates.items()):
        tip = escape(f"{task}: {100 * rate:.0f} %")
        box = f'x="{10 * number}.5" y="2.5" width="9" height="9"'
        parts.append(f'<rect class="frame" {box}/><rect class="fill" {box} opacity="{rate:.2f}" data-tip="{tip}"/>')
    return Markup("".join(parts) + "</svg>")


def draw_series(
    series: Sequence[Series],
    axis: str,
    scale: Scale,
    order: Sequence[str],
    *,
    numbers: bool,
    lines: bool = True,
    chance: float | None = None,
) -> Markup:
    """Draw scores over the labels of an axis, one line for each series.

    `order`: of the labels. `numbers`: labels are numbers, positioned by their values; else they are equally far apart.
    """
    found = {dot.at for of in series for dot in of.dots}
    labels = [label for label in order if label in found]
    place = (
        _place_numbers(labels) if numbers else {label: n / max(len(labels) - 1, 1) for n, label in enumerate(labels)}
    )
    if len(labels) == 1:
        place = {labels[0]: 0.5}
    at = {label: _x(share) for label, share in place.items()}
    turned = not numbers and len(_find_room(at)) < len(at)  # names are all needed, numbers can be guessed
    ticks = [(_y(t, scale), scale.format(t)) for t in scale.ticks]
    parts = start_curve(f"{scale.title} over {axis}", axis, ticks, _TURNED if turned else 0)
    line, name = ("", "") if chance is None else _draw_chance(chance, scale)
    parts.append(line)
    parts += _draw_labels(at, turned)
    many = len(series) > COLORS
    for number, of in enumerate(series):
        shift = 0.0 if many else (number - (len(series) - 1) / 2) * min(_APART, 30 / len(series))
        placed = [(_x(place[dot.at]) + shift, _y(dot.score.value, scale), dot) for dot in of.dots]
        kind = "many" if many else f"s{number % COLORS}"
        parts.append(f'<g class="series {kind}" data-series="{number}">')
        if lines:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in placed)
            parts.append(f'<polyline class="stroke" points="{path}"/>')
        parts += [_draw_dot(x, y, of.name, dot, scale, whiskers=not many) for x, y, dot in placed]
        parts.append("</g>")
    return Markup("".join(parts) + name + "</svg>")


def draw_front(dots: Sequence[CostDot], cost: str, scale: Scale) -> Markup:
    """Draw scores over a cost, with a line through the labels that no other label beats."""
    costs = [dot.cost for dot in dots]
    log = min(costs) > 0 and max(costs) / min(costs) > _LOG
    ticks = make_log_ticks(costs) if log else make_ticks(min(costs), max(costs))

    def x(value: float) -> float:
        low, high, at = (math.log(v) if log else v for v in (ticks[0], ticks[-1], value))
        return _x((at - low) / (high - low))

    parts = start_curve(f"{scale.title} over {cost}", cost, [(_y(t, scale), scale.format(t)) for t in scale.ticks])
    parts += _draw_labels({format_cost(tick): x(tick) for tick in ticks})
    for series in sorted({dot.series for dot in dots}):
        front = sorted(
            (x(dot.cost), _y(dot.score.value, scale)) for dot in dots if dot.series == series and dot.on_front
        )
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in front)
        parts.append(
            f'<g class="series s{series % COLORS}" data-series="{series}"><polyline class="front" points="{path}"/>'
        )
        for dot in (dot for dot in dots if dot.series == series):
            at = Dot(f"{dot.label}, {format_cost(dot.cost)} {cost}{dot.note}", dot.score, dot.pick)
            drawn = _draw_dot(x(dot.cost), _y(dot.score.value, scale), "", at, scale)
            parts.append(drawn if dot.on_front else drawn.replace('class="dot"', 'class="dot off"'))
        parts.append("</g>")
    placed = {(dot.series, dot.label): (x(dot.cost), _y(dot.score.value, scale)) for dot in dots}
    parts += _name_dots(placed)
    return Markup("".join(parts) + "</svg>")


def _x(share: float) -> float:
    return LEFT + _INNER + (WIDTH - LEFT - RIGHT - 2 * _INNER) * share


def _y(value: float, scale: Scale) -> float:
    floor = HEIGHT - BOTTOM
    return floor - (floor - TOP) * value / scale.top


def _place_numbers(labels: Sequence[str]) -> dict[str, float]:
    """Return the positions of numbers from 0 to 1: of their logarithms if they spread far."""
    values = [float(label) for label in labels]
    if min(values) > 0 and max(values) / min(values) >= _LOG / 2:
        values = [math.log(value) for value in values]
    width = (max(values) - min(values)) or 1.0
    return {label: (value - min(values)) / width for label, value in zip(labels, values, strict=True)}


def _draw_labels(places: Mapping[str, float], turned: bool = False) -> list[str]:
    """Return the labels of the horizontal axis: turned, or without those that would overlap the one before."""
    y, parts = HEIGHT - BOTTOM + 16, []
    for label in places if turned else _find_room(places):
        x = places[label]
        at = f'x="{x:.1f}" y="{y}" text-anchor="middle"'
        if turned:
            at = f'x="{x + 4:.1f}" y="{y - 4}" text-anchor="end" transform="rotate(-45 {x + 4:.1f} {y - 4})"'
        parts.append(f"<text {at}>{escape(_shorten(label))}</text>")
    return parts


def _find_room(places: Mapping[str, float]) -> list[str]:
    """Return the labels that have room beside the one before."""
    found, end = [], -math.inf
    for label, x in sorted(places.items(), key=lambda item: item[1]):
        half = 3.3 * len(_shorten(label))
        if x - half >= end + 3:
            found.append(label)
            end = x + half
    return found


def _shorten(label: str) -> str:
    return label if len(label) <= 14 else f"{label[:13]}\N{HORIZONTAL ELLIPSIS}"


def _draw_dot(x: float, y: float, series: str, dot: Dot, scale: Scale, whiskers: bool = True) -> str:
    name = f"{series}, {dot.at}" if series else dot.at
    text = scale.describe(dot.score) if dot.has_interval else scale.format(dot.score.value)
    attributes = f'data-tip="{escape(f"{name}: {text}")}"'
    if dot.pick:
        attributes += f' data-pick="{escape(json.dumps(dict(dot.pick)))}"'
    drawn = ""
    if dot.has_interval and whiskers:
        low, high = _y(dot.score.low, scale), _y(dot.score.high, scale)
        drawn = f'<line class="reach" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
    return (
        f'<g class="mark-point" {attributes}>{drawn}<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        f'<circle class="touch" cx="{x:.1f}" cy="{y:.1f}" r="9"/></g>'
    )


def _draw_chance(chance: float, scale: Scale) -> tuple[str, str]:
    """Return the line at the level of chance, and its name, which is drawn above the dots."""
    y = _y(chance, scale)
    text = f'<text class="key" x="{WIDTH - RIGHT - 4}" y="{y + 14:.1f}" text-anchor="end">chance</text>'
    return f'<line class="chance" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>', text


def _name_dots(placed: Mapping[tuple[int, str], tuple[float, float]]) -> list[str]:
    """Return a name beside each dot, where there is room for it."""
    boxes = [(x - 5, y - 5, x + 5, y + 5) for x, y in placed.values()]
    parts = []
    for (_, label), (x, y) in placed.items():
        width = 6.6 * len(label)
        for left, middle in ((x + 8, y), (x - 8 - width, y), (x - width / 2, y - 13), (x - width / 2, y + 13)):
            box = (left, middle - 7, left + width, middle + 6)
            inside = box[0] >= LEFT and box[2] <= WIDTH - 2 and box[1] >= 0 and box[3] <= HEIGHT - BOTTOM
            if inside and not any(_overlap(box, other) for other in boxes):
                boxes.append(box)
                parts.append(f'<text class="name" x="{left:.1f}" y="{middle + 4:.1f}">{escape(label)}</text>')
                break
    return parts


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def format_cost(value: float) -> str:
    """Format a cost with three digits: "1.74M", "0.62"."""
    return f"{value / 1e6:.3g}M" if value >= 1e6 else format_tick(float(f"{value:.3g}"))
