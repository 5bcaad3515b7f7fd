"""Reads arrays in numpy's `.npy` format. Memory is taken only after the promised size was found to be there."""

from __future__ import annotations

import math
import threading
import tokenize
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from anyvla.files.inside import regular

# numpy reads an array's head with `ast.literal_eval`, which fails now and then when two threads are in it: Python 3.11
# counts their depths together ("AST constructor recursion depth mismatch", github.com/python/cpython/issues/106905).
_HEADS = threading.Lock()
# numpy and zipfile raise these for damaged files; a head of many brackets exhausts the parser's stack.
FAULTS = (ValueError, TypeError, LookupError, ArithmeticError, OSError, EOFError, MemoryError, RecursionError)


class Head(NamedTuple):
    """What the first bytes of a `.npy` file say of its array."""

    shape: tuple[int, ...]
    fortran: bool  # the first dim varies fastest
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Return the bytes of its numbers; no overflow, whatever the file says."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_head(file: IO[bytes]) -> Head:
    """Return the head of the array, and leave the file where its numbers begin. Raise ValueError for no .npy file."""
    try:
        with _HEADS:
            version = np.lib.format.read_magic(file)
            v1 = version == (1, 0)
            read = np.lib.format.read_array_header_1_0 if v1 else np.lib.format.read_array_header_2_0
            head = Head(*read(file))
    except (*FAULTS, AttributeError, SyntaxError, tokenize.TokenError) as error:  # the head is a Python literal
        raise ValueError(f"its head is damaged ({error})") from None
    if any(n < 0 for n in head.shape) or (head.dtype.itemsize == 0 and math.prod(head.shape) > 1):
        raise ValueError(f"its head promises an array of shape {head.shape} and type {head.dtype}")
    return head


def read_array(file: IO[bytes], left: int) -> np.ndarray:
    """Return the array that fills the file's last `left` bytes, head included. Raise ValueError for any other size."""
    begin = file.tell()
    head = read_head(file)
    if head.dtype.hasobject:
        raise ValueError("it holds objects")
    left -= file.tell() - begin
    if head.nbytes > left:
        raise ValueError(f"its head promises {head.nbytes} bytes ({head.dtype} {head.shape}), {left} are there")
    data = file.read(head.nbytes + 1)  # one more reaches the end of a member of an archive, where its CRC is checked
    if len(data) != head.nbytes:
        raise ValueError(f"its head promises {head.nbytes} bytes ({head.dtype} {head.shape}), it holds others")
    if not head.nbytes:
        return np.zeros(head.shape, head.dtype)
    return np.frombuffer(data, head.dtype).copy().reshape(head.shape, order="F" if head.fortran else "C")


def load_array(path: Path) -> np.ndarray:
    """Return the array of a `.npy` file. Raise ValueError that names the file."""
    try:
        with regular(path).open("rb") as file:
            return read_array(file, path.stat().st_size)
    except FileNotFoundError:
        raise ValueError(f"there is no {path}; copy the data set again") from None
    except FAULTS as error:
        raise ValueError(f"{path} cannot be read as .npy ({error}); copy it again") from None
