"""Run the jobs of a study on a SLURM cluster, through submitit.

All machines must see the study's folder at the same path, and have anyvla. If this process is killed, jobs in the queue
and running ones go on; the next `anyvla study run` finds their results.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anyvla.study.executors.base import Ended, Executor, Needs, Task
from anyvla.study.executors.process import run_here

try:
    import submitit
except ImportError as error:
    raise ImportError(f'studies on SLURM need {error.name}: pip install "anyvla[slurm]"') from None

_SPARE_MINUTES = 10  # of SLURM's limit beyond the study's, which ends jobs with a reason
_LOOK_S = 0.5


class SlurmExecutor(Executor):
    """Submits each job to SLURM with the time, memory, threads and GPUs that it may use."""

    def __init__(
        self, logs: Path, at_once: int, options: Mapping[str, Any] | None = None, cluster: str = "slurm"
    ) -> None:
        """`at_once`: jobs in SLURM's queue. `options`: of submitit, such as slurm_partition.

        `cluster`: "local" runs jobs as processes of this machine.
        """
        self._executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
        self._options, self._at_once = dict(options or {}), at_once
        self._jobs: dict[str, submitit.Job[Ended]] = {}

    def has_room(self, needs: Needs) -> bool:
        return len(self._jobs) < self._at_once

    def submit(self, task: Task) -> None:
        needs = task.needs
        self._executor.update_parameters(
            name=task.name,
            timeout_min=int(needs.minutes) + _SPARE_MINUTES,
            mem_gb=needs.limit_gb,
            cpus_per_task=needs.threads,
            gpus_per_node=needs.gpus,
            **self._options,
        )
        self._jobs[task.name] = self._executor.submit(run_here, task)

    def wait(self, seconds: float) -> list[Ended]:
        end = time.monotonic() + seconds
        while True:
            ended = [self._take(name) for name, job in list(self._jobs.items()) if job.done()]
            if ended or time.monotonic() >= end or not self._jobs:
                return ended
            time.sleep(_LOOK_S)

    def close(self) -> None:
        for job in self._jobs.values():
            with contextlib.suppress(Exception):  # it may have ended meanwhile
                job.cancel()
        self._jobs.clear()

    def _take(self, name: str) -> Ended:
        job = self._jobs.pop(name)
        try:
            return job.result()
        except submitit.core.utils.UncompletedJobError:
            return Ended(name, None, f"SLURM's job {job.job_id} ended as {job.state}")
        except submitit.core.utils.FailedJobError as error:
            return Ended(name, None, f"SLURM's job {job.job_id} failed: {str(error).splitlines()[-1]}")
