"""Reads arrays of `.npz` files, with errors that name the file and the key."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from anyvla.data.formats.arrays.npy import DAMAGE_ERRORS, ArrayHeader, read_array, read_header
from anyvla.files.inside import check_regular

# A member may unpack to this many bytes in any case, or to this many times its packed size (an hour of black frames).
_FREE_BYTES, _RATIO = 256 << 20, 100
# zipfile raises RuntimeError for locked members.
_DAMAGE_ERRORS = (*DAMAGE_ERRORS, zipfile.BadZipFile, zlib.error, RuntimeError)


def load_arrays(path: Path, keys: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Return all arrays of a file, or those of `keys` only. Raises ValueError that names the file and the key."""
    with _open(path) as archive:
        there = _names(archive)
        names = there if keys is None else list(keys)
        missing = [k for k in names if k not in there]
        if missing:
            raise ValueError(f"{path} has no key {missing[0]!r}; it has {', '.join(there) or 'none'}")
        return {k: _array(archive, path, k) for k in names}


def array_keys(path: Path) -> list[str]:
    """Return the names of the arrays. Raises ValueError that names the file."""
    with _open(path) as archive:
        return _names(archive)


def array_header(path: Path, key: str) -> ArrayHeader:
    """Read shape and type of one array from its header. Raises ValueError that names the file and the key."""
    with _open(path) as archive:
        if key not in _names(archive):
            raise ValueError(f"{path} has no key {key!r}; it has {', '.join(_names(archive)) or 'none'}")
        try:
            with _member(archive, key) as (file, _):
                return read_header(file)
        except _DAMAGE_ERRORS as error:
            raise ValueError(f"{path}, key {key!r}: {error}; copy the file again") from None


def locate_array(path: Path, key: str) -> tuple[int, np.dtype] | None:
    """Return offset and type of an array's data in the file, or None if it cannot be mapped into memory."""
    with _open(path) as archive:
        try:
            with _member(archive, key) as (file, info):
                header = read_header(file)
                inside = file.tell()
            if info.compress_type != zipfile.ZIP_STORED or header.fortran or header.dtype.hasobject:
                return None
            with path.open("rb") as raw:  # local header: 30 bytes, a name, an extra field (PKZIP APPNOTE 4.3.7)
                raw.seek(info.header_offset + 26)
                name, extra = (int.from_bytes(raw.read(2), "little") for _ in range(2))
        except _DAMAGE_ERRORS as error:
            raise ValueError(f"{path}, key {key!r} cannot be read ({error}); copy the file again") from None
    return info.header_offset + 30 + name + extra + inside, header.dtype


@contextmanager
def _open(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(check_regular(path))
    except FileNotFoundError:
        raise ValueError(f"there is no {path}; copy the data set again") from None
    except _DAMAGE_ERRORS as error:
        raise ValueError(f"{path} cannot be read as .npz ({error}); copy it again") from None
    with archive:
        yield archive


def _names(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


@contextmanager
def _member(archive: zipfile.ZipFile, key: str) -> Iterator[tuple[IO[bytes], zipfile.ZipInfo]]:
    """Open one member. Raises ValueError if it would unpack to far more than the file can hold."""
    info = archive.getinfo(f"{key}.npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it uses a compression that numpy does not write")
    most = info.compress_size if info.compress_type == zipfile.ZIP_STORED else _RATIO * info.compress_size
    if info.file_size > max(_FREE_BYTES, most):
        raise ValueError(f"its {info.compress_size} bytes promise to become {info.file_size}")
    with archive.open(info) as file:
        yield file, info


def _array(archive: zipfile.ZipFile, path: Path, key: str) -> np.ndarray:
    try:
        with _member(archive, key) as (file, info):
            return read_array(file, info.file_size)
    except _DAMAGE_ERRORS as error:
        raise ValueError(f"{path}, key {key!r}: {error}; copy the file again, or write it without objects") from None
