"""Draw the plots of reports as inline SVG: interval bars for table cells, and curves.

The style sheet of the report gives the colors, so one drawing serves light and dark. No plotting library is embedded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

from markupsafe import Markup, escape

from anyvla.evaluation.intervals import Interval

WIDTH, HEIGHT = 380, 230  # of a curve, in units of about one pixel on a wide page
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 34
NBSP = "\N{NO-BREAK SPACE}"
POINTS = 240  # curves with more steps are averaged in groups
LABELS = 8  # on the axis of a rate curve
TINY = 1e-250  # smaller values are drawn as 0: below 1e-308 floats lose precision, which breaks the ticks
BAR = '<svg class="bar {kind}" role="img" aria-label="{text}"><title>{text}</title>'
WHISKER = (
    '<line class="whisker" x1="{low}" x2="{high}" y1="10" y2="10"/>'
    '<line class="whisker" x1="{low}" x2="{low}" y1="5" y2="15"/>'
    '<line class="whisker" x1="{high}" x2="{high}" y1="5" y2="15"/>'
)


def format_percent(share: float) -> str:
    """Format a rate in [0, 1]: "97.5 %". Only 0 and 1 are shown as 0 % and 100 %."""
    value = round(100 * share, 1)
    if value == 100 and share < 1:
        return f">{NBSP}99.9{NBSP}%"
    if value == 0 and share > 0:
        return f"<{NBSP}0.1{NBSP}%"
    return f"{value:g}{NBSP}%"


def format_interval(interval: Interval) -> str:
    """Format the ends of an interval in tenths of a percent: "83.9-100 %", with an en dash."""
    return f"{round(100 * interval.low, 1):g}\N{EN DASH}{round(100 * interval.high, 1):g}{NBSP}%"


def draw_rate(interval: Interval, label: str, kind: str = "high", counted: bool = True) -> Markup:
    """Draw a bar from 0 to 100 % with the interval as a whisker, as wide as its table cell.

    `kind` is a class of the style sheet and gives the color; `label` is for screen readers. `counted`: whether the
    value is a rate over episodes, not a mean of rates.
    """
    value, low, high = (f"{100 * v:.2f}%" for v in (interval.value, interval.low, interval.high))
    count = f"{interval.successes} of {interval.episodes}, " if counted else ""
    text = f"{label}: {count}{format_percent(interval.value)}, interval {format_interval(interval)}"
    track = '<rect class="track" width="100%" height="8" y="6" rx="2"/>'
    fill = '<rect class="fill" width="{value}" height="8" y="6" rx="2"/>'
    svg = Markup(f"{BAR}{track}{fill}{WHISKER}</svg>")
    return svg.format(kind=kind, text=text, value=value, low=low, high=high)


def draw_difference(
    interval: Interval, label: str, reach: float, write: Callable[[float], str] | None = None
) -> Markup:
    """Draw a bar from the middle, to the left for a loss and to the right for a gain, with the interval as a whisker.

    The cell spans -reach .. reach, so that rows with one `reach` can be compared by eye. `write` formats a difference;
    None: percentage points.
    """
    middle, value, low, high = (
        f"{50 + 50 * max(-1.0, min(1.0, v / reach)):.2f}%" for v in (0.0, interval.value, interval.low, interval.high)
    )
    width = f"{50 * min(1.0, abs(interval.value) / reach):.2f}%"
    points, least, most = map(write or format_points, (interval.value, interval.low, interval.high))
    text = f"{label}: {points}, interval {least} to {most}"
    kind, left = ("high", middle) if interval.value >= 0 else ("low", value)
    track = '<rect class="track" width="100%" height="8" y="6" rx="2"/>'
    fill = '<rect class="fill" x="{left}" width="{width}" height="8" y="6"/>'
    zero = '<line class="middle" x1="{middle}" x2="{middle}" y1="1" y2="19"/>'
    svg = Markup(f"{BAR}{track}{fill}{zero}{WHISKER}</svg>")
    return svg.format(kind=kind, text=text, left=left, width=width, middle=middle, low=low, high=high)


def format_points(share: float) -> str:
    """Format a difference of rates in percentage points: "+2.5", "0"."""
    points = round(100 * share, 1)
    return f"{points:+g}" if points else "0"


def draw_rate_curve(rates: Mapping[int, Interval], axis: str, label: str, chance: float | None = None) -> Markup:
    """Draw success rates from 0 to 100 % with intervals over an integer such as a delay, and a line at `chance`.

    Raises ValueError for no rates.
    """
    if not rates:
        raise ValueError(f"{label}: there is no rate to draw")
    first, last = min(rates), max(rates)
    floor = HEIGHT - BOTTOM

    def x(number: int) -> float:
        inner = 14  # room for the outer whiskers
        return LEFT + inner + (WIDTH - LEFT - RIGHT - 2 * inner) * (number - first) / ((last - first) or 1)

    def y(share: float) -> float:
        return floor - (floor - TOP) * share

    summary = ", ".join(f"{format_percent(i.value)} at {n}" for n, i in sorted(rates.items()))
    ticks = [(y(tick), format_percent(tick)) for tick in (0.0, 0.25, 0.5, 0.75, 1.0)]
    if chance is not None:
        axis = f"{axis} (dashed: chance, {format_percent(chance)})"
    parts = start_curve(f"{label}: {summary}", axis, ticks)
    if chance is not None:
        ends = f'x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(chance):.1f}" y2="{y(chance):.1f}"'
        parts.append(f'<line class="chance" {ends}/>')
    line = " ".join(f"{x(n):.1f},{y(i.value):.1f}" for n, i in sorted(rates.items()))
    parts.append(f'<polyline class="line" points="{line}"/>')
    apart = math.ceil(len(rates) / LABELS)
    for rank, (number, interval) in enumerate(sorted(rates.items())):
        at, low, high = x(number), y(interval.low), y(interval.high)
        if rank % apart == 0:
            parts.append(f'<text x="{at:.1f}" y="{floor + 16}" text-anchor="middle">{number}</text>')
        parts.append(f'<line class="whisker" x1="{at:.1f}" x2="{at:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        text = f"{number}: {format_percent(interval.value)}, interval {format_interval(interval)}"
        dot = f'<circle class="dot" cx="{at:.1f}" cy="{y(interval.value):.1f}" r="4"/>'
        parts.append(f"<g>{dot}<title>{escape(text)}</title></g>")
    return Markup("".join(parts) + "</svg>")


def draw_curve(
    steps: Sequence[float],
    values: Sequence[float],
    label: str,
    log: bool = False,
    names: tuple[str, str] | None = None,
    second: Sequence[tuple[float, float]] = (),
) -> Markup:
    """Draw a line over training steps that shows the value under the mouse.

    `log` asks for a logarithmic axis, which is used if all values are positive. Values that are not finite are omitted.
    `second` has the points (step, value) of a second line in the same axes; `names` are then those of both. Raises
    ValueError if no value remains or the lengths differ.
    """
    if len(steps) != len(values):
        raise ValueError(f"{label}: {len(steps)} steps but {len(values)} values")
    points, others = _clean(zip(steps, values, strict=True)), _clean(second)
    if not points:
        raise ValueError(f"{label}: there is no finite value to draw")
    every = sorted([*points, *others])
    log = log and all(v > 0 for _, v in every)
    heights = [v for _, v in every]
    ticks = make_log_ticks(heights) if log else make_ticks(min(0.0, *heights), max(heights))
    step_ticks = make_ticks(0.0, every[-1][0])

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / (step_ticks[-1] or 1.0)

    def y(value: float) -> float:
        low, high, at = (math.log(v) if log else v for v in (ticks[0], ticks[-1], value))
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (at - low) / (high - low)

    floor = HEIGHT - BOTTOM
    summary = "; ".join(
        f"{name}: {of[0][1]:.3g} at step {of[0][0]:g}, {of[-1][1]:.3g} at step {of[-1][0]:g}"
        for name, of in zip(names or (label, ""), (points, others), strict=True)
        if of
    )
    parts = start_curve(summary, "step", [(y(tick), format_tick(tick)) for tick in ticks])
    for tick in step_ticks:
        anchor = "end" if tick == step_ticks[-1] and tick > 0 else "middle"
        parts.append(f'<text x="{x(tick):.1f}" y="{floor + 16}" text-anchor="{anchor}">{format_tick(tick)}</text>')
    placed = [(x(s), y(v)) for s, v in points]
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in placed)
    parts.append(f'<polygon class="area" points="{placed[0][0]:.1f},{floor} {line} {placed[-1][0]:.1f},{floor}"/>')
    parts.append(f'<polyline class="line" points="{line}"/>')
    edges = [LEFT, *((a[0] + b[0]) / 2 for a, b in pairwise(placed)), WIDTH - RIGHT]
    for (step, value), (a, b), (left, right) in zip(points, placed, pairwise(edges), strict=True):
        parts.append(
            f'<g class="point"><rect x="{left:.1f}" y="{TOP}" width="{max(0.1, right - left):.1f}" '
            f'height="{floor - TOP}"/><circle cx="{a:.1f}" cy="{b:.1f}" r="3.5"/>'
            f"<title>step {step:g}: {value:.4g}</title></g>"
        )
    if others:
        line = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in others)
        parts.append(f'<polyline class="line second" points="{line}"/>')
        for step, value in others:
            dot = f'<circle class="dot second" cx="{x(step):.1f}" cy="{y(value):.1f}" r="3.5"/>'
            parts.append(f"<g>{dot}<title>step {step:g}: {value:.4g}</title></g>")
    for number, name in enumerate(names or ()):
        kind = ("key", "key second")[number]
        at = f'x="{WIDTH - RIGHT - 4}" y="{TOP + 14 + 16 * number}"'
        parts.append(f'<text class="{kind}" {at} text-anchor="end">{escape(name)}</text>')
    return Markup("".join(parts) + "</svg>")


def _clean(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the finite points, neighbors averaged where they are many."""
    finite = [(float(s), float(v)) for s, v in points if math.isfinite(v)]
    return [(s, v if abs(v) > TINY else 0.0) for s, v in _average_neighbors(finite)]


