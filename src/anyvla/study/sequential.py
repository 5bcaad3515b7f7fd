"""Say which comparisons of a running study are decided, so that no more episodes are needed for them.

The test is valid at any number of looks (`analysis.e_process`). It decides about the policies that are trained, on the
mean over their training seeds and settings; it says nothing about other trainings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from anyvla.config import ConfigError
from anyvla.study.analysis.assessing import betting_values
from anyvla.study.analysis.contrasts import Contrast, list_contrasts, match
from anyvla.study.analysis.e_process import log_wealth
from anyvla.study.analysis.scores import Scores, read_compared
from anyvla.study.analysis.tables import Groups, group_lines
from anyvla.study.file import StudyFile, matches
from anyvla.study.store import CellLine


@dataclass(frozen=True)
class Decision:
    """A contrast and whether its test has decided."""

    comparison: str
    contrast: str
    cells: tuple[str, ...]  # whose episodes it needs
    decided: bool
    higher: bool | None = None  # the direction, if it is decided


def decide(study: StudyFile, lines: Sequence[CellLine]) -> list[Decision]:
    """Return a decision for every contrast of the study, from the episodes so far.

    Give the lines of all cells: a cell that is not played yet has no episodes or no line, and leaves its contrasts
    undecided. The chance that any decision of the study is wrong, at any number of looks, is at most `stop.error`
    (Bonferroni over all contrasts). Raises ValueError for a study without `stop`.
    """
    if study.stop is None:
        raise ValueError("a study that may stop early needs the key stop")
    planned = {comparison.name: list_contrasts(study, comparison) for comparison in study.comparisons}
    bound = np.log(sum(map(len, planned.values())) / study.stop.error)
    groups = group_lines(study, lines)
    decisions = []
    for comparison in study.comparisons:
        try:
            scores = read_compared(comparison, lines)
        except ConfigError:  # the benchmark has no such task: nothing can be decided
            scores = read_compared(comparison, ())
        for contrast in planned[comparison.name]:
            cells, complete = _find_cells(study, contrast, scores, groups)
            higher = _find_direction(contrast, scores, study.stop.block, bound) if complete else None
            decisions.append(Decision(comparison.name, contrast.name, cells, higher is not None, higher))
    return decisions


def decided(study: StudyFile, lines: Sequence[CellLine]) -> set[str]:
    """Return the names of the cells that need no more episodes: each contrast that needs them is decided."""
    decisions = decide(study, lines)
    needed = set(chain.from_iterable(d.cells for d in decisions if not d.decided))
    return set(chain.from_iterable(d.cells for d in decisions)) - needed


def _find_cells(study: StudyFile, contrast: Contrast, scores: Scores, groups: Groups) -> tuple[tuple[str, ...], bool]:
    """Return the cells that a contrast needs, and whether all that have not failed were played."""
    played = {(policy.cell, policy.condition) for policy in scores.policies}
    conditions = {key[0] for key in contrast.terms} if not contrast.axes else {p.condition for p in scores.policies}
    cells, complete = [], True
    for labels, by_seed in groups:
        key = tuple(labels[axis] for axis in contrast.axes)
        if not matches(labels, contrast.where) or (contrast.axes and key not in contrast.terms):
            continue
        for seed in study.seeds:
            line = by_seed.get(seed)
            if line is None:
                complete = False
            elif line.state == "done":
                cells.append(line.cell)
                complete &= bool(conditions) and all((line.cell, condition) in played for condition in conditions)
    return tuple(cells), complete


def _find_direction(contrast: Contrast, scores: Scores, block: int, bound: float) -> bool | None:
    """Return whether a decided contrast is positive; None while it is undecided."""
    try:
        values, looks = betting_values(match(contrast, scores), block)
    except ConfigError:  # too few shared start states, or no row: nothing can be decided
        return None
    if not looks:
        return None
    over = np.flatnonzero(log_wealth(values, looks) >= bound)
    return bool(values[: looks[over[0]]].mean() > 0) if len(over) else None
