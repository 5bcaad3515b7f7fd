"""Run the jobs of a study on a Ray cluster: an existing one, or one that Ray starts on this machine.

All machines must see the study's folder at the same path, and have anyvla. A job that is lost with its machine runs
again on another.
"""

from __future__ import annotations

import contextlib
from typing import Any

from anyvla.study.executors.base import Ended, Executor, Needs, Task
from anyvla.study.executors.process import run_here

try:
    import ray
    from ray.exceptions import RayError
except ImportError as error:
    raise ImportError(f'studies on Ray need {error.name}: pip install "anyvla[ray]"') from None

_AHEAD = 2  # jobs in Ray's queue for each that can run, so that no machine waits for this process


class RayExecutor(Executor):
    """Lets Ray place jobs by the threads, GPUs and memory that they need."""

    def __init__(self, address: str | None = None) -> None:
        """`address` of a cluster, or "auto"; None: start one here."""
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
        self._names: dict[Any, str] = {}  # by reference

    def has_room(self, needs: Needs) -> bool:
        total = ray.cluster_resources()
        at_once = max(1, int(total.get("CPU", 1)) // needs.threads)
        if needs.gpus:
            at_once = min(at_once, max(1, int(total.get("GPU", 0)) // needs.gpus))
        return len(self._names) < _AHEAD * at_once

    def submit(self, task: Task) -> None:
        needs = task.needs
        run = ray.remote(run_here).options(
            name=task.name,
            num_cpus=needs.threads,
            num_gpus=needs.gpus,
            memory=int(needs.memory_gb * 1e9),
            max_retries=0,  # the study decides
        )
        self._names[run.remote(task)] = task.name

    def wait(self, seconds: float) -> list[Ended]:
        if not self._names:
            return []
        ready, _ = ray.wait(list(self._names), num_returns=1, timeout=seconds)
        return [self._take(reference) for reference in ready]

    def close(self) -> None:
        for reference in self._names:
            with contextlib.suppress(RayError):
                ray.cancel(reference, force=False)
        with contextlib.suppress(RayError):
            ray.wait(list(self._names), num_returns=len(self._names), timeout=30) if self._names else None
        self._names.clear()
        ray.shutdown()

    def _take(self, reference: Any) -> Ended:
        name = self._names.pop(reference)
        try:
            ended: Ended = ray.get(reference)
            return ended
        except RayError as error:
            return Ended(name, None, f"Ray lost it: {str(error).splitlines()[0]}")
