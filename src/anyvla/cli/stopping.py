"""End a command on Ctrl-C or SIGTERM: one line, exit status 130, and no finished work lost.

`stoppable` wraps a whole command. Inside it, `graceful` wraps work that can stop at a safe point.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from anyvla.interrupted import STOPPED, Interrupted
from anyvla_sim.signals import STOPPING

_AT_ONCE_AFTER_S = 1.0  # `timeout` and others send a signal twice; a person does not press Ctrl-C twice that fast


@contextlib.contextmanager
def stoppable(command: str) -> Iterator[None]:
    """Raise KeyboardInterrupt on a signal.

    During an import, a signal ends the process at once, because libraries mistake the exception for a failed import.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if _importing(frame):
            _say(f"{command}: stopped")
            os._exit(STOPPED)
        raise KeyboardInterrupt

    with _handling(handle):
        yield


@contextlib.contextmanager
def stoppable_in_libraries() -> Iterator[None]:
    """Let a signal end the process inside of a library's long call, too.

    A handler in Python waits for the call to return: under load, 10 s and more while the system loads PyTorch's shared
    libraries. The process ends without a line and by the signal itself, so there must be nothing to clean up.
    """
    with _handling(signal.SIG_DFL):
        yield


_asked: threading.Event | None = None  # set by a signal; None outside of `graceful`


@contextlib.contextmanager
def graceful(*, quietly: bool = False) -> Iterator[Callable[[], bool]]:
    """Yield `stop`, a function that returns True after the first Ctrl-C or SIGTERM. Another Ctrl-C interrupts at once.

    The first one prints a line, unless `quietly`: then another process of the same command does.
    Raises Interrupted at the end if a signal came after the last call of `stop()`. Nested calls share one state.
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
            if not quietly:
                _say("stopping at the next safe point; press Ctrl-C again to stop at once")
        elif number == signal.SIGINT and time.monotonic() - first > _AT_ONCE_AFTER_S:
            raise KeyboardInterrupt

    try:
        with _handling(handle):
            yield asked.is_set
            if asked.is_set():
                raise Interrupted("stopped; this part had just finished: run the same command to resume")
    finally:
        _asked = None


def end_process(status: int) -> NoReturn:
    """End this process without the interpreter's cleanup: with PyTorch loaded, it takes 5 s and more on a busy machine.

    Use it for a command that leaves nothing to clean up, whose supervisor waits for it to end.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # its reader is gone
            stream.flush()
    os._exit(status)


@contextlib.contextmanager
def _handling(handle: Callable[[int, FrameType | None], None] | signal.Handlers) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = {number: signal.signal(number, handle) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(line: str) -> None:
    """Print to standard error, if it still has a reader: the signal may have ended that process too."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
