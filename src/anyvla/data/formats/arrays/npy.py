"""Reads numpy's `.npy` format. Memory is allocated only after the promised size was compared with the file."""

from __future__ import annotations

import math
import threading
import tokenize
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from anyvla.files.inside import check_regular

# numpy parses a header with `ast.literal_eval`, which may fail in two threads at once: Python 3.11 adds up their depths
# ("AST constructor recursion depth mismatch", github.com/python/cpython/issues/106905).
_HEADER_LOCK = threading.Lock()
# numpy and zipfile raise these for damaged files; many brackets in a header exhaust the stack of the parser.
DAMAGE_ERRORS = (ValueError, TypeError, LookupError, ArithmeticError, OSError, EOFError, MemoryError, RecursionError)


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


def load_array(path: Path) -> np.ndarray:
    """Return the array of a `.npy` file. Raises ValueError that names the file."""
    try:
        with check_regular(path).open("rb") as file:
            return read_array(file, path.stat().st_size)
    except FileNotFoundError:
        raise ValueError(f"there is no {path}; copy the data set again") from None
    except DAMAGE_ERRORS as error:
        raise ValueError(f"{path} cannot be read as .npy ({error}); copy it again") from None
