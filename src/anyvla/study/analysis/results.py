"""Answer each comparison of a study: findings, curves and points of cost against success."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anyvla.config import ConfigError
from anyvla.evaluation.intervals import Interval
from anyvla.study.analysis.assessing import assess
from anyvla.study.analysis.contrasts import Contrast, Matched, list_contrasts, match, trend
from anyvla.study.analysis.finding import Finding
from anyvla.study.analysis.pooling import pool
from anyvla.study.analysis.scores import Scores, plain_labels, protocol_faults, read_compared
from anyvla.study.analysis.tables import mean_costs
from anyvla.study.file import Comparison, StudyFile, matches
from anyvla.study.store import CellLine


@dataclass(frozen=True)
class Point:
    """A label of the comparison's axis with its score over all cells that have it."""

    label: str
    group: Mapping[str, str]  # the label of the axis `by`
    score: Interval
    seeds: int  # training seeds
    cells: int


@dataclass(frozen=True)
class CostPoint:
    """A label with its score and its costs."""

    point: Point
    costs: Mapping[str, float]  # means over its cells
    front: tuple[str, ...]  # the costs at which no other label is as good for less, as measured
    beaten_by: Mapping[str, tuple[str, ...]]  # by cost: cheaper labels whose score is higher by their test


@dataclass(frozen=True)
class Result:
    """The answer to one comparison."""

    comparison: Comparison
    benchmarks: tuple[str, ...]  # on which it is answered; empty without results
    findings: tuple[Finding, ...]
    points: tuple[Point, ...]  # of every label; of a curve in the order of its numbers
    costs: tuple[CostPoint, ...]  # of a comparison of kind cost
    family: str  # how many tests are corrected together
    missing: tuple[str, ...]  # contrasts without an answer, with the reason
    notes: tuple[str, ...]  # results that could not be used, with the reason


def answer_comparison(study: StudyFile, comparison: Comparison, lines: Sequence[CellLine]) -> Result:
    """Return the answer to a comparison as far as there are results."""
    lines = sorted(lines, key=lambda line: line.cell)  # rounding depends on the order
    try:
        scores = read_compared(comparison, lines)
    except ConfigError as error:
        return Result(comparison, (), (), (), (), "", (f"{comparison.name}: {error}",), ())
    tested: list[tuple[Contrast, Matched]] = []
    contrasts = list_contrasts(study, comparison)
    missing = [] if contrasts else [f"{comparison.name}: its labels, where and exclude leave nothing to compare"]
    notes = []
    for planned in contrasts:
        contrast = _with_results(comparison, planned, scores)
        try:
            tested.append((contrast, match(contrast, scores)))
        except ConfigError as error:
            missing.append(str(error))
            continue
        if absent := [" ".join(key) for key in planned.terms if key not in contrast.terms]:
            notes.append(f"{contrast.name}: without {', '.join(absent)}, of which there are no finished cells")
    findings = assess(tested, comparison.measure, study.stop.block if study.stop else 1)
    points = []
    for group in _list_groups(study, comparison):
        numbers = [n for n, policy in enumerate(scores.policies) if matches(policy.labels, group)]
        if faults := protocol_faults([scores.policies[number] for number in numbers]):
            of = "".join(f" with {axis} {label}" for axis, label in group.items()) or ""
            notes.append(f"no means over the cells{of}, since their protocols differ: {'; '.join(faults)}")
        else:
            points += _list_points(study, comparison, scores, group)
    benchmarks = dict.fromkeys(str(policy.protocol["benchmark"]) for policy in scores.policies)
    return Result(
        comparison=comparison,
        benchmarks=tuple(benchmarks),
        findings=tuple(findings),
        points=tuple(points),
        costs=tuple(_add_costs(comparison, points, findings, lines)) if comparison.kind == "cost" else (),
        family=f"p values are corrected for the {len(findings)} tests of {comparison.name!r} (Holm 1979)",
        missing=tuple(missing),
        notes=tuple(notes),
    )


def _with_results(comparison: Comparison, contrast: Contrast, scores: Scores) -> Contrast:
    """Return the contrast, of a trend without the labels that have no finished cells."""
    if comparison.kind != "curve":
        return contrast
    found = {contrast.find_key(p) for p in scores.policies if matches(p.labels, contrast.where)}
    labels = [key[0] for key in contrast.terms if key in found]
    if len(labels) < 2:
        return contrast
    return trend(comparison, labels, next(iter(contrast.group.values()), None))


def _list_groups(study: StudyFile, comparison: Comparison) -> list[dict[str, str]]:
    """Return each label of the axis `by`; without it, one group of all cells."""
    return [{}] if comparison.by is None else [{comparison.by: label} for label in study.labels(comparison.by)]


def _list_points(study: StudyFile, comparison: Comparison, scores: Scores, group: Mapping[str, str]) -> list[Point]:
    """Return the scores of the labels of the axis in a group of cells, under the comparison's condition."""
    labels = list(study.labels(comparison.axis))
    if comparison.kind == "curve":
        labels.sort(key=float)
    points = []
    for label in labels:
        numbers = [
            number
            for number, policy in enumerate(scores.policies)
            if policy.condition == comparison.condition and matches(policy.labels, {**group, comparison.axis: label})
        ]
        score = pool(scores, numbers)
        if score is not None:
            seeds = {scores.policies[number].seed for number in numbers}
            points.append(Point(label, group, score, len(seeds), len(numbers)))
    return points


def _add_costs(
    comparison: Comparison, points: Sequence[Point], findings: Sequence[Finding], lines: Sequence[CellLine]
) -> list[CostPoint]:
    """Return the points with their costs, and which of them no other point of their group beats."""
    costs = [
        mean_costs(
            line
            for line in lines
            if line.state == "done"
            and matches(plain_labels(line), {**comparison.where, **point.group, comparison.axis: point.label})
        )
        for point in points
    ]
    better = {pair for finding in findings for pair in _better(comparison.axis, finding)}
    made = []
    for point, own in zip(points, costs, strict=True):
        rivals = [
            (other, of)
            for other, of in zip(points, costs, strict=True)
            if other.group == point.group and other.label != point.label
        ]
        made.append(
            CostPoint(
                point=point,
                costs=own,
                front=tuple(cost for cost in own if not any(_dominates(o, of, point, own, cost) for o, of in rivals)),
                beaten_by={
                    cost: tuple(
                        other.label
                        for other, of in rivals
                        if of.get(cost, math.inf) <= own[cost]
                        and (other.label, point.label, tuple(point.group.items())) in better
                    )
                    for cost in own
                },
            )
        )
    return made


def _dominates(other: Point, costs: Mapping[str, float], point: Point, own: Mapping[str, float], cost: str) -> bool:
    """Return whether another point is as good for as little, and better in one of the two."""
    theirs = (-other.score.value, costs.get(cost, math.inf))
    mine = (-point.score.value, own[cost])
    return theirs != mine and theirs[0] <= mine[0] and theirs[1] <= mine[1]


def _better(axis: str, finding: Finding) -> list[tuple[str, str, tuple[tuple[str, str], ...]]]:
    """Return (better label, other label, group) if the test of a difference says which is better."""
    if finding.verdict == "cannot tell":
        return []
    other, label = (term.labels[axis] for term in sorted(finding.terms, key=lambda term: term.weight * finding.value))
    return [(label, other, tuple(finding.group.items()))]
