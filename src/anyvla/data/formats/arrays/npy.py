"""Reads arrays in numpy's `.npy` format. Memory is taken only after the promised size was found to be there."""

from __future__ import annotations

import math
import threading
import tokenize
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from anyvla.files.inside import check_regular

# numpy reads an array's header with `ast.literal_eval`, which may fail when two threads are in it: Python 3.11
# counts their depths together ("AST constructor recursion depth mismatch", github.com/python/cpython/issues/106905).
_HEADER_LOCK = threading.Lock()
# numpy and zipfile raise these for damaged files; a header of many brackets exhausts the parser's stack.
DAMAGE_ERRORS = (ValueError, TypeError, LookupError, ArithmeticError, OSError, EOFError, MemoryError, RecursionError)


class ArrayHeader(NamedTuple):
    """What the first bytes of a `.npy` file say of its array."""

    shape: tuple[int, ...]
    fortran: bool  # the first dim varies fastest
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Return the bytes of its numbers; no overflow, whatever the file says."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: IO[bytes]) -> ArrayHeader:
    """Return the header of the array, and leave the file where its numbers begin. Raise ValueError for no .npy file."""
    try:
        with _HEADER_LOCK:
            version = np.lib.format.read_magic(file)
            v1 = version == (1, 0)
            read = np.lib.format.read_array_header_1_0 if v1 else np.lib.format.read_array_header_2_0
            header = ArrayHeader(*read(file))
    except (
        *DAMAGE_ERRORS,
        AttributeError,
        SyntaxError,
        tokenize.TokenError,
    ) as error:  # of a literal
        raise ValueError(f"its header is damaged ({error})") from None
    if any(n < 0 for n in header.shape) or (header.dtype.itemsize == 0 and math.prod(header.shape) > 1):
        raise ValueError(f"its header promises an array of shape {header.shape} and type {header.dtype}")
    return header


def read_array(file: IO[bytes], left: int) -> np.ndarray:
    """Return the array in the last `left` bytes of a file, header included. Raise ValueError for another size."""
    begin = file.tell()
    header = read_header(file)
    if header.dtype.hasobject:
        raise ValueError("it holds objects")
    left -= file.tell() - begin
    if header.nbytes > left:
        raise ValueError(f"its header promises {header.nbytes} bytes ({header.dtype} {header.shape}), {left} are there")
    data = file.read(header.nbytes + 1)  # one more reaches the end of a member of an archive, where its CRC is checked
    if len(data) != header.nbytes:
        raise ValueError(f"its header promises {header.nbytes} bytes ({header.dtype} {header.shape}), it holds others")
    if not header.nbytes:
        return np.zeros(header.shape, header.dtype)
    return np.frombuffer(data, header.dtype).copy().reshape(header.shape, order="F" if header.fortran else "C")


def load_array(path: Path) -> np.ndarray:
    """Return the array of a `.npy` file. Raise ValueError that names the file."""
    try:
        with check_regular(path).open("rb") as file:
            return read_array(file, path.stat().st_size)
    except FileNotFoundError:
        raise ValueError(f"there is no {path}; copy the data set again") from None
    except DAMAGE_ERRORS as error:
        raise ValueError(f"{path} cannot be read as .npy ({error}); copy it again") from None
