"""A pool of worker processes that leave signals to their parent and always end with it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from types import TracebackType
from typing import Any, TypeVar

from anyvla_sim import signals

T = TypeVar("T")
R = TypeVar("R")
logger = logging.getLogger(__name__)

SILENCE_S = 300.0  # after which a warning says that no worker finishes anything


class WorkerDied(RuntimeError):
    """A worker process ended before its work was done."""

    def __init__(self, message: str, processes: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.processes = tuple(processes)  # the ids of the processes that ended by themselves


class WorkerPool(ProcessPoolExecutor):
    """A context manager: leaving it drops tasks that have not begun, and waits for running tasks.

    A KeyboardInterrupt kills the workers instead. Processes are spawned: a process with threads or a GPU must not fork.
    Raises WorkerDied, with `remedy`, if a worker dies; OSError, with the way out, if the machine has no semaphores.
    """

    def __init__(
        self,
        processes: int,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        remedy: str,
    ) -> None:
        self._context, self._remedy, self._last = _Context(), remedy, time.monotonic()
        try:
            super().__init__(processes, self._context, initializer, initargs)
        except OSError as error:
            raise OSError(
                error.errno,
                f"worker processes need a few kilobytes of shared memory, and /dev/shm gives none ({error.strerror}): "
                "give the container some, as in docker run --shm-size 64m",
            ) from error

    def finished(self, futures: Collection[Future[Any]], timeout_s: float = 1.0) -> set[Future[Any]]:
        """Return the futures that are done. Wait for the first at most `timeout_s`; warn if none ends for long."""
        done = wait(futures, timeout_s, FIRST_COMPLETED).done
        if not done and any(process.exitcode is not None for process in self._context.started):
            self.kill()
            raise BrokenProcessPool  # the executor misses the end of a process that it started beside others
        now = time.monotonic()
        if done:
            self._last = now
        elif now - self._last > SILENCE_S:
            self._last = now
            logger.warning(
                "no worker has finished anything for %g s: a disk or a simulator may hang. Ctrl-C twice ends the "
                "command, what is finished is kept",
                SILENCE_S,
            )
        return done

    def run(
        self, work: Callable[[T], R], todo: deque[T], ahead: int, stop: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[T, R]]:
        """Yield each task with `work(task)` in the order in which they finish, with at most `ahead` tasks submitted.

        Tasks are taken from the left of `todo`, which may grow meanwhile. When `stop()` returns true, running tasks are
        still yielded, and all others stay in `todo`.
        """
        running: dict[Future[R], T] = {}
        while running or todo:
            if stop():
                todo.extend(task for future, task in running.items() if future.cancel())
                running = {future: task for future, task in running.items() if not future.cancelled()}
                if not running:
                    return
            else:
                while todo and len(running) < ahead:
                    task = todo.popleft()
                    running[self.submit(work, task)] = task
            for future in self.finished(running):
                yield running.pop(future), future.result()

    def kill(self) -> None:
        """Kill the workers. Whoever waits for a result gets BrokenProcessPool."""
        for process in self._context.started:
            if process.pid is not None:
                process.terminate()
        # The thread that reads results may have half of one, from a worker killed while it wrote. It waits for the rest
        # as long as anybody could write it, and this process holds the pipe open for workers to come.
        queue: Any = getattr(self, "_result_queue", None)  # None: shut down before
        if queue is not None:
            queue._writer.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, KeyboardInterrupt):
                self.kill()
            self.shutdown(cancel_futures=True)
        except KeyboardInterrupt:
            self.kill()
            raise
        if isinstance(error, BrokenProcessPool):
            dead = [p for p in self._context.started if not p.ended and p.exitcode]  # `terminate` did not kill them
            how = f" (exit status {dead[0].exitcode})" if dead else ""
            raise WorkerDied(
                f"a worker process died{how}. -9 is often a lack of memory: {self._remedy}",
                [p.pid for p in dead if p.pid is not None],
            ) from error


class _Worker(SpawnProcess):
    ended = False  # by `terminate`

    def start(self) -> None:
        resource_tracker.ensure_running()  # a first process would start it, which unblocks the signals again
        with signals.blocked():
            super().start()

    def run(self) -> None:
        signals.ignore()
        threading.Thread(target=_end_with_parent, daemon=True).start()
        super().run()

    def terminate(self) -> None:
        """Kill: a worker ignores SIGTERM, and a pool that lost one worker terminates and then joins the others."""
        self.ended = not connection.wait([self.sentinel], 0)  # `is_alive` lags behind
        self.kill()


class _Context(SpawnContext):
    def __init__(self) -> None:
        super().__init__()
        self.started: list[_Worker] = []

    def Process(self, *arguments: Any, **keys: Any) -> _Worker:  # type: ignore[override]
        self.started.append(_Worker(*arguments, **keys))
        return self.started[-1]


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
