"""Reads the frames of a LeRobot episode, from a video or from still images in its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from anyvla.data.episode import Frames
from anyvla.data.formats import video
from anyvla.data.formats.images import decode_image
from anyvla.files.inside import resolve_inside

_DRIFT = 2e-3  # different rates that differ by less come from two clocks
_RATE = 5e-4  # rates that differ by less are equal: 29.97 is 30000/1001, but not 30


@dataclass(frozen=True)
class VideoSpan:
    """The place of an episode in a video file."""

    path: Path
    begin: float = 0.0  # seconds
    until: float = np.inf  # begin of the next episode in the file; inf: this is the last one
    first: float = 0.0  # begin of the first episode in the file

    def after_first_frame(self, step: float) -> VideoSpan:
        """Return the span in seconds after the first frame of the file, whatever the timestamp of that frame.

        Times of an index are counted so already, unless its first episode begins at the timestamp of the first frame.
        `step`: seconds between two steps of the data.
        """
        if self.first < step / 2:
            return self
        late = video.read_info(self.path).first_time
        if abs(self.first - late) >= step / 2:
            return self
        return VideoSpan(self.path, self.begin - late, self.until - late)


class VideoFrames(Frames):
    """The frames of an episode in a video. `where` names the episode in errors.

    `times` are the seconds of each step after the begin of LeRobot's episode, at its constant rate. `recorded` are the
    recorded ones, which are used only if the video lacks a frame for each step. `declared`: the rate and the codec in
    info.json. `whole`: the video should end with this episode.
    """

    def __init__(
        self,
        span: VideoSpan,
        times: Float64[np.ndarray, "T"],
        recorded: Float64[np.ndarray, "T"],
        shape: tuple[int, int, int, int],
        declared: tuple[float, str | None],
        whole: bool,
        where: str,
    ) -> None:
        self.shape = shape
        self._span, self._times, self._recorded = span, times, recorded
        (self._fps, self._codec), self._whole, self._where = declared, whole, where

    def read(self, steps: list[int]) -> UInt8[np.ndarray, "K H W 3"]:
        """See `Frames`."""
        step = 1 / self._fps
        try:
            span = self._span.after_first_frame(step)
            times = np.minimum(span.begin + self._seconds()[steps], self._end())
            frames = video.decode_at(span.path, times, step, span.until)
        except ValueError as error:
            raise ValueError(f"{self._where}: {error}") from None
        _check_size(frames, self.shape, f"{self._where}: {span.path}")
        return frames

    def faults(self) -> Iterator[tuple[bool, str]]:
        """See `Frames`. Faults of the whole file are reported for its last episode."""
        path, step = self._span.path, 1 / self._fps
        facts = video.read_info(path)
        needed = min(self._span.after_first_frame(step).begin + self._seconds()[-1], self._end())
        if needed > facts.seconds - step / 20:
            end = f"{facts.seconds:.3f} s ({facts.frames} frames)"
            yield True, f"{path} ends at {end}, the last step is at {needed:.3f} s"
        if not self._whole:
            return
        if facts.seconds - needed > 1.5 * max(step, facts.seconds / facts.frames):
            yield False, f"{path} lasts {facts.seconds:.3f} s, the index says {needed + step:.3f} s"
        if not _same_rate(facts.rate, self._fps):
            rate = "an uneven rate" if facts.rate is None else f"{facts.rate:.5g} frames per second"
            yield False, f"{path} has {rate}, info.json says {self._fps:.5g}: frames are found by their time"
        if (facts.height, facts.width) != self.shape[1:3]:
            size = f"{self.shape[1]}x{self.shape[2]}"
            yield True, f"{path} has frames of {facts.height}x{facts.width}, info.json says {size}"
        if self._codec not in (None, facts.codec):
            yield False, f"{path} has codec {facts.codec}, info.json says {self._codec}"

    def _end(self) -> float:
        """Return a time within the last frame of a video whose clock is slightly fast, infinity for any other video.

        Data at 29.97 steps per second with one frame of a 30 Hz video for each step ends up to 0.1 % after the video.
        """
        facts = video.read_info(self._span.path)
        fast = 0 if facts.rate is None else facts.rate / self._fps - 1
        return facts.seconds - 0.5 / self._fps if _RATE <= fast < _DRIFT else np.inf

    def _seconds(self) -> Float64[np.ndarray, "T"]:
        """Return the time of each step in the video, counted from the begin of LeRobot's episode."""
        if self._recorded is self._times or _same_rate(video.read_info(self._span.path).rate, self._fps):
            return self._times
        return self._recorded


def _same_rate(rate: float | None, fps: float) -> bool:
    return rate is not None and abs(rate / fps - 1) < _RATE


class StillFrames(Frames):
    """Images of an `image` column: PNG or JPEG, each in its row or in a file that the row names.

    `rows(first, count)` returns the values of the column for these steps, as `{"bytes": ..., "path": ...}`.
    """

    def __init__(
        self,
        root: Path,
        rows: Callable[[int, int], list[dict[str, Any] | None]],
        shape: tuple[int, int, int, int],
        where: str,
    ) -> None:
        self.shape = shape
        self._root, self._rows, self._where = root, rows, where

    def read(self, steps: list[int]) -> UInt8[np.ndarray, "K H W 3"]:
        """See `Frames`."""
        first = min(steps)
        rows = self._rows(first, max(steps) - first + 1)
        decoded = {i: self._decode(rows[i - first], i) for i in set(steps)}
        for i, image in decoded.items():
            _check_size(image[None], self.shape, f"{self._where}, step {i}")
        return np.stack([decoded[i] for i in steps])

    def _decode(self, value: dict[str, Any] | None, step: int) -> UInt8[np.ndarray, "H W 3"]:
        where = f"{self._where}, the image of step {step}"
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, None)
        if isinstance(data, bytes) and data:
            return decode_image(data, where)
        if not isinstance(path, str):
            raise ValueError(f"{where}: expected bytes or a path, found neither; copy the dataset again")
        return decode_image(resolve_inside(self._root, path), where)


def _check_size(frames: np.ndarray, shape: tuple[int, ...], where: str) -> None:
    if frames.shape[1:] != shape[1:]:
        raise ValueError(
            f"{where}: the frames are {frames.shape[1]}x{frames.shape[2]}, info.json says {shape[1]}x{shape[2]}: the "
            "dataset contradicts itself; correct the shape there"
        )
