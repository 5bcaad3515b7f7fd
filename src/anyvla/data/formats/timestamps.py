"""Converts recorded times of steps to seconds after the first step, or says why they are unusable."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float64, Num

Times = Literal["recorded", "steady"]  # an option of readers; steady: step t is at t / control_hz

_UNITS = {1e3: "milliseconds", 1e6: "microseconds", 1e9: "nanoseconds"}
_FINE = 0.1  # steps; times that are rounded more coarsely do not tell steps apart
_EPOCH = 1e8  # seconds; larger times are counted from 1970


def as_relative_seconds(times: Num[np.ndarray, "T"], hz: float, where: str, option: str) -> Float64[np.ndarray, "T"]:
    """Return recorded times as seconds after the first one.

    `hz` is the declared rate. `option` is the setting that ignores the recorded times, as in "format: {name: folder,
    times: steady}". Raises ValueError for times that are not numbers, not finite, not increasing, in another unit, or
    too coarse.
    """
    way_out = f"correct them, or read the steps at {hz:g} per second: {option}"
    if times.dtype.kind not in "fiu":
        raise ValueError(f"{where}: the timestamps are {times.dtype}, expected seconds as float64; {way_out}")
    bad = np.flatnonzero(~np.isfinite(times))
    if len(bad):
        raise ValueError(f"{where}: the timestamp of step {bad[0]} is {times[bad[0]]}; {way_out}")
    largest = float(np.abs(times).max(initial=0))
    coarse = _resolution(times, largest)
    bits = 16 if times.dtype.itemsize == 2 else 32
    if len(times) > 1 and coarse > _FINE / hz:
        raise ValueError(
            f"{where}: the timestamps were kept as float{bits}, which near {largest:.4g} s has steps of {coarse:g} s; "
            f"write them as float64, or count them from the start of the episode; else {way_out}"
        )
    if len(times) > 1 and (times == times[0]).all():
        same = f"all {len(times)} are {times[0]:.16g}"
        raise ValueError(f"{where}: the timestamp of step 1 is not after the one before it, {same}; {way_out}")
    seconds = (times - times[0]).astype(np.float64)  # exact for integers
    if times.dtype.kind == "u":
        seconds = np.concatenate([[0.0], np.cumsum(np.diff(times.astype(np.int64)))])
    late = np.flatnonzero(~(np.diff(seconds) > 0))
    if len(late):
        at = int(late[0]) + 1
        raise ValueError(
            f"{where}: the timestamp of step {at} is not after the one before it ({times[at]:.16g} after "
            f"{times[at - 1]:.16g}); {way_out}"
        )
    gap = float(np.median(np.diff(seconds))) * hz if len(seconds) > 1 else 1.0
    for factor, unit in _UNITS.items():
        if 0.5 < gap / factor < 2:
            raise ValueError(f"{where}: the timestamps are {unit}, expected seconds; {way_out}")
    return seconds


def _resolution(times: Num[np.ndarray, "T"], largest: float) -> float:
    """Return the distance between neighboring numbers that the times could have, in seconds."""
    single = float(np.spacing(np.float32(largest)))
    if times.dtype.kind == "f" and times.dtype.itemsize <= 4:
        return single if times.dtype.itemsize == 4 else float(np.spacing(np.float16(largest)))
    rounded = largest > _EPOCH and times.dtype.kind == "f" and bool((times == times.astype(np.float32)).all())
    return single if rounded else 0.0
