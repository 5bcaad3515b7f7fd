"""Reads numpy's `.npy` and `.npz` files, with errors that name the file and the key.

Memory is allocated only after the promised size was compared with the file.
"""

from __future__ import annotations

import math
import threading
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from anyvla.files.inside import check_regular

# numpy parses a header with `ast.literal_eval`, which may fail in two threads at once: Python 3.11 adds up their depths
# ("AST constructor recursion depth mismatch", github.com/python/cpython/issues/106905).
_HEADER_LOCK = threading.Lock()
# numpy and zipfile raise these for damaged files; many brackets in a header exhaust the stack of the parser.
DAMAGE_ERRORS = (ValueError, TypeError, LookupError, ArithmeticError, OSError, EOFError, MemoryError, RecursionError)
# A member may unpack to this many bytes in any case, or to this many times its packed size (an hour of black frames).
_FREE_BYTES, _RATIO = 256 << 20, 100
# zipfile raises RuntimeError for locked members.
_ZIP_ERRORS = (*DAMAGE_ERRORS, zipfile.BadZipFile, zlib.error, RuntimeError)


class ArrayHeader(NamedTuple):
    """The header of a `.npy` file."""

    shape: tuple[int, ...]
    fortran: bool  # the first dim varies fastest
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """The size of the data in bytes, without overflow for any header."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: IO[bytes]) -> ArrayHeader:
    """Return the header of an array and leave the file at its data. Raises ValueError for other files."""
    try:
        with _HEADER_LOCK:
            version = np.lib.format.read_magic(file)
            v1 = version == (1, 0)
            read = np.lib.format.read_array_header_1_0 if v1 else np.lib.format.read_array_header_2_0
            header = ArrayHeader(*read(file))
    except (*DAMAGE_ERRORS, AttributeError, SyntaxError, tokenize.TokenError) as error:  # of a literal
        raise ValueError(f"its header is damaged ({error})") from None
    if any(n < 0 for n in header.shape) or (header.dtype.itemsize == 0 and math.prod(header.shape) > 1):
        raise ValueError(f"its header promises an array of shape {header.shape} and type {header.dtype}")
    return header


def read_array(file: IO[bytes], left: int) -> np.ndarray:
    """Return the array in the last `left` bytes of a file, header included. Raises ValueError for another size."""
    begin = file.tell()
    header = read_header(file)
    if header.dtype.hasobject:
        raise ValueError("it holds objects")
    left -= file.tell() - begin
    if header.nbytes > left:
        raise ValueError(f"its header promises {header.nbytes} bytes ({header.dtype} {header.shape}), {left} are there")
    data = file.read(header.nbytes + 1)  # reading past the end makes zipfile check the CRC
    if len(data) != header.nbytes:
        raise ValueError(f"its header promises {header.nbytes} bytes ({header.dtype} {header.shape}), it holds others")
    if not header.nbytes:
        return np.zeros(header.shape, header.dtype)
    return np.frombuffer(data, header.dtype).copy().reshape(header.shape, order="F" if header.fortran else "C")


def load_arrays(path: Path, keys: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of a file: all, or only `keys`. Raises a ValueError that names the file and the key."""
    with _open(path) as archive:
        there = _names(archive)
        names = there if keys is None else list(keys)
        missing = [k for k in names if k not in there]
        if missing:
            raise ValueError(f"{path} has no key {missing[0]!r}; it has {', '.join(there) or 'none'}")
        arrays = {}
        for key in names:
            try:
                with _member(archive, key) as (file, info):
                    arrays[key] = read_array(file, info.file_size)
            except _ZIP_ERRORS as error:
                advice = "copy the file again, or write it without objects"
                raise ValueError(f"{path}, key {key!r}: {error}; {advice}") from None
        return arrays


def array_keys(path: Path) -> list[str]:
    """Return the names of the arrays. Raises a ValueError that names the file."""
    with _open(path) as archive:
        return _names(archive)


def array_header(path: Path, key: str) -> ArrayHeader:
    """Read shape and type of one array from its header. Raises a ValueError that names the file and the key."""
    with _open(path) as archive:
        if key not in _names(archive):
            raise ValueError(f"{path} has no key {key!r}; it has {', '.join(_names(archive)) or 'none'}")
        try:
            with _member(archive, key) as (file, _):
                return read_header(file)
        except _ZIP_ERRORS as error:
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
        except _ZIP_ERRORS as error:
            raise ValueError(f"{path}, key {key!r} cannot be read ({error}); copy the file again") from None
    return info.header_offset + 30 + name + extra + inside, header.dtype


@contextmanager
def _open(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(check_regular(path))
    except FileNotFoundError:
        raise ValueError(f"there is no {path}; copy the data set again") from None
    except _ZIP_ERRORS as error:
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