def start_curve(summary: str, axis: str, ticks: Sequence[tuple[float, str]], room: int = 0) -> list[str]:
    """Return the first parts of a curve: a grid line with a label at the height of each tick, and the axis.

    `room`: more height for the labels of the axis.
    """
    bottom = HEIGHT + room
    parts = [f'<svg class="curve" viewBox="0 0 {WIDTH} {bottom}" role="img" aria-label="{escape(summary)}">']
    for y, text in ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    parts.append(f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{bottom - 3}">{escape(axis)}</text>')
    return parts


def _average_neighbors(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average neighbors so that at most POINTS remain."""
    size = math.ceil(len(points) / POINTS) or 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(s for s, _ in g) / len(g), sum(v for _, v in g) / len(g)) for g in groups]


def make_ticks(low: float, high: float) -> list[float]:
    """Return about four round numbers that enclose the range."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    size = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    return [i * size for i in range(first, last + 1)]


def make_log_ticks(values: Sequence[float]) -> list[float]:
    """Return at most six ticks that enclose the values: powers of ten times 1, 2 and 5, or fewer factors."""
    low, high = min(values), max(values)
    first, last = math.floor(math.log10(low)), math.floor(math.log10(high)) + 1
    for factors in ((1, 2, 5), (1, 3), (1,)):
        every = [m * 10.0**e for e in range(first, last + 1) for m in factors]
        below = max(i for i, v in enumerate(every) if v <= low * (1 + 1e-9))
        above = min(i for i, v in enumerate(every) if v >= high * (1 - 1e-9))
        ticks = every[below : max(above, below + 1) + 1]
        if len(ticks) <= 6:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 5)] + ([ticks[-1]] if (len(ticks) - 1) % math.ceil(len(ticks) / 5) else [])


def format_tick(value: float) -> str:
    """Format a number beside an axis: "0.5", "20k", "1e-5"."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    if abs(value) < 0.001:
        mantissa, _, exponent = f"{value:e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"
