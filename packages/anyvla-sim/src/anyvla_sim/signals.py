"""Signals that stop a command belong to its main process.

A terminal, a scheduler and `timeout` signal every process of a command at once. The main process finishes what it is
doing, for which it needs its workers: they ignore these signals and end when the main process ends them.
"""

from __future__ import annotations

import contextlib
import signal
from typing import Iterator

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Block the signals. Processes started inside inherit this until they call `ignore`, while they import too."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore() -> None:
    """Ignore the signals in this process and in what it starts. Call it in the main thread of a worker process."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
