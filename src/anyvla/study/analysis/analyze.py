"""Analyze a study: everything that its page and `anyvla study report --json` show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anyvla.config import ConfigError
from anyvla.study.analysis.answer import answer
from anyvla.study.analysis.results import Result, answer_comparison
from anyvla.study.analysis.scores import plain_labels
from anyvla.study.analysis.tables import Table, make_tables
from anyvla.study.file import StudyFile
from anyvla.study.store import CellLine


@dataclass(frozen=True)
class Analysis:
    """The results of a study."""

    question: str
    answer: str  # two sentences
    results: tuple[Result, ...]  # of the comparisons, in the order of the file
    tables: tuple[Table, ...]  # by benchmark and condition


def analyze(study: StudyFile, lines: Sequence[CellLine]) -> Analysis:
    """Return the tables and answers of a study. Raises ConfigError for lines of another study."""
    if others := sorted({line.study for line in lines} - {study.name}):
        raise ConfigError(
            f"the store has lines of the study {others[0]!r}, not of {study.name!r}: give the right folder"
        )
    known = {axis: set(study.labels(axis)) for axis in study.axes}
    own = [line for line in lines if _belongs(line, known, study.seeds)]
    results = tuple(answer_comparison(study, comparison, own) for comparison in study.comparisons)
    return Analysis(study.question, answer(results), results, tuple(make_tables(study, own)))


def _belongs(line: CellLine, known: dict[str, set[str]], seeds: Sequence[int]) -> bool:
    """Return whether the study file still plans a cell: axes may have lost labels since it was run."""
    labels = plain_labels(line)
    return labels.keys() == known.keys() and line.seed in seeds and all(labels[axis] in known[axis] for axis in known)
