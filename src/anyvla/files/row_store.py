"""Rows of equal size in a folder, found by a key; several processes may read and extend it at once.

It is a cache: whoever reads it can compute a row again. A file holds an index (the key and the checksum of each row)
and then the rows. It appears whole and never changes. A damaged file is deleted with a warning.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
import uuid
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from anyvla.files import durable

logger = logging.getLogger(__name__)

KEY_BYTES = 16
_ENTRY = np.dtype([("key", f"V{KEY_BYTES}"), ("sum", "<u4")])
_ENDING = ".rows"
_FILE_BYTES = 32 << 20  # rows that are written together
_WRITE_S, _LOOK_S = 30.0, 5.0  # between two files, and between two looks for files of other processes
_SPARE_BYTES = 1 << 30  # of the disk that stay free


class _Place(NamedTuple):
    file: Path
    offset: int
    checksum: int


class RowStore:
    """Rows of `row_bytes` bytes. The folder takes at most `most` bytes; then no rows are added."""

    def __init__(self, folder: Path, row_bytes: int, most: int) -> None:
        self.folder, self.full = folder, False
        self._row_bytes, self._most = row_bytes, most
        self._places: dict[bytes, _Place] = {}
        self._checked: set[bytes] = set()  # keys whose checksums were compared
        self._known: set[str] = set()  # names of files
        self._pending: dict[bytes, UInt8[np.ndarray, "B"]] = {}
        self._written, self._looked = time.monotonic(), -_LOOK_S

    def read(self, keys: Sequence[bytes], out: UInt8[np.ndarray, "n B"]) -> list[int]:
        """Fill row i of `out` with the row of `keys[i]`. Return the numbers of the rows that are not in the store."""
        missing = self._fill(keys, out, range(len(keys)))
        if missing and time.monotonic() - self._looked >= _LOOK_S:
            self._look()
            missing = self._fill(keys, out, missing)
        return missing

    def add(self, key: bytes, row: UInt8[np.ndarray, "B"]) -> None:
        """Add a row that the store lacks. It is written with others, at the latest by `flush`."""
        if self.full:
            return
        self._pending[key] = row.copy()
        many = len(self._pending) * self._row_bytes >= _FILE_BYTES
        if many or time.monotonic() - self._written >= _WRITE_S:
            self.flush()

    def flush(self) -> None:
        """Write the rows that were added, so that other processes find them."""
        rows, self._pending = self._pending, {}
        self._written = time.monotonic()
        if not rows or self.full:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            kept = self._choose(rows)
            if kept:
                self._write(kept)
        except OSError as error:
            self.full = True
            logger.warning("%s cannot be extended (%s): further rows are not kept", self.folder, error)

    def _choose(self, rows: dict[bytes, UInt8[np.ndarray, "B"]]) -> dict[bytes, UInt8[np.ndarray, "B"]]:
        """Return the rows for which there is room, and note that there is none for more."""
        taken = 0
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                taken += path.stat().st_size
        room = min(self._most - taken, shutil.disk_usage(self.folder).free - _SPARE_BYTES)
        fitting = max(0, room // (_ENTRY.itemsize + self._row_bytes))
        if fitting < len(rows):
            self.full = True
            logger.info("%s is full: further rows are computed at each use", self.folder)
        return dict(list(rows.items())[:fitting])

    def _write(self, rows: dict[bytes, UInt8[np.ndarray, "B"]]) -> None:
        path = self.folder / f"{uuid.uuid4().hex}{_ENDING}"
        index = np.array([(key, zlib.crc32(row.data)) for key, row in rows.items()], _ENTRY)
        durable.write(path, b"".join([index.tobytes(), *(row.tobytes() for row in rows.values())]), to_disk=False)
        self._add_places(path, index)
        self._checked |= rows.keys()

    def _add_places(self, path: Path, index: np.ndarray) -> None:
        self._known.add(path.name)
        for number, (key, checksum) in enumerate(index.tolist()):
            self._places.setdefault(key, _Place(path, index.nbytes + number * self._row_bytes, checksum))

    def _look(self) -> None:
        """Find the files that other processes have written."""
        self._looked = time.monotonic()
        with contextlib.suppress(FileNotFoundError):
            for path in sorted(self.folder.glob(f"[!.]*{_ENDING}")):
                if path.name not in self._known:
                    self._read_index(path)

    def _read_index(self, path: Path) -> None:
        try:
            count, rest = divmod(path.stat().st_size, _ENTRY.itemsize + self._row_bytes)
            with path.open("rb") as file:
                index = file.read(count * _ENTRY.itemsize)
        except OSError as error:
            self._drop(path, str(error))
        else:
            if rest:
                self._drop(path, "it does not hold whole rows")
            else:
                self._add_places(path, np.frombuffer(index, _ENTRY))

    def _fill(self, keys: Sequence[bytes], out: UInt8[np.ndarray, "n B"], numbers: Iterable[int]) -> list[int]:
        missing, by_file = list[int](), defaultdict[Path, list[int]](list)
        for number in numbers:
            if (pending := self._pending.get(keys[number])) is not None:
                out[number] = pending
            elif (place := self._places.get(keys[number])) is not None:
                by_file[place.file].append(number)
            else:
                missing.append(number)
        for path, own in by_file.items():
            if not self._read_rows(path, [keys[number] for number in own], [out[number] for number in own]):
                missing += own
        return sorted(missing)

    def _read_rows(self, path: Path, keys: Sequence[bytes], rows: Sequence[UInt8[np.ndarray, "B"]]) -> bool:
        """Read rows of a file. Return False if it is damaged or gone; then the store forgets it."""
        try:
            with path.open("rb", buffering=0) as file:
                for key, row in zip(keys, rows, strict=True):
                    place = self._places[key]
                    file.seek(place.offset)
                    whole = file.readinto(row.data) == self._row_bytes
                    if not whole or (key not in self._checked and zlib.crc32(row.data) != place.checksum):
                        self._drop(path, "the checksum of a row differs" if whole else "it is cut off")
                        return False
                    self._checked.add(key)
        except OSError as error:
            self._drop(path, str(error))
            return False
        return True

    def _drop(self, path: Path, reason: str) -> None:
        """Forget and delete a damaged file."""
        self._known.add(path.name)
        gone = {key for key, place in self._places.items() if place.file == path}
        self._places = {key: place for key, place in self._places.items() if key not in gone}
        self._checked -= gone
        logger.warning("%s is damaged and deleted; its rows are computed again: %s", path, reason)
        with contextlib.suppress(OSError):
            path.unlink()
