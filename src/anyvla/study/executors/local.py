"""Run the jobs of a study on this machine, as many at once as processes and memory allow."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from anyvla.study.executors.base import Ended, Executor, Needs

_SPARE_GB = 0.5  # of memory that stay free
_LOOK_S = 1.0  # between two measurements of memory
_END_S = 20.0  # for a process to end after it was asked to


@dataclass
class _Running:
    process: subprocess.Popen[bytes]
    needs: Needs
    begin: float
    memory_gb: float = 0.0
    ended: str = ""  # why this executor ended it


class LocalExecutor(Executor):
    """Runs up to `processes` jobs at once. If this process dies, its jobs end too."""

    def __init__(self, processes: int) -> None:
        self._processes, self._running, self._looked = processes, dict[str, _Running](), 0.0

    def has_room(self, needs: Needs) -> bool:
        if len(self._running) >= self._processes:
            return False
        if not self._running:
            return True  # whatever it needs, waiting would not help
        growing = sum(max(0.0, job.needs.memory_gb - job.memory_gb) for job in self._running.values())
        return psutil.virtual_memory().available / 1e9 - growing - _SPARE_GB >= needs.memory_gb

    def submit(self, name: str, command: Sequence[str], needs: Needs, log: Path) -> None:
        threads = {key: str(needs.threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*command, "--end-with-parent"],
                stdin=subprocess.PIPE,  # which ends when this process dies, and the job with it
                stdout=output,
                stderr=output,
                env=os.environ | threads,
                start_new_session=True,  # Ctrl-C reaches it through `close`, once
            )
        self._running[name] = _Running(process, needs, time.monotonic())

    def wait(self, seconds: float) -> list[Ended]:
        end = time.monotonic() + seconds
        while True:
            ended = [self._take(name) for name, job in list(self._running.items()) if job.process.poll() is not None]
            self._enforce()
            if ended or time.monotonic() >= end or not self._running:
                return ended
            time.sleep(0.05)

    def close(self) -> None:
        for job in self._running.values():
            self._ask(job)
        end = time.monotonic() + _END_S
        for job in self._running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.process.wait(max(0.0, end - time.monotonic()))
            self._kill(job)
        self._running.clear()

    def _take(self, name: str) -> Ended:
        job = self._running.pop(name)
        self._kill(job)  # what its process may have left behind
        status = job.process.returncode
        reason = job.ended or (_explain_signal(-status) if status < 0 else "")
        return Ended(name, status, reason, over_budget=bool(job.ended))

    def _enforce(self) -> None:
        """End jobs that use more than they may."""
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        for job in self._running.values():
            job.memory_gb = max(job.memory_gb, _memory_of(job.process.pid) / 1e9)
            minutes = (now - job.begin) / 60
            if minutes > job.needs.minutes:
                job.ended = f"it took longer than the {job.needs.minutes:g} minutes of the study's budget"
            elif job.memory_gb > job.needs.limit_gb:
                job.ended = f"it used {job.memory_gb:.1f} GB, and the study's budget is {job.needs.limit_gb:.1f} GB"
            if job.ended:
                self._kill(job)

    def _ask(self, job: _Running) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.process.pid, signal.SIGINT)

    def _kill(self, job: _Running) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.process.pid, signal.SIGKILL)
        job.process.wait()
        if job.process.stdin is not None:
            job.process.stdin.close()


def _memory_of(pid: int) -> int:
    """Return the bytes that a process and its children use; shared memory counts once on Linux."""
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                full = one.memory_full_info()
                total += getattr(full, "pss", full.uss)
    return total


def _explain_signal(number: int) -> str:
    if number == signal.SIGKILL:
        return "its process was killed, perhaps because the machine ran out of memory"
    return f"its process was ended by the signal {signal.Signals(number).name}"
