"""Run a job of a study as a process on the machine of this one. Executors of clusters call it there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

import psutil

from anyvla.study.executors.base import Ended, Task

_LOOK_S = 1.0  # between two measurements of memory
_END_S = 20.0  # for a process to end after it was asked to


class JobProcess:
    """A job that runs as a process of this machine, within its limits. It ends when this process does."""

    def __init__(self, task: Task) -> None:
        self.task, self.memory_gb = task, 0.0
        self._ended_for, self._begin, self._looked = "", time.monotonic(), 0.0
        threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        with task.log.open("ab") as output:
            self.process = subprocess.Popen(
                [*task.command, "--end-with-parent"],
                stdin=subprocess.PIPE,  # ends with this process, and the job with it
                stdout=output,
                stderr=output,
                env=os.environ | dict.fromkeys(threads, str(task.needs.threads)),
                start_new_session=True,  # Ctrl-C reaches it through `ask`, once
            )

    def poll(self) -> Ended | None:
        """Return how the job has ended; None while it runs. A job beyond its limits is ended."""
        if self.process.poll() is None:
            self._enforce()
        if self.process.poll() is None:
            return None
        self.kill()  # processes that it may have left behind
        status = self.process.returncode
        reason = self._ended_for or (_explain_signal(-status) if status < 0 else "")
        return Ended(self.task.name, status, reason, over_budget=bool(self._ended_for))

    def ask(self) -> None:
        """Ask the job to end at a safe point."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGINT)

    def end(self, by: float | None = None) -> None:
        """Wait for a job that was asked to end, until `by` on the monotonic clock, then kill it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, (time.monotonic() + _END_S if by is None else by) - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """Kill the job and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def _enforce(self) -> None:
        now, needs = time.monotonic(), self.task.needs
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        self.memory_gb = max(self.memory_gb, _memory_of(self.process.pid) / 1e9)
        if (now - self._begin) / 60 > needs.minutes:
            self._ended_for = f"it took longer than the {needs.minutes:g} minutes of the study's budget"
        elif self.memory_gb > needs.limit_gb:
            self._ended_for = f"it used {self.memory_gb:.1f} GB, and the study's budget is {needs.limit_gb:.1f} GB"
        if self._ended_for:
            self.kill()


def run_here(task: Task) -> Ended:
    """Run a job to its end. Whoever interrupts this call ends the job."""
    job = JobProcess(task)
    try:
        while (ended := job.poll()) is None:
            time.sleep(0.1)
        return ended
    except BaseException:
        job.ask()
        job.end()
        raise


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
