"""Settings of processes that simulate for demonstrations and videos."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker


class EnvironmentFailed(RuntimeError):
    """A simulator raised, or its process died, more often than can be borne."""


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
