"""Stand-ins for numpy's arrays, types and scalars in a pickle, and their conversion to real arrays.

A pickle never reaches a type of numpy, because the state that it gives to a real type or array can describe memory that
does not exist. A stand-in accepts a simple type, a byte order and a shape. The real array is built here, once its size
is known to match the bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from anyvla.data.formats.arrays.pickle_opcodes import RefusedPickleError, StatefulStandIn, check_key

_SIMPLE = re.compile(r"b1|i[1248]|u[1248]|f[248]|c8|c16|O[48]?|[SU]\d{1,9}")
_COPIED_SIZES = 4  # times the file: a pickle can repeat one part and ask for a copy each time


class NumpyKind:
    """Stands for `numpy.ndarray` as an argument of `_reconstruct`."""


class NumpyType(StatefulStandIn):
    """Stands for a simple `numpy.dtype`."""

    def __init__(self, code: str, *flags: Any) -> None:
        if type(code) is not str or not _SIMPLE.fullmatch(code):
            raise RefusedPickleError(f"wants an array of type {code!r}, not of numbers or text")
        self.code, self.order = code, "="

    def build(self, state: Any) -> None:
        """Take the byte order only; the rest of a state describes records and metadata."""
        if type(state) is not tuple or len(state) < 5 or state[1] not in ("<", ">", "=", "|"):
            raise ValueError("an array has a damaged type")
        if any(part is not None for part in state[2:5]):
            raise RefusedPickleError("wants an array of records, not of numbers or text")
        self.order = state[1]

    @property
    def objects(self) -> bool:
        """Whether the elements are Python objects."""
        return self.code[0] == "O"

    def as_dtype(self) -> np.dtype:
        """Return the numpy type. Raises ValueError if the elements are objects."""
        if self.objects:
            raise ValueError("an array or a scalar holds objects where it promises numbers")
        return np.dtype(self.order + self.code)


class NumpyArray(StatefulStandIn):
    """Stands for a `numpy.ndarray` until its state arrives: an array of numbers, or a list of objects."""

    def __init__(self, as_bytes: Callable[[Any], bytes]) -> None:
        self._as_bytes = as_bytes
        self.value: np.ndarray | list[Any] | None = None
        self._shape: tuple[int, ...] = ()
        self._fortran = False

    def build(self, state: Any) -> None:
        """Take shape, type and contents. Raises ValueError if they contradict each other."""
        if type(state) is not tuple or len(state) != 5 or type(state[2]) is not NumpyType:
            raise ValueError("an array has a damaged state")
        _, shape, kind, fortran, contents = state
        self._shape, self._fortran = _check_shape(shape), bool(fortran)
        if not kind.objects:
            self.value = _array_over(self._as_bytes(contents), kind.as_dtype(), self._shape, self._fortran)
        elif type(contents) is list and len(contents) == math.prod(self._shape):
            self.value = contents
        else:
            raise ValueError(f"an array promises objects of shape {self._shape} and holds others")

    def as_object_array(self, objects: list[Any]) -> np.ndarray:
        """Return these objects as an array of the recorded shape."""
        array = np.empty(len(objects), object)
        for i, value in enumerate(objects):
            array[i] = value
        return array.reshape(self._shape, order="F" if self._fortran else "C")


def allowed_functions(size: int) -> dict[tuple[str, str], Callable[..., Any]]:
    """Return the functions that a pickle of `size` bytes may call, by module and name."""
    budget = _CopyBudget(_COPIED_SIZES * size)
    return {
        ("numpy", "ndarray"): NumpyKind,
        ("numpy", "dtype"): NumpyType,
        ("_codecs", "encode"): budget.as_bytes,  # how protocol 2 writes bytes
        **{
            (f"numpy.{core}.{module}", name): target
            for core in ("core", "_core")
            for module, name, target in (
                ("multiarray", "_reconstruct", budget.empty),
                ("multiarray", "scalar", budget.scalar),
                ("numeric", "_frombuffer", budget.from_buffer),
            )
        },
        **{
            (module, name): target
            for module in ("builtins", "__builtin__")
            for name, target in (
                ("set", budget.members),
                ("frozenset", lambda members=(): frozenset(budget.members(members))),
                ("complex", lambda real, imaginary: complex(float(real), float(imaginary))),
                ("bytes", lambda: b""),
                ("bytearray", lambda data=b"", encoding="latin-1": bytearray(budget.as_bytes(data, encoding))),
            )
        },
    }


class _CopyBudget:
    """Functions that copy parts of a pickle, together at most `most` elements."""

    def __init__(self, most: int) -> None:
        self._left = most

    def as_bytes(self, data: Any, encoding: str = "latin1") -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise ValueError(f"bytes are written as {encoding!r}")
        if type(data) in (bytes, bytearray):
            return data
        if type(data) is not str:
            raise ValueError(f"a {type(data).__name__} where bytes are expected")
        self._spend(len(data))
        return data.encode("latin1")

    def members(self, members: Any = ()) -> set[Any]:
        if type(members) not in (list, tuple):
            raise ValueError(f"a set is made of a {type(members).__name__}")
        self._spend(len(members))
        return {check_key(member) for member in members}

    def empty(self, kind: Any, shape: Any, code: Any) -> NumpyArray:
        if getattr(kind, "target", None) is not NumpyKind:
            raise ValueError("an array of an unknown kind")
        return NumpyArray(self.as_bytes)

    def scalar(self, kind: Any, data: Any = b"") -> Any:
        if type(kind) is not NumpyType:
            raise ValueError("a scalar of an unknown type")
        if not data and kind.code in ("S0", "U0"):  # an empty text
            return np.zeros((), kind.as_dtype())[()]
        return _array_over(self.as_bytes(data), kind.as_dtype(), (), False)[()]

    def from_buffer(self, data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
        if type(kind) is not NumpyType or order not in ("C", "F"):
            raise ValueError("an array of an unknown type")
        return _array_over(self.as_bytes(data), kind.as_dtype(), _check_shape(shape), order == "F")

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise RefusedPickleError("copies its parts too often")


def _check_shape(shape: Any) -> tuple[int, ...]:
    if type(shape) is not tuple or len(shape) > 32 or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise ValueError("an array has a damaged shape")
    return shape


def _array_over(data: bytes, dtype: np.dtype, shape: tuple[int, ...], fortran: bool) -> np.ndarray:
    """Return a read-only array over the bytes, without a copy."""
    promised = math.prod(shape) * dtype.itemsize
    if not dtype.itemsize:
        raise ValueError("an array holds texts of no length")
    if len(data) != promised:
        raise ValueError(f"an array promises {promised} bytes ({dtype} {shape}) and holds {len(data)}")
    if not promised:
        return np.zeros(shape, dtype)
    flat = np.frombuffer(data, dtype)
    flat.flags.writeable = False
    if dtype.kind == "U":
        codes = np.frombuffer(data, np.dtype("u4").newbyteorder(dtype.byteorder))
        if np.any((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))):
            raise ValueError("an array of text holds numbers that are no characters")
    return flat.reshape(shape, order="F" if fortran else "C")
