"""Names the parts of a training step, for a profile. Without one, a span costs a microsecond and does nothing.

Spans may be nested: the time of one does not contain the time of those inside it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterator

import torch

BACKWARD = "backward"


class SpanClock:
    """Adds up the seconds of each span in the thread that made the clock.

    It waits for the device at both ends of a span, whose kernels run later.
    """

    def __init__(self, device: torch.device, whole: Collection[str] = (BACKWARD,)) -> None:
        """`whole`: names of spans that keep the time of those inside them."""
        self._device, self._whole, self._thread = device, whole, threading.get_ident()
        self._running: list[tuple[str, float]] = []  # names, and seconds of the spans inside
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Count the time within the context under a name."""
        # The backward pass calls modules again to recompute activations, on a GPU in another thread.
        if threading.get_ident() != self._thread or any(outer in self._whole for outer, _ in self._running):
            yield
            return
        self._wait()
        self._running.append((name, 0.0))
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._wait()
            spent = time.perf_counter() - begin
            _, inside = self._running.pop()
            self.seconds[name] += spent - inside
            if self._running:
                outer, others = self._running[-1]
                self._running[-1] = (outer, others + spent)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


_clock: SpanClock | None = None
_tracing = False
_profiler: torch.profiler.profile | None = None


@contextlib.contextmanager
def span(name: str) -> Iterator[None]:
    """Name the part of a step within the context: for `measuring`, and in the trace of `tracing`."""
    if _clock is not None:
        with _clock.measure(name):
            yield
    elif _tracing:
        with torch.profiler.record_function(name):
            yield
    else:
        yield


@contextlib.contextmanager
def measuring(clock: SpanClock) -> Iterator[None]:
    """Measure spans by a clock within the context."""
    global _clock
    _clock = clock
    try:
        yield
    finally:
        _clock = None


@contextlib.contextmanager
def tracing(profiler: torch.profiler.profile) -> Iterator[None]:
    """Name spans in the trace of a running profiler within the context."""
    global _tracing, _profiler
    _tracing, _profiler = True, profiler
    try:
        yield
    finally:
        _tracing, _profiler = False, None


@contextlib.contextmanager
def not_traced() -> Iterator[None]:
    """Record no operators within the context: those of a validation would fill gigabytes of memory."""
    if _profiler is None:
        yield
        return
    _profiler.toggle_collection_dynamic(False, _profiler.activities)
    try:
        yield
    finally:
        _profiler.toggle_collection_dynamic(True, _profiler.activities)
