"""Make the tables of a study: the score of each group of cells that differ in their training seed only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Literal

import numpy as np

from anyvla.evaluation.conditions import ORIGINAL
from anyvla.evaluation.intervals import Interval
from anyvla.study.analysis.pooling import pool
from anyvla.study.analysis.scores import Scores, keep_task, plain_labels, protocol_faults, read_scores
from anyvla.study.file import StudyFile, matches
from anyvla.study.store import CellLine

# missing: there is no line yet. not played: the cell is done, but not under this condition.
Progress = Literal["done", "failed", "invalid", "over", "missing", "not played"]
Groups = list[tuple[dict[str, str], dict[int, CellLine]]]  # labels, and the lines of the training seeds


@dataclass(frozen=True)
class SeedScore:
    """One cell of a group."""

    seed: int  # of the training
    cell: str  # empty if it is missing
    progress: Progress
    error: str  # why it failed
    rate: Interval | None  # None without episodes
    length: float | None  # mean tasks in a row
    simulator_errors: int
    stopped: bool  # its episodes ended early, so that its rate is biased away from those it was compared with


@dataclass(frozen=True)
class Row:
    """A group of cells that differ in their training seed only."""

    labels: Mapping[str, str]
    # The mean of the seeds; the interval takes trainings and start states into account. None without episodes, and for
    # seeds of different protocols.
    rate: Interval | None
    tasks: Mapping[str, float]  # rate of each task, or pair of tasks
    curve: Mapping[float, Interval]  # rate for each number of the table's curve
    length: Interval | None  # of chains: tasks solved in a row
    seeds: tuple[SeedScore, ...]  # of all training seeds of the study
    costs: Mapping[str, float]  # means over the finished cells

    @property
    def done(self) -> int:
        """The number of training seeds behind the rate."""
        return sum(seed.rate is not None for seed in self.seeds)


@dataclass(frozen=True)
class Table:
    """The scores on one benchmark under one condition."""

    benchmark: str
    condition: str
    chance: float | None  # the success rate of a policy that guesses, if the benchmark declares one
    curve_axis: str | None  # the number on which success depends, if the benchmark declares one: "delay, actions"
    rows: tuple[Row, ...]
    protocol_differences: tuple[str, ...]  # why not all rows can be compared


def make_tables(study: StudyFile, lines: Sequence[CellLine]) -> list[Table]:
    """Return a table for each benchmark and condition that a finished cell played.

    A table has all groups of the study, those without results as well, except groups that play other benchmarks only.
    """
    played = dict.fromkeys((p.benchmark, p.condition) for line in lines if line.state == "done" for p in line.episodes)
    order = list(dict.fromkeys(benchmark for benchmark, _ in played))
    ranked = sorted(played, key=lambda key: (order.index(key[0]), key[1] != ORIGINAL, key[1]))
    groups = group_lines(study, lines)
    return [_make_table(study, lines, groups, *key) for key in ranked]


def group_lines(study: StudyFile, lines: Iterable[CellLine]) -> Groups:
    """Return the labels of every group that the study plans, in the order of the file, with the lines of its seeds."""
    found = {(frozenset(plain_labels(line).items()), line.seed): line for line in lines}
    groups = []
    for combination in product(*(study.labels(axis) for axis in study.axes)):
        labels = dict(zip(study.axes, combination, strict=True))
        if not any(matches(labels, excluded) for excluded in study.exclude):
            key = frozenset(labels.items())
            groups.append((labels, {seed: found[key, seed] for seed in study.seeds if (key, seed) in found}))
    return groups


def mean_costs(lines: Iterable[CellLine]) -> dict[str, float]:
    """Return the mean of each cost over the cells that have it."""
    found: dict[str, list[float]] = {}
    for line in lines:
        for name, value in line.costs.items():
            found.setdefault(name, []).append(float(value))
    # Rounded, so that means of equal costs are equal: whether a label is beaten depends on it.
    return {name: float(f"{fmean(values):.6g}") for name, values in found.items()}


def _make_table(
    study: StudyFile,
    lines: Sequence[CellLine],
    groups: Groups,
    benchmark: str,
    condition: str,
) -> Table:
    scores = read_scores(lines, benchmark, [condition])
    lengths = read_scores(lines, benchmark, [condition], "length")
    curve = scores.policies[0].protocol.get("curve") or {}
    number = {policy.cell: row for row, policy in enumerate(scores.policies)}
    rows = []
    for labels, own in groups:
        played = {play.benchmark for line in own.values() for play in line.episodes}
        if benchmark not in (played or _plan_benchmarks(study, labels, groups) or {benchmark}):
            continue
        seeds = tuple(_score_seed(seed, own.get(seed), number, scores, lengths) for seed in study.seeds)
        numbers = [number[line.cell] for line in own.values() if line.cell in number]
        if protocol_faults([scores.policies[n] for n in numbers]):
            numbers = []
        rows.append(
            Row(
                labels=labels,
                rate=pool(scores, numbers),
                tasks=_task_rates(scores, numbers),
                curve={
                    float(x): rate
                    for name, x in curve.get("groups", {}).items()
                    if (rate := pool(keep_task(scores, name), numbers)) is not None
                },
                length=pool(lengths, numbers) if lengths.find_largest(numbers) > 1 else None,
                seeds=seeds,
                costs=mean_costs(line for line in own.values() if line.state == "done"),
            )
        )
    chance, faults = scores.policies[0].protocol.get("chance"), protocol_faults(scores.policies)
    return Table(benchmark, condition, chance, curve.get("axis"), tuple(rows), tuple(faults))


def _plan_benchmarks(study: StudyFile, labels: Mapping[str, str], groups: Groups) -> set[str]:
    """Return the benchmarks that a group without results will play; empty if they are not known.

    The study file names them. If it names none, the group plays the benchmark of the base recipe, which is not read
    here; then other groups of that benchmark tell its name.
    """
    own = _name_benchmark(study, labels)
    if own is not None:
        return {own, *(further.benchmark for further in study.benchmarks)}
    alike = (lines.values() for other, lines in groups if _name_benchmark(study, other) is None)
    return {play.benchmark for lines in alike for line in lines for play in line.episodes}


def _name_benchmark(study: StudyFile, labels: Mapping[str, str]) -> str | None:
    """Return the benchmark that the last axis with such a key names for these labels."""
    named = None
    for axis, label in labels.items():
        values = study.axes[axis]
        keys = (
            next((value for key, value in values.items() if str(key) == label), None)
            if isinstance(values, dict)
            else None
        )
        if axis == "benchmark":
            named = str(keys or label)
        elif isinstance(keys, Mapping) and "benchmark" in keys:
            named = str(keys["benchmark"])
    return named or study.set.get("benchmark")


def _task_rates(scores: Scores, numbers: Sequence[int]) -> dict[str, float]:
    """Return the mean rate of policies on each task that they played."""
    own, tasks = scores.values[numbers], np.array([task for task, _ in scores.states])
    of_tasks = {str(task): own[:, tasks == task] for task in np.unique(tasks)}
    return {task: float(np.nanmean(values)) for task, values in of_tasks.items() if np.isfinite(values).any()}


def _score_seed(
    seed: int, line: CellLine | None, number: Mapping[str, int], scores: Scores, lengths: Scores
) -> SeedScore:
    if line is None:
        return SeedScore(seed, "", "missing", "", None, None, 0, False)
    at = number.get(line.cell)
    if at is None:
        progress: Progress = "not played" if line.state == "done" else line.state
        return SeedScore(seed, line.cell, progress, line.error, None, None, 0, False)
    rate = pool(scores, [at])
    return SeedScore(
        seed=seed,
        cell=line.cell,
        progress=line.state,
        error=line.error,
        rate=rate,
        length=float(np.nanmean(lengths.values[at])) if lengths.policies[at].largest > 1 and rate is not None else None,
        simulator_errors=int(scores.errors[at].sum()),
        stopped=line.stopped,
    )
