"""Videos whose frames show their own number, with the timestamps, B-frames and edit lists of a test."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

_BITS = 12
SIZE = 96  # of a square frame; SVT-AV1 corrupts memory below 64


def numbered(number: int) -> np.ndarray:
    """Return a frame that shows a number as black and white bars."""
    bits = np.array([(number >> bit) & 1 for bit in range(_BITS)], np.uint8)
    return np.broadcast_to(np.repeat(bits * 255, SIZE // _BITS)[None, :, None], (SIZE, SIZE, 3)).copy()


def numbers_in(frames: np.ndarray) -> list[int]:
    """Return the numbers that frames show."""
    bars = np.asarray(frames, np.float64).mean((1, 3)).reshape(len(frames), _BITS, -1).mean(-1) > 127
    return (bars * (1 << np.arange(_BITS))).sum(1).tolist()


def priority():
    """Return how this thread is scheduled; None if the system does not report it."""
    return (os.sched_getscheduler(0), os.sched_getparam(0)) if hasattr(os, "sched_getscheduler") else None


@contextlib.contextmanager
def no_priority() -> Iterator[None]:
    """Restore the priority of this thread afterwards.

    Run by root, SVT-AV1 makes the thread that opens it real-time, and with it all threads that start later. They starve
    the threads of torch that started before, so that these wait for each other forever.
    """
    before = priority()
    try:
        yield
    finally:
        if before is not None:
            os.sched_setscheduler(0, *before)


def write_video(
    path: Path,
    times: Sequence[float],
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
) -> None:
    """Write a video whose frame k is shown from `times[k]` seconds on and shows k."""
    base = Fraction(1, 90000)
    path.parent.mkdir(parents=True, exist_ok=True)
    with no_priority(), av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=30, options=options or {"g": "20", "bf": "2"})
        stream.width = stream.height = SIZE
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", base
        for k, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered(k))
            frame.pts, frame.time_base = round(time / base), base
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
