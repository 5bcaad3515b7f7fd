"""Small studies with invented episodes, for tests of their analysis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from anyvla.study.file import Comparison, StudyFile
from anyvla.study.store import CellLine, Played

BENCHMARK = "metaworld/mt10"
TASKS = ("push", "reach")


def make_study(
    axes: Mapping[str, Any], *comparisons: Comparison, seeds: Sequence[int] = (0, 1, 2), **keys
) -> StudyFile:
    return StudyFile(
        name="small",
        question="Does it help?",
        base="quickstart",
        axes=dict(axes),
        seeds=tuple(seeds),
        comparisons=comparisons or (Comparison(name="first", axis=next(iter(axes))),),
        **keys,
    )


def make_line(labels: Mapping[str, str], seed: int, outcomes: Mapping[str, str], **keys) -> CellLine:
    """Return a finished cell with the outcomes of tasks under `original`."""
    episodes = tuple(
        Played(benchmark=BENCHMARK, condition="original", task=task, first_seed=0, outcomes=marks)
        for task, marks in outcomes.items()
    )
    cell = ",".join([*(f"{a}={x}" for a, x in labels.items()), f"seed={seed}"])
    defaults = {"episodes": episodes, "protocols": {BENCHMARK: {"horizon": 50, "episodes": 10}}, "state": "done"}
    return CellLine(**{"study": "small", "cell": cell, "labels": labels, "seed": seed, **defaults, **keys})


def sample_lines(
    study: StudyFile,
    rate: Callable[[Mapping[str, str]], float],
    episodes: int = 20,
    spread: float = 0.0,
    rng: np.random.Generator | None = None,
) -> list[CellLine]:
    """Return lines of every cell: `rate` by labels, with a normal effect of each training of deviation `spread`."""
    rng = rng or np.random.default_rng(0)
    hard = {task: rng.random(episodes) for task in TASKS}  # of the start states: the same for all cells
    lines = []
    for combination in product(*(study.labels(axis) for axis in study.axes)):
        labels = dict(zip(study.axes, combination, strict=True))
        for seed in study.seeds:
            own = rate(labels) + spread * rng.normal()
            solved = {t: (0.5 * h + 0.5 * rng.random(episodes)) < _quantile(own) for t, h in hard.items()}
            lines.append(make_line(labels, seed, {t: "".join("01"[int(x)] for x in s) for t, s in solved.items()}))
    return lines


def _quantile(rate: float) -> float:
    """Return the quantile of the mean of two uniform numbers."""
    rate = min(max(rate, 0.0), 1.0)
    return float(np.sqrt(rate / 2)) if rate < 0.5 else float(1 - np.sqrt((1 - rate) / 2))


def with_marks(line: CellLine, change: Callable[[str], str]) -> CellLine:
    return replace(line, episodes=tuple(replace(p, outcomes=change(p.outcomes)) for p in line.episodes))
