"""Environments in processes of their own: several simulate and render while the policy thinks.

A pool has `processes * slots` slots, one environment each. Commands return at once; what a slot answers comes out of
`ready`. Worker processes never import torch, leave Ctrl-C to their parent, and end when it ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import NoReturn

import numpy as np
from jaxtyping import Float32

from anyvla.evaluation.environments.base import Benchmark
from anyvla.types import Observation


class EnvironmentFailed(RuntimeError):
    """An environment raised, or its process died."""


@dataclass(frozen=True)
class Reply:
    """What a slot shows after a command."""

    slot: int
    observation: Observation | None  # None once a goal holds: the episode is over, and rendering costs
    goals: Mapping[str, bool]  # task -> its goal holds now
    steps: int  # actions since the reset


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """Processes started inside do not see Ctrl-C before `prepare_worker` says what it means to them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # starting it, as a first process would, undoes the next line
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by what is started
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def prepare_worker() -> None:
    """Settings of a process that simulates: one thread each, Ctrl-C is the parent's business, its end ours as well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["LP_NUM_THREADS"] = "1"  # Mesa's software renderer would take all cores in each process
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class EnvironmentPool:
    """Use as a context manager."""

    def __init__(self, benchmark: Benchmark, processes: int, slots: int) -> None:
        """Starts the processes; each plays in its own copy of `benchmark`."""
        self.size = processes * slots
        self._slots = slots
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(processes):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(there, benchmark), name=f"environment-{number}", daemon=True)
            self._pipes.append(here)
            self._processes.append(process)
            with starting_workers():
                process.start()
            there.close()

    def reset(self, slot: int, task: str, seed: int) -> None:
        """Start an episode in a slot."""
        self._send(slot, ("reset", slot, task, seed))

    def execute(self, slot: int, actions: Float32[np.ndarray, "n A"]) -> None:
        """Act up to n times, fewer if a goal holds before."""
        self._send(slot, ("execute", slot, actions))

    def _send(self, slot: int, command: tuple[object, ...]) -> None:
        number = slot // self._slots
        try:
            self._pipes[number].send(command)
        except OSError:
            self._receive(number)  # what it said last
            self._dead(number)

    def ready(self, timeout: float) -> list[Reply]:
        """The answers that are there, after waiting up to `timeout` seconds for one. Raises EnvironmentFailed."""
        replies: list[Reply] = []
        for pipe in wait(self._pipes, timeout):
            number = self._pipes.index(pipe)  # type: ignore[arg-type]
            replies += self._receive(number)
        return replies

    def _receive(self, number: int) -> list[Reply]:
        replies: list[Reply] = []
        while True:
            try:
                if not self._pipes[number].poll():
                    return replies
                answer = self._pipes[number].recv()
            except (EOFError, OSError):
                self._dead(number)
            if isinstance(answer, str):
                raise EnvironmentFailed(answer)
            replies.append(answer)

    def _dead(self, number: int) -> NoReturn:
        self._processes[number].join(1)
        raise EnvironmentFailed(
            f"the simulator process {number} died (exit status {self._processes[number].exitcode}); -9 is often a lack "
            "of memory: try fewer --evaluation.processes or --evaluation.slots. What was reported is kept"
        )

    def __enter__(self) -> EnvironmentPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()  # the worker reads the end of its commands and stops
        for process in self._processes:
            process.join(2)
            if process.is_alive():  # hangs in its simulator
                process.kill()
                process.join()


def _work(pipe: Connection, benchmark: Benchmark) -> None:
    prepare_worker()
    try:
        environments, steps = {}, {}
        while True:
            verb, slot, *rest = pipe.recv()
            if slot not in environments:
                environments[slot] = benchmark.make()
            environment = environments[slot]
            goals: Mapping[str, bool] = {}
            if verb == "reset":
                environment.reset(*rest)
                steps[slot] = 0
            else:
                for action in rest[0]:
                    goals = environment.step(action)
                    steps[slot] += 1
                    if any(goals.values()):
                        break
            over = any(goals.values())
            pipe.send(Reply(slot, None if over else environment.observe(), dict(goals), steps[slot]))
    except (EOFError, ConnectionError):  # the parent is done, or gone
        return
    except Exception as error:  # told to the parent, who raises it
        message = str(error) if isinstance(error, (ImportError, RuntimeError, ValueError)) else traceback.format_exc()
        pipe.send(message)
