"""How Ctrl-C and SIGTERM end a command: one line, nothing lost, and an exit status of its own.

`stoppable` is for a whole command. Inside it, `graceful` is for work that ends at a safe place of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from anyvla.interrupted import Interrupted
from anyvla_sim.signals import STOPPING

STOPPED = 130  # the exit status of a command that was asked to stop; shells use it for Ctrl-C
_AT_ONCE_AFTER_S = 1.0  # `timeout` and others send each signal twice; a person does not press Ctrl-C twice so fast


@contextlib.contextmanager
def stoppable(command: str) -> Iterator[None]:
    """Raise KeyboardInterrupt at a signal.

    While a module is imported, a signal ends the command at once: libraries would take the error for one of their own.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if _importing(frame):
            _say(f"{command}: stopped")
            os._exit(STOPPED)
        raise KeyboardInterrupt

    with _handling(handle):
        yield


_asked: threading.Event | None = None  # of the `graceful` that is entered, if one is


@contextlib.contextmanager
def graceful() -> Iterator[Callable[[], bool]]:
    """Give `stop()`. The first Ctrl-C or SIGTERM makes it True; another Ctrl-C interrupts at once.

    Raises Interrupted at the end if there was a signal and the work was over before it asked `stop()`. In a `graceful`
    inside another one, both are asked.
    """
    global _asked
    if _asked is not None:
        yield _asked.is_set
        return
    asked = _asked = threading.Event()
    first = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not asked.is_set():
            asked.set()
            first = time.monotonic()
            _say("stopping at the next safe place; Ctrl-C once more to stop at once")
        elif number == signal.SIGINT and time.monotonic() - first > _AT_ONCE_AFTER_S:
            raise KeyboardInterrupt

    try:
        with _handling(handle):
            yield asked.is_set
            if asked.is_set():
                raise Interrupted("stopped; this part was just finished, the same command goes on there")
    finally:
        _asked = None


@contextlib.contextmanager
def _handling(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only that one may have handlers
        yield
        return
    before = {number: signal.signal(number, handle) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(line: str) -> None:
    """Print to standard error. Whoever read it may be gone, of the same signal."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
