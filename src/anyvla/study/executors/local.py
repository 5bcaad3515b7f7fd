"""Run the jobs of a study on this machine, as many at once as processes and memory allow."""

from __future__ import annotations

import time

import psutil

from anyvla.study.executors.base import Ended, Executor, Needs, Task
from anyvla.study.executors.process import JobProcess

_SPARE_GB = 0.5  # of memory that stay free
_END_S = 20.0  # for all jobs to end after they were asked to


class LocalExecutor(Executor):
    """Runs up to `processes` jobs at once. If this process dies, its jobs end too."""

    def __init__(self, processes: int) -> None:
        self._processes, self._running = processes, dict[str, JobProcess]()

    def has_room(self, needs: Needs) -> bool:
        if len(self._running) >= self._processes:
            return False
        if not self._running:
            return True  # whatever it needs, waiting would not help
        growing = sum(max(0.0, job.task.needs.memory_gb - job.memory_gb) for job in self._running.values())
        return psutil.virtual_memory().available / 1e9 - growing - _SPARE_GB >= needs.memory_gb

    def submit(self, task: Task) -> None:
        self._running[task.name] = JobProcess(task)

    def wait(self, seconds: float) -> list[Ended]:
        end = time.monotonic() + seconds
        while True:
            ended = [found for job in self._running.values() if (found := job.poll()) is not None]
            for one in ended:
                del self._running[one.name]
            if ended or time.monotonic() >= end or not self._running:
                return ended
            time.sleep(0.05)

    def close(self) -> None:
        for job in self._running.values():
            job.ask()
        end = time.monotonic() + _END_S
        for job in self._running.values():
            job.end(end)
        self._running.clear()
