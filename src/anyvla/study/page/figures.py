"""Choose the figures of each comparison, and name their lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from anyvla.evaluation.intervals import Interval
from anyvla.study.analysis.results import CostPoint, Result
from anyvla.study.analysis.tables import Table
from anyvla.study.file import StudyFile
from anyvla.study.page.drawing import COLORS, CostDot, Dot, Series, draw_front, draw_series
from anyvla.study.page.scale import PERCENT, Scale

_COSTS = {
    "parameters": "parameters",
    "latency_ms": "ms for a chunk",
    "memory_gb": "GB of memory",
    "minutes.collect": "minutes of collecting",
    "minutes.codec": "minutes of fitting codecs",
    "minutes.train": "minutes of training",
    "minutes.evaluate": "minutes of evaluation",
}


@dataclass(frozen=True)
class Figure:
    """A drawing with its caption. The legend has the names of the series, in the order of their colors."""

    caption: str
    svg: Markup
    legend: tuple[str, ...] = ()
    choice: str = ""  # figures of one comparison with a choice are shown one at a time


def draw_figures(study: StudyFile, result: Result, scale: Scale, chance: float | None) -> list[Figure]:
    """Return the figures of a comparison; none for a comparison without results."""
    kind = result.comparison.kind
    if kind == "cost":
        return _draw_fronts(result, scale)
    series = _gap_series(result) if kind == "gap" else _point_series(result)
    if not any(of.dots for of in series):
        return []
    axis = result.comparison.axis
    if kind == "gap":
        caption = f"{scale.title} under both conditions"
    else:
        caption = f"{scale.title} by {axis}, with 95 % intervals"
    svg = draw_series(
        series,
        _short(axis),
        scale,
        study.labels(axis),
        numbers=kind == "curve",
        lines=kind in ("curve", "interaction"),
        chance=chance,
    )
    return [Figure(caption, svg, tuple(of.name for of in series) if len(series) > 1 else ())]


def draw_table_curve(table: Table) -> Figure | None:
    """Return the curve that a benchmark declares, such as success over the delay: a line for each row of the table."""
    rows = [row for row in table.rows if row.curve]
    if table.curve_axis is None or not rows:
        return None
    differ = [axis for axis in rows[0].labels if len({row.labels[axis] for row in rows}) > 1]
    series = [
        Series(
            ", ".join(row.labels[axis] for axis in differ),
            [Dot(f"{number:g}", rate, dict(row.labels)) for number, rate in sorted(row.curve.items())],
        )
        for row in rows
    ]
    numbers = [f"{number:g}" for number in sorted({number for row in rows for number in row.curve})]
    svg = draw_series(series, table.curve_axis, PERCENT, numbers, numbers=True, chance=table.chance)
    legend = tuple(of.name for of in series) if 1 < len(series) <= COLORS else ()
    return Figure(f"Success over {table.curve_axis}", svg, legend)


def list_costs(result: Result) -> list[str]:
    """Return the costs that differ between the labels of a comparison."""
    names = dict.fromkeys(cost for point in result.costs for cost in point.costs)
    return [name for name in names if len({point.costs.get(name) for point in result.costs}) > 1]


def name_cost(cost: str) -> str:
    """Return the unit and name of a cost: "minutes.train" is "minutes of training"."""
    return _COSTS.get(cost, cost)


def _short(axis: str) -> str:
    """Return the last part of the name of an axis: "chunk" of "model.chunk"."""
    return axis.rpartition(".")[2]


def _name_group(group: Mapping[str, str]) -> str:
    return ", ".join(f"{_short(axis)} {label}" for axis, label in group.items())


def _point_series(result: Result) -> list[Series]:
    groups: dict[str, list[Dot]] = {}
    for point in result.points:
        pick = {**point.group, result.comparison.axis: point.label}
        groups.setdefault(_name_group(point.group), []).append(Dot(point.label, point.score, pick))
    return [Series(name, dots) for name, dots in groups.items()]


def _gap_series(result: Result) -> list[Series]:
    """Return the means of both conditions on the shared start states. Their difference has the interval, not they."""
    groups: dict[str, list[Dot]] = {}
    for finding in result.findings:
        label = finding.group[result.comparison.axis]
        by = _name_group({axis: of for axis, of in finding.group.items() if axis != result.comparison.axis})
        for term in sorted(finding.terms, key=lambda term: term.weight):
            score = Interval(term.mean, term.mean, term.mean, finding.states)
            dot = Dot(label, score, dict(finding.group), has_interval=False)
            groups.setdefault(", ".join(filter(None, [term.labels["condition"], by])), []).append(dot)
    return [Series(name, dots) for name, dots in groups.items()]


def _draw_fronts(result: Result, scale: Scale) -> list[Figure]:
    costs = list_costs(result)
    groups = list(dict.fromkeys(_name_group(of.point.group) for of in result.costs))
    figures = []
    for cost in costs:
        own = [of for of in result.costs if cost in of.costs]
        dots = [_cost_dot(of, cost, groups, result.comparison.axis) for of in own]
        caption = f"{scale.title} against {name_cost(cost)}; the line joins labels that no other beats, as measured"
        legend = tuple(groups) if len(groups) > 1 else ()
        figures.append(Figure(caption, draw_front(dots, name_cost(cost), scale), legend, name_cost(cost)))
    return figures


def _cost_dot(of: CostPoint, cost: str, groups: Sequence[str], axis: str) -> CostDot:
    beaten = of.beaten_by.get(cost, ())
    return CostDot(
        label=of.point.label,
        series=groups.index(_name_group(of.point.group)),
        cost=of.costs[cost],
        score=of.point.score,
        on_front=cost in of.front,
        note=f", beaten by {', '.join(beaten)} by their test" if beaten else "",
        pick={**of.point.group, axis: of.point.label},
    )
