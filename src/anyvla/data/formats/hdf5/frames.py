"""Reads frames from HDF5 files: arrays with the channels last or first, or one encoded image per step."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT
from anyvla.data.episode import Frames
from anyvla.data.formats.hdf5.file import errors_naming, open_array
from anyvla.data.formats.images import as_rgb, check_image_array, decode_image

# How images are made upright. flip: swap top and bottom; turn: rotate by 180 degrees.
Orientation = Literal["recorded", "flip", "turn"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ImageStorage:
    """How images are stored, where the file itself does not say."""

    channels: Literal["last", "first"] = "last"
    colors: Literal["rgb", "bgr"] = "rgb"
    upright: Orientation = "recorded"


class Hdf5Frames(Frames):
    """Frames of one array in an HDF5 file. Only the requested rows are read.

    The array holds images, (T, H, W, C) or (T, C, H, W), or encoded images: (T,) byte strings, or (T, L) padded bytes.
    `rows` is the row of each step; None means all rows in order.
    """

    def __init__(
        self, path: Path, key: str, where: str, storage: ImageStorage | None = None, rows: np.ndarray | None = None
    ) -> None:
        self._path, self._key, self._where = path, key, f"{where}: {key}"
        self._storage, self._rows = storage or ImageStorage(), rows
        found = open_array(path, key)
        self._encoded = holds_encoded_images(found)
        length = len(found) if rows is None else len(rows)
        if self._encoded:
            height, width = self._image(found[0 if rows is None else int(rows[0])], 0).shape[:2] if length else (1, 1)
        else:
            if found.ndim != 4:
                raise ValueError(f"{self._where} is {found.dtype} {found.shape}, expected uint8 (T, H, W, 3)")
            shape = found.shape[1:] if self._storage.channels == "last" else (*found.shape[2:], found.shape[1])
            if shape[-1] not in (1, 3, 4) and found.shape[1] in (1, 3):
                raise ValueError(f"{self._where} is {found.shape}: declare channels: first in its format")
            check_image_array(found.dtype, shape, self._where)
            height, width = shape[:2]
        self.shape = (length, height, width, 3)

    def read(self, steps: list[int]) -> UInt8[np.ndarray, "K H W 3"]:
        """See `Frames`."""
        rows = np.asarray(steps) if self._rows is None else self._rows[steps]
        wanted, inverse = np.unique(rows, return_inverse=True)  # HDF5 reads rows in order, each once
        found = open_array(self._path, self._key)
        consecutive = len(wanted) == wanted[-1] - wanted[0] + 1
        with errors_naming(self._path, f"{self._where}: {self._key}"):
            raw = found[wanted[0] : wanted[-1] + 1] if consecutive else [found[int(i)] for i in wanted]
        return np.stack([self._image(image, int(row)) for image, row in zip(raw, wanted, strict=True)])[
            inverse.reshape(-1)
        ]

    def _image(self, raw: Any, row: int) -> UInt8[np.ndarray, "H W 3"]:
        where = f"{self._where}, row {row}"
        if self._encoded:
            image = decode_image(raw.tobytes() if isinstance(raw, np.ndarray) else bytes(raw), where)
        else:
            image = as_rgb(raw, where, channels_first=self._storage.channels == "first")
        image = image[..., ::-1] if self._storage.colors == "bgr" else image
        turned = {"recorded": image, "flip": image[::-1], "turn": image[::-1, ::-1]}[self._storage.upright]
        if hasattr(self, "shape") and turned.shape != self.shape[1:]:
            raise ValueError(f"{where} is {turned.shape[0]}x{turned.shape[1]}, others {self.shape[1]}x{self.shape[2]}")
        return turned


def holds_encoded_images(found: Any) -> bool:
    """Return whether an array holds one encoded image per step: byte strings, or rows of padded bytes."""
    import h5py

    kind = h5py.check_vlen_dtype(found.dtype)
    strings = found.dtype.kind == "S" or h5py.check_string_dtype(found.dtype) is not None or kind in (np.uint8, np.int8)
    return (found.ndim == 1 and strings) or (found.ndim == 2 and found.dtype == np.uint8)
