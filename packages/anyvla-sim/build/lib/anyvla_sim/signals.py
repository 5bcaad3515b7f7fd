"""Keep the signals that stop a command away from its worker processes.

A terminal, a scheduler and `timeout` signal every process of a command at once. The main process needs its workers to
finish its current work, so they ignore these signals and end when the main process ends them.
"""

from __future__ import annotations

import contextlib
import signal
from typing import Iterator

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Block the signals. Processes started inside inherit the block until they call `ignore`."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore() -> None:
    """Ignore the signals in this process and its children. Call it in the main thread of a worker process."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
