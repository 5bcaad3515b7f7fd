"""Finds the frame for a time t: the one that is shown at t."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64

_HALF = 0.499  # less than half, so that rounding does not move a time midway between two frames
_BORDER = 0.25  # a frame at most this share before the next episode is that episode's first frame
_OVER = 0.05  # a time at most this share before the end of a video was rounded down from after it


def find_shown_frames(
    starts: Float64[np.ndarray, "F"], times: Float64[np.ndarray, "K"], tolerance: float | Float64[np.ndarray, "F"]
) -> Int64[np.ndarray, "K"]:
    """Return the index of the frame shown at each time: the last one that has started; -1 before the first.

    A frame that starts at most `tolerance` seconds later counts as started.
    """
    return np.searchsorted(starts - tolerance, times, side="right") - 1


def find_video_frames(
    starts: Float64[np.ndarray, "F"],
    end: float,
    times: Float64[np.ndarray, "K"],
    step: float,
    until: float = np.inf,
) -> Int64[np.ndarray, "K"]:
    """Return the index of the frame of a video shown at each time; -1 where the video shows none.

    `starts` increases; the last frame is shown until `end`. `step` is the time between two steps of the data. The
    tolerance is half a video frame: clocks drift (30 and 29.97) and float32 rounds times. It is never more than half a
    step, so that no step sees the frame of a later one. Frames from `until` on belong to the next episode of the file:
    a time before it gets none of them.
    """
    usual = (end - starts[0]) / len(starts)
    first = max(0, int(np.searchsorted(starts, times.min())) - 2)
    near = starts[first : int(np.searchsorted(starts, times.max())) + 2]  # a file may have a million frames
    tolerance = np.empty(len(near))
    tolerance[0] = near[0] - starts[first - 1] if first else usual
    np.subtract(near[1:], near[:-1], out=tolerance[1:])
    found = first + find_shown_frames(near, times, _HALF * np.minimum(tolerance, step, out=tolerance))
    if until < end:
        own = int(np.searchsorted(starts, until - _BORDER * min(usual, step))) - 1
        found = np.where(times < until, np.minimum(found, max(own, 0)), found)
    found[times > end - _OVER * min(end - starts[-1], step)] = -1
    return found
