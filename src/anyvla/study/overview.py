"""Look at a study: its cells, the jobs that are missing, and the hours and the disk that they will need."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import psutil

from anyvla.config import ConfigError
from anyvla.planning.table import format_hours
from anyvla.recipe import Recipe
from anyvla.registry import suggest
from anyvla.study.cells import Cell, expand
from anyvla.study.early_stopping import EarlyStopping
from anyvla.study.file import StudyFile
from anyvla.study.folder import Done, StudyFolder
from anyvla.study.jobs import CellJobs, Job, Kind, list_jobs
from anyvla.study.recorded import find_recorded
from anyvla.study.schedule import find_failed
from anyvla.study.store import CellLine, read_store
from anyvla.study.task_names import check_task_names
from anyvla.study.trainings import TrainingPlan, least_gigabytes
from anyvla.training.features import freezes_vision, why_not_kept


@dataclass(frozen=True)
class Estimate:
    """The needs of the jobs of one kind, as measured so far."""

    minutes: float
    memory_gb: float
    gigabytes: float


_KINDS: tuple[Kind, ...] = get_args(Kind)
# Before anything is measured: jobs of small models on a laptop.
_GUESS: Mapping[Kind, Estimate] = {
    "collect": Estimate(3, 2.0, 0.05),
    "codec": Estimate(1, 2.0, 0.01),
    "train": Estimate(10, 2.0, 0.1),
    "evaluate": Estimate(3, 2.0, 0.02),
}


@dataclass(frozen=True)
class Overview:
    """The state of a study."""

    study: StudyFile
    cells: tuple[Cell, ...]
    jobs_of: Mapping[str, CellJobs]  # of the valid cells, by name
    jobs: Mapping[str, Job]  # that cells need or that are done, each once, in an order in which they can run
    missing: tuple[Job, ...]
    failed: Mapping[str, str]  # jobs that can't run -> the job that failed
    reasons: Mapping[str, str]  # of jobs that failed
    estimates: Mapping[Kind, Estimate]
    measured: Mapping[Kind, int]  # jobs that an estimate is the mean of
    lines: Mapping[str, CellLine]  # of the store, by cell
    stopping: EarlyStopping | None = None
    plans: Mapping[str, TrainingPlan] = field(default_factory=dict)  # of missing trainings, by job
    recorded: Mapping[str, CellLine] = field(default_factory=dict)  # lines of cells that need no job, see recorded.py

    @cached_property
    def states(self) -> Mapping[str, int]:
        """The number of cells by state: done, missing, failed, invalid."""
        return Counter(self.state(cell) for cell in self.cells)

    def state(self, cell: Cell) -> str:
        """Return the state of a cell."""
        if cell.invalid:
            return "invalid"
        if cell.name in self.recorded:
            return "done"
        names = self.jobs_of[cell.name].jobs
        if any(name in self.failed for name in names):
            return "failed"
        return "done" if self._missing.isdisjoint(names) else "missing"

    @cached_property
    def _missing(self) -> frozenset[str]:
        return frozenset(job.name for job in self.missing)

    @cached_property
    def features(self) -> Mapping[str, int]:
        """The number of trainings with a frozen vision tower by how they get its features."""
        trainings = (job.recipe for job in self.jobs.values() if job.kind == "train")
        return Counter(_describe_features(recipe) for recipe in trainings if freezes_vision(recipe))

    @property
    def minutes(self) -> float:
        """The minutes of the missing jobs, one after another, without trainings of unknown length."""
        return sum(self._minutes_of(job) for job in self.missing)

    @property
    def gigabytes(self) -> float:
        """The disk that the missing jobs need."""
        return sum(
            max(self.estimates[job.kind].gigabytes, self._plan_of(job).gigabytes, least_gigabytes(job))
            for job in self.missing
        )

    @property
    def unknown(self) -> int:
        """The number of missing trainings of unknown length."""
        return sum(plan.hours is None for plan in self.plans.values())

    @property
    def machine_gb(self) -> float:
        """The memory of this machine."""
        return psutil.virtual_memory().total / 1e9

    def to_dict(self, processes: int) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "study": self.study.name,
            "question": self.study.question,
            "states": dict(self.states),
            "jobs": {
                kind: {
                    "all": sum(job.kind == kind for job in self.jobs.values()),
                    "missing": sum(job.kind == kind for job in self.missing),
                    "minutes_each": round(self.estimates[kind].minutes, 2),
                    "measured": self.measured[kind],
                    "basis": self._basis(kind),
                }
                for kind in _KINDS
            },
            "frozen_features": dict(self.features),
            "trainings": {name: asdict(plan) for name, plan in self.plans.items()},
            "hours": round(self.minutes / 60 / processes, 2),
            "trainings_of_unknown_length": self.unknown,
            "processes": processes,
            "gigabytes": round(self.gigabytes, 2),
            "cells": [
                {"cell": cell.name, "labels": dict(cell.labels), "seed": cell.seed, "state": self.state(cell)}
                | ({"reason": reason} if (reason := self._reason(cell)) else {})
                for cell in self.cells
            ],
        }

    def to_text(self, processes: int) -> str:
        """Return some lines for people."""
        counts = ", ".join(f"{count} {state}" for state, count in sorted(self.states.items()))
        lines = [f"{self.study.name}: {len(self.cells)} cells: {counts}"]
        for kind in _KINDS:
            every = sum(job.kind == kind for job in self.jobs.values())
            if every:
                left = sum(job.kind == kind for job in self.missing)
                lines.append(f"  {kind}: {every - left} of {every} done; {self._describe_time(kind)}")
        for how, count in self.features.items():
            lines.append(f"  features of the frozen vision tower of {count} trainings: {how}")
        if self.missing:
            hours = self.minutes / 60 / processes
            more = f" and {self.unknown} trainings of unknown length" if self.unknown else ""
            several = "processes" if processes > 1 else "process"
            lines.append(
                f"  left: about {hours:,.1f} hours{more} in {processes} {several}, and {self.gigabytes:,.1f} GB"
            )
        lines += self._describe_plans()
        for state in ("invalid", "failed"):
            of_state = [cell for cell in self.cells if self.state(cell) == state]
            reasons = Counter(self._reason(cell) for cell in of_state)
            lines += [
                f"  {state}, {count} {'cell' if count == 1 else 'cells'}: {reason}"
                for reason, count in reasons.most_common(5)
            ]
        return "\n".join(lines)

    def _plan_of(self, job: Job) -> TrainingPlan:
        return self.plans.get(job.name, TrainingPlan())

    def _minutes_of(self, job: Job) -> float:
        if job.name in self.plans:
            return 60 * (self.plans[job.name].hours or 0.0)
        return self.estimates[job.kind].minutes

    def _basis(self, kind: Kind) -> str:
        """Return where the time of jobs of a kind comes from."""
        if kind == "train" and self.plans:
            return "planned"
        return f"measured on {self.measured[kind]}" if self.measured[kind] else "a guess: small jobs"

    def _describe_time(self, kind: Kind) -> str:
        hours = [plan.hours for plan in self.plans.values() if plan.hours is not None] if kind == "train" else []
        if hours:
            least, most = format_hours(min(hours)), format_hours(max(hours))
            each = f"{least} each" if least == most else f"{least} to {most} each"
            return f"{format_hours(sum(hours))} together, {each} (planned)"
        if self._basis(kind) == "planned":
            return "of unknown length"
        return f"{self.estimates[kind].minutes:.1f} minutes each ({self._basis(kind)})"

    def _describe_plans(self) -> list[str]:
        """Return where planned hours come from, and which trainings have none or do not fit."""
        lines = [f"  speed {origin}" for origin in dict.fromkeys(plan.origin for plan in self.plans.values()) if origin]
        large = [plan for plan in self.plans.values() if not plan.fits]
        if large:
            most = max(plan.memory_gb for plan in large)
            lines.append(
                f"  {len(large)} trainings take up to {most:,.0f} GB, more than the device has: anyvla plan lists "
                "changes of a recipe with which it fits"
            )
        reasons = Counter(plan.reason for plan in self.plans.values() if plan.hours is None)
        lines += [f"  of unknown length, {count} trainings: {reason}" for reason, count in reasons.most_common(5)]
        return lines

    def _reason(self, cell: Cell) -> str:
        if cell.invalid:
            return cell.invalid
        causes = [self.failed[name] for name in self.jobs_of[cell.name].jobs if name in self.failed]
        return f"{self.jobs[causes[0]].kind}: {self.reasons[causes[0]]}" if causes else ""


def look(
    study: StudyFile,
    source: Path,
    folder: StudyFolder,
    *,
    retry: bool = False,
    only: Collection[str] = (),
    known: Mapping[str, CellLine] | None = None,
) -> Overview:
    """Return the state of a study in a folder. Raises ConfigError.

    `retry`: jobs that have failed are missing. `only`: names of cells; empty: all. `known`: lines of another store by
    cell; finished cells among them need no job.
    """
    cells = expand(study, source)
    check_task_names(study, cells, source)
    if unknown := sorted(set(only) - {cell.name for cell in cells}):
        nearest = suggest(unknown[0], [cell.name for cell in cells])
        raise ConfigError(f"--only: {source} has no cell {unknown[0]!r}: {nearest}")
    cells = [cell for cell in cells if not only or cell.name in only]
    jobs_of = {cell.name: list_jobs(cell, study.benchmarks) for cell in cells if not cell.invalid}
    own = {line.cell: line for line in read_store(folder.store)} if folder.store.is_file() else {}
    stopping = None if study.stop is None else EarlyStopping(study, study.stop, cells, jobs_of, folder)
    recorded = find_recorded(jobs_of, own, known or {}) if stopping is None else {}
    if stopping is not None:
        jobs_of = stopping.ask()
    needed = join_jobs({name: of for name, of in jobs_of.items() if name not in recorded})
    jobs = {name: job for name, job in join_jobs(jobs_of).items() if name in needed or folder.done(job) is not None}
    failed = {} if retry else find_failed(jobs, folder)
    causes = {name: folder.failure(name) for name in set(failed.values())}
    done = {name: found for name, job in jobs.items() if (found := folder.done(job)) is not None}
    missing = [job for name, job in jobs.items() if name not in failed and name not in done]
    by_kind = {kind: [found for name, found in done.items() if jobs[name].kind == kind] for kind in _KINDS}
    return Overview(
        study=study,
        cells=tuple(cells),
        jobs_of=jobs_of,
        jobs=jobs,
        missing=tuple(missing),
        failed=failed,
        reasons={name: "" if cause is None else cause.reason for name, cause in causes.items()},
        estimates={kind: _estimate(kind, found) for kind, found in by_kind.items()},
        measured={kind: len(found) for kind, found in by_kind.items()},
        lines=own | recorded,
        stopping=stopping,
        recorded=recorded,
    )


def _describe_features(recipe: Recipe) -> str:
    if reason := why_not_kept(recipe):
        return f"computed at each use: {reason}"
    return f"computed once, and shared: at most {recipe.training.features_gb:g} GB of the disk for each tower"


def join_jobs(jobs_of: Mapping[str, CellJobs]) -> dict[str, Job]:
    """Return the jobs of all cells, each once."""
    jobs: dict[str, Job] = {}
    for of in jobs_of.values():
        jobs |= of.jobs
    return jobs


def _estimate(kind: Kind, done: Iterable[Done]) -> Estimate:
    """Return the mean time and size of finished jobs of a kind, and their largest memory."""
    found = list(done)
    if not found:
        return _GUESS[kind]
    return Estimate(
        statistics.fmean(one.minutes for one in found),
        max(one.memory_gb for one in found),
        statistics.fmean(one.gigabytes for one in found),
    )
