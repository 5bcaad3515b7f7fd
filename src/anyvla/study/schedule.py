"""Run the jobs of a study: those that are missing, each after those that it needs."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping

from anyvla.interrupted import STOPPED
from anyvla.study.executors.base import Ended, Executor, Needs, Task
from anyvla.study.folder import LOG, Failure, StudyFolder
from anyvla.study.jobs import Job, Kind

ANYVLA = (sys.executable, "-m", "anyvla")  # on the machine of a job too
IN_USE = 75  # the exit status of a job whose folder another process uses
_RETRY_S = 10.0  # until such a job is tried again
_LOSSES = 3  # of a job with its machine, or stops by others, then it has failed
_FIRST: Mapping[Kind, int] = {"evaluate": 0, "codec": 1, "train": 2, "collect": 3}  # so that cells end early


def find_missing(jobs: Mapping[str, Job], folder: StudyFolder) -> list[Job]:
    """Return the jobs that are neither done nor known to fail, also not by a job that they need."""
    return _find_open(jobs, folder)[0]


def find_failed(jobs: Mapping[str, Job], folder: StudyFolder) -> dict[str, str]:
    """Return the jobs that failed, and those that need one of them, with the name of the job that failed."""
    return _find_open(jobs, folder)[1]


def _find_open(jobs: Mapping[str, Job], folder: StudyFolder) -> tuple[list[Job], dict[str, str]]:
    missing, failed = list[Job](), dict[str, str]()
    for name, job in jobs.items():  # each comes after those that it needs
        if folder.done(job) is not None:
            continue
        if folder.failure(name) is not None:
            failed[name] = name
        elif cause := next((failed[other] for other in job.before if other in failed), None):
            failed[name] = cause
        else:
            missing.append(job)
    return missing, failed


class Scheduler:
    """Runs jobs on an executor."""

    def __init__(
        self,
        jobs: Mapping[str, Job],
        folder: StudyFolder,
        executor: Executor,
        find_needs: Callable[[Job], Needs],
        on_end: Callable[[Collection[str]], Mapping[str, Job]],
    ) -> None:
        """`on_end` is called with the names of jobs that are done or have failed, and returns the jobs from then on."""
        self._jobs, self._folder, self._executor = jobs, folder, executor
        self._find_needs, self._on_end = find_needs, on_end
        self._order = {name: number for number, name in enumerate(jobs)}
        self._running: set[str] = set()
        self._later: dict[str, float] = {}  # jobs whose folder was in use -> when to try again
        self._lost: Counter[str] = Counter()

    def run(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Run all missing jobs. Return False if `stop` ended it before; the caller then closes the executor."""
        missing = {job.name for job in find_missing(self._jobs, self._folder)}
        while missing:
            if stop():
                return False
            self._submit(missing)
            ended = {one.name for one in self._executor.wait(0.5) if self._end(one)}
            if ended:
                self._jobs = self._on_end(ended)
                missing = {job.name for job in find_missing(self._jobs, self._folder)}
        return True

    def _submit(self, missing: set[str]) -> None:
        now = time.monotonic()
        ready = [
            self._jobs[name]
            for name in missing - self._running
            if missing.isdisjoint(self._jobs[name].before) and self._later.get(name, 0.0) <= now
        ]
        for job in sorted(ready, key=self._rank):
            needs = self._find_needs(job)
            if not self._executor.has_room(needs):
                return
            self._folder.prepare(job)
            command = [*ANYVLA, "study", "job", str(self._folder.root.absolute()), job.name]
            command += ["--threads", str(needs.threads)]
            self._executor.submit(Task(job.name, command, needs, self._folder.of(job.name) / LOG))
            self._running.add(job.name)

    def _rank(self, job: Job) -> tuple[int, int, int]:
        """Return the place of a job in the queue. Cells with few episodes are played first: comparisons need all."""
        episodes = (job.recipe.evaluation.episodes or 0) if job.kind == "evaluate" else 0
        return _FIRST[job.kind], episodes, self._order[job.name]

    def _end(self, ended: Ended) -> bool:
        """Note that a process has ended. Return whether its job has too: it is done, or it failed."""
        self._running.discard(ended.name)
        job = self._jobs[ended.name]
        if ended.status == IN_USE:
            self._later[job.name] = time.monotonic() + _RETRY_S
            return False
        if ended.status in (None, STOPPED) and self._folder.done(job) is None:  # as by a cluster that needs the machine
            self._lost[job.name] += 1
            if self._lost[job.name] < _LOSSES:
                return False
        if self._folder.done(job) is None and (self._folder.failure(job.name) is None or ended.reason):
            reason = ended.reason or f"it ended with status {ended.status}"
            tail = self._folder.tail(job.name)
            text = f"{reason}. The end of its log:\n{tail}" if tail else reason
            self._folder.set_failure(job.name, Failure(text, ended.over_budget))
        return True
