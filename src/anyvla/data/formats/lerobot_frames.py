"""The frames of an episode of LeRobot, in its two ways: in a video, or as still images in the rows themselves."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from anyvla.data.episode import Frames
from anyvla.data.formats import video


class VideoFrames(Frames):
    """Frames `start` .. of a video; `where` says which episode they are of, in errors."""

    def __init__(self, path: Path, fps: float, start: int, shape: tuple[int, int, int, int], where: str) -> None:
        self.shape = shape
        self._path, self._fps, self._start, self._where = path, fps, start, where

    def read(self, steps: list[int]) -> UInt8[np.ndarray, "K H W 3"]:
        """See `Frames`."""
        try:
            frames = video.decode(self._path, self._fps, [self._start + i for i in steps])
        except ValueError as error:
            raise ValueError(f"{self._where}: {error}") from None
        _check_size(frames, self.shape, f"{self._where}: {self._path}")
        return frames


class StillFrames(Frames):
    """Images of an `image` column: PNG or JPEG, each in its row or in a file that the row names.

    `rows(first, count)` gives the column's values of these steps, as `{"bytes": ..., "path": ...}`.
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
        frames = np.stack([decoded[i] for i in steps])
        _check_size(frames, self.shape, self._where)
        return frames

    def _decode(self, value: dict[str, Any] | None, step: int) -> UInt8[np.ndarray, "H W 3"]:
        from PIL import Image, UnidentifiedImageError

        value = value or {}
        try:
            source = io.BytesIO(value["bytes"]) if value.get("bytes") else self._root / (value.get("path") or "")
            with Image.open(source) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise ValueError(
                f"{self._where}: the image of step {step} is missing or damaged ({error}); copy the dataset again"
            ) from None


def _check_size(frames: np.ndarray, shape: tuple[int, ...], where: str) -> None:
    if frames.shape[1:] != shape[1:]:
        raise ValueError(
            f"{where}: the frames are {frames.shape[1]}x{frames.shape[2]}, info.json says {shape[1]}x{shape[2]}: the "
            "dataset contradicts itself; correct the shape there"
        )
