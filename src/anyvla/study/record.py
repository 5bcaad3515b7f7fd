"""Write the line of a cell whose jobs have ended."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from anyvla.checkpoint.files import WEIGHTS
from anyvla.checkpoint.of_run import FINAL
from anyvla.config import to_dict
from anyvla.evaluation.results import EpisodeResult, append_line, read_json_lines, read_results
from anyvla.files import durable
from anyvla.files.weights import count_elements
from anyvla.study.cells import Cell
from anyvla.study.file import StudyFile
from anyvla.study.folder import StudyFolder
from anyvla.study.jobs import CellJobs
from anyvla.study.schedule import find_failed
from anyvla.study.store import CellLine, append_cell, pack_results

RESULTS = "results.jsonl"  # of an evaluation


def record(study: StudyFile, cell: Cell, jobs: CellJobs | None, folder: StudyFolder, known: CellLine | None) -> bool:
    """Append the line of a cell whose jobs have all ended, unless the store has it already.

    `jobs`: None for an invalid cell. `known`: the cell's last line. Return whether the cell has ended.
    """
    if jobs is None:
        line = _begin(study, cell, state="invalid", error=cell.invalid)
    else:
        failed = find_failed(jobs.jobs, folder)
        if any(name not in failed and folder.done(job) is None for name, job in jobs.jobs.items()):
            return False
        line = _describe_failure(study, cell, jobs, folder, failed) if failed else describe(study, cell, jobs, folder)
    if known is None or _without_time(known) != _without_time(line):
        append_cell(folder.store, line)
    return True


def set_outdated_aside(jobs_of: Mapping[str, CellJobs], folder: StudyFolder) -> int:
    """Move the lines of cells whose recipe has changed from the store to a file beside it. Return how many.

    `jobs_of`: the jobs of each cell now. Otherwise a page would show the old results as those of the new recipe.
    """
    if not folder.store.is_file():
        return 0
    kept, outdated = list[dict[str, Any]](), list[dict[str, Any]]()
    for _, line in read_json_lines(folder.store):
        jobs = jobs_of.get(line["cell"])
        (kept if jobs is None or line["keys"] == jobs.keys else outdated).append(line)
    if outdated:
        for line in outdated:
            append_line(folder.outdated, line)
        durable.write(folder.store, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
    return len(outdated)


def _begin(study: StudyFile, cell: Cell, **others: Any) -> CellLine:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return CellLine(
        study=study.name, cell=cell.name, labels=cell.labels, seed=cell.seed, recipe=cell.changes, time=now, **others
    )


def _describe_failure(
    study: StudyFile, cell: Cell, jobs: CellJobs, folder: StudyFolder, failed: Mapping[str, str]
) -> CellLine:
    cause = next(iter(failed.values()))
    failure = folder.failure(cause)
    assert failure is not None
    state = "over" if failure.over_budget else "failed"
    return _begin(study, cell, state=state, error=f"{jobs.jobs[cause].kind}: {failure.reason}", keys=jobs.keys)


def describe(study: StudyFile, cell: Cell, jobs: CellJobs, folder: StudyFolder) -> CellLine:
    """Return the line of a cell whose jobs are all done."""
    results: list[EpisodeResult] = []
    for name in jobs.evaluations:
        results += read_results(folder.of(name) / RESULTS)
    return _begin(
        study,
        cell,
        state="done",
        episodes=pack_results(results),
        stopped=jobs.stopped,
        protocols={result.benchmark: dict(result.protocol) for result in results},
        costs=_measure_costs(jobs, folder, results),
        keys=jobs.keys,
        versions=dict(results[-1].versions) if results else {},
    )


def _measure_costs(jobs: CellJobs, folder: StudyFolder, results: list[EpisodeResult]) -> dict[str, float]:
    """Return minutes by kind of job (shared jobs count in every cell), memory, parameters and latency."""
    costs: dict[str, float] = {}
    for job in jobs.jobs.values():
        done = folder.done(job)
        if done is not None:
            key = f"minutes.{job.kind}"
            costs[key] = round(costs.get(key, 0.0) + done.minutes, 3)
            costs["memory_gb"] = round(max(costs.get("memory_gb", 0.0), done.memory_gb), 3)
    costs["parameters"] = count_elements(folder.of(jobs.trainings[-1]) / FINAL / WEIGHTS)
    if results:
        costs["latency_ms"] = round(statistics.median(result.latency_ms for result in results), 2)
    return costs


def _without_time(line: CellLine) -> dict[str, Any]:
    return to_dict(dataclasses.replace(line, time=""))
