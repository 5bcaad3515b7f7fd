"""Open HDF5 files and frames in them, with errors that say which file and which key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from anyvla.data.episode import Frames
from anyvla.data.formats.open_files import OpenFiles

SUFFIXES = (".hdf5", ".h5")

# How images become upright. flip: top and bottom change places; turn: by 180 degrees.
Orientation = Literal["recorded", "flip", "turn"]


def open_file(path: Path) -> Any:
    """An open `h5py.File`, kept open for this thread. Raises ValueError that names a file that cannot be read."""
    try:
        return _files(path)
    except FileNotFoundError:
        raise ValueError(f"there is no {path}; copy the data set again") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read as HDF5 ({error}); copy it again") from None


def read(path: Path, key: str) -> np.ndarray:
    """A whole data set of the file."""
    found = node(path, key)
    try:
        return np.asarray(found[()])
    except OSError as error:
        raise ValueError(f"{path}, key {key!r} cannot be read ({error}); copy the file again") from None


def node(path: Path, key: str) -> Any:
    """The data set or group of this name. Raises ValueError that names the file, the key and what is there."""
    file = open_file(path)
    try:
        return file[key]
    except KeyError:
        parent = key.rpartition("/")[0] or "/"
        inside = ", ".join(file[parent]) if parent in file else f"no {parent}"
        raise ValueError(f"{path} has no {key!r}; {parent} holds: {inside or 'nothing'}") from None


class Hdf5Frames(Frames):
    """Frames of one data set (T, H, W, 3): only the rows asked for are read.

    `rows`: which row each step is; None: all of them, in order.
    """

    def __init__(
        self, path: Path, key: str, where: str, upright: Orientation = "recorded", rows: np.ndarray | None = None
    ) -> None:
        found = node(path, key)
        if len(found.shape) != 4 or found.shape[3] != 3 or found.dtype != np.uint8:
            raise ValueError(f"{where}: {key} is {found.dtype} {found.shape}, expected uint8 (T, H, W, 3)")
        length, height, width, _ = found.shape
        self.shape = (length if rows is None else len(rows), height, width, 3)
        self._path, self._key, self._where, self._upright, self._rows = path, key, where, upright, rows

    def read(self, steps: list[int]) -> UInt8[np.ndarray, "K H W 3"]:
        """See `Frames`."""
        rows = np.asarray(steps) if self._rows is None else self._rows[steps]
        wanted, place = np.unique(rows, return_inverse=True)  # HDF5 reads rows in order, each once
        found = node(self._path, self._key)
        whole = len(wanted) == wanted[-1] - wanted[0] + 1
        try:
            frames = found[wanted[0] : wanted[-1] + 1] if whole else np.stack([found[int(i)] for i in wanted])
        except OSError as error:
            raise ValueError(f"{self._where}: {self._key} cannot be read ({error}); copy the file again") from None
        if self._upright == "flip":
            frames = frames[:, ::-1]
        elif self._upright == "turn":
            frames = frames[:, ::-1, ::-1]
        return np.ascontiguousarray(frames[place.reshape(-1)])


def _open(path: Path) -> Any:
    try:
        import h5py  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise ImportError("HDF5 files are read by h5py: pip install 'anyvla[hdf5]'") from None
    return h5py.File(path, "r")


_files: OpenFiles[Any] = OpenFiles(_open, most=8)
