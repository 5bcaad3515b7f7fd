"""Decide whether the messages of a connection are read in the event loop or in another thread.

Waking another thread and waiting for it takes longer than reading a usual observation, most of all on a busy machine. A
message that is slow to read would stall all other connections, however. A connection that sent one is never read in
the event loop again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
_QUICK_S, _SLOW_S = 0.0005, 0.002  # of CPU time
_QUICK_BYTES = 1 << 20


class TimedReader:
    """Reads the messages of one connection, and measures how long it takes."""

    def __init__(self) -> None:
        self._seconds: float | None = None  # of the last message
        self._was_slow = False

    def is_quick(self, data: bytes | str) -> bool:
        """Return whether the next message may be read in the event loop."""
        quick_before = self._seconds is not None and self._seconds < _QUICK_S
        return quick_before and not self._was_slow and len(data) <= _QUICK_BYTES

    def read(self, read: Callable[..., T], *args: Any) -> T:
        """Return `read(*args)`."""
        begin = time.thread_time()
        try:
            return read(*args)
        finally:
            self._seconds = time.thread_time() - begin
            self._was_slow |= self._seconds > _SLOW_S
