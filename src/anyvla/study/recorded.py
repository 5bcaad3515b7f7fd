"""Find the cells whose results the store has, so that their jobs need not run again.

A store is small enough to be shared, unlike the folders of jobs. So another machine can continue a study.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from anyvla.config import ConfigError
from anyvla.recipe import Recipe
from anyvla.study.file import StudyFile
from anyvla.study.folder import StudyFolder
from anyvla.study.jobs import CellJobs
from anyvla.study.store import CellLine, append_cell, read_store


def read_known(path: Path, study: StudyFile) -> dict[str, CellLine]:
    """Return the lines of another store by cell. Raises ConfigError if it cannot be read or is of another study."""
    lines = {line.cell: line for line in read_store(path)}
    if wrong := sorted({line.study for line in lines.values()} - {study.name}):
        raise ConfigError(f"--known: {path} is the store of the study {wrong[0]!r}, not of {study.name!r}")
    return lines


def find_recorded(jobs_of: Mapping[str, CellJobs], *stores: Mapping[str, CellLine]) -> dict[str, CellLine]:
    """Return the lines with the results of these very jobs and all their episodes, by cell. Earlier stores first."""
    found = {name: [store[name] for store in stores if name in store] for name in jobs_of}
    usable = {name: [line for line in lines if _has_results(line, jobs_of[name])] for name, lines in found.items()}
    return {name: lines[0] for name, lines in usable.items() if lines}


def write_recorded(recorded: Iterable[CellLine], folder: StudyFolder) -> None:
    """Append the lines that come from another store to the folder's."""
    own = {line.cell: line for line in read_store(folder.store)} if folder.store.is_file() else {}
    for line in recorded:
        if own.get(line.cell) != line:
            append_cell(folder.store, line)


def _has_results(line: CellLine, jobs: CellJobs) -> bool:
    if line.state != "done" or line.stopped or line.keys != jobs.keys:
        return False
    return all(_has_episodes(line, jobs.jobs[name].recipe) for name in jobs.evaluations)


def _has_episodes(line: CellLine, recipe: Recipe) -> bool:
    """Return whether the benchmark of a recipe was played as often as asked; the keys do not tell."""
    asked = recipe.evaluation
    if asked.episodes is not None and line.protocols[str(recipe.benchmark)]["episodes"] < asked.episodes:
        return False
    unrelated = [played for played in line.episodes if played.condition.startswith("unrelated")]
    return all(len(played.outcomes) >= (asked.unrelated_episodes or 0) for played in unrelated)
