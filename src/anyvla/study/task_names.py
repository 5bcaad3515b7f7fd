"""Check the tasks that comparisons name against the suites that their cells play."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anyvla.config import ConfigError
from anyvla.evaluation.protocol import CHAIN
from anyvla.evaluation.suites import open_suite
from anyvla.registry import suggest
from anyvla.study.cells import Cell
from anyvla.study.file import Comparison, StudyFile, matches
from anyvla_sim.base import BenchmarkUnusable, Suite


def check_task_names(study: StudyFile, cells: Sequence[Cell], source: Path) -> None:
    """Raise ConfigError for a task or group that a suite of its comparison does not have, or that is not played.

    A suite whose simulator is not on this machine is not checked.
    """
    suites: dict[str, Suite | None] = {}
    for comparison in study.comparisons:
        if not comparison.tasks:
            continue
        checked = set()
        for cell in cells:
            if cell.invalid or not matches(cell.labels, comparison.where):
                continue
            benchmark, environment, played = _find_benchmark(study, cell, comparison)
            key = repr((benchmark, environment))
            if benchmark is None or (key, played) in checked:
                continue
            checked.add((key, played))
            if key not in suites:
                suites[key] = _open(benchmark, environment)
            suite = suites[key]
            if suite is not None:
                _check(comparison, benchmark, suite, played, f"{source}: comparisons: {comparison.name!r}")


def _find_benchmark(
    study: StudyFile, cell: Cell, comparison: Comparison
) -> tuple[str | None, dict[str, Any], tuple[str, ...]]:
    """Return the benchmark of a comparison in a cell, its settings, and the tasks that are played; empty: all."""
    recipe = cell.recipe
    if comparison.benchmark in (None, recipe.benchmark):
        return recipe.benchmark, dict(recipe.environment), recipe.evaluation.tasks
    other = next((other for other in study.benchmarks if other.benchmark == comparison.benchmark), None)
    if other is None:
        return None, {}, ()
    return other.benchmark, other.environment, tuple(other.evaluation.get("tasks", recipe.evaluation.tasks))


def _open(benchmark: str, environment: dict[str, Any]) -> Suite | None:
    try:
        opened = open_suite(benchmark, environment)
    except BenchmarkUnusable:
        return None
    opened.benchmark.close()
    return opened.suite


def _check(comparison: Comparison, benchmark: str, suite: Suite, played: Sequence[str], where: str) -> None:
    tasks = [CHAIN] if suite.chains else [task.name for task in suite.tasks]
    for name in comparison.tasks:
        if name not in tasks and name not in suite.groups:
            raise ConfigError(
                f"{where}: {benchmark} has no task or group {name!r}: {suggest(name, [*tasks, *suite.groups])}"
            )
        if played and not set(suite.groups.get(name, [name])) & set(played):
            raise ConfigError(f"{where}: evaluation.tasks leaves out {name!r}: {', '.join(played)} are played")
