"""Reads `.npy` files of Python objects, such as CALVIN's, without running code from the pickle.

`np.load(allow_pickle=True)` lets a file call any function. Here a pickle may hold numpy arrays and scalars of simple
types, and the types that Python writes without an import: dict, list, tuple, set, str, bytes and numbers. Anything else
is refused by name. Reading takes at most `MAX_MEMORY_RATIO` times the size of the file, plus 1 MiB.

A pickle never reaches a type of numpy, because the state that it gives to a real type or array can describe memory that
does not exist. A stand-in accepts a simple type, a byte order and a shape; the array is built once its size is known to
match the bytes.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from anyvla.data.formats.arrays.npy import DAMAGE_ERRORS, read_array, read_header
from anyvla.data.formats.arrays.pickle_opcodes import RefusedPickleError, StatefulStandIn, check_key, run_opcodes
from anyvla.files.inside import check_regular

MAX_MEMORY_RATIO = 400  # an empty set is one byte in a pickle and 216 in memory
MAX_EXPANSION = 256  # times the file: the size of the value when shared parts count at each mention
_DEPTH = 64  # levels of nested lists
_DAMAGE_ERRORS = (*DAMAGE_ERRORS, AttributeError, SystemError, struct.error)
_SIMPLE = re.compile(r"b1|i[1248]|u[1248]|f[248]|c8|c16|O[48]?|[SU]\d{1,9}")
_COPIED_SIZES = 4  # times the file: a pickle can repeat one part and ask for a copy each time


def load_objects(path: Path) -> Any:
    """Return the array that `np.save` wrote, or the object itself if it was saved alone, as dicts are.

    Raises a ValueError that names the file if it is damaged, or asks for anything but arrays and plain data.
    """
    try:
        with check_regular(path).open("rb") as file:
            header = read_header(file)
            if header.dtype == object:
                array = _unpickled(file.read()).reshape(header.shape, order="F" if header.fortran else "C")
            else:
                file.seek(0)
                array = read_array(file, path.stat().st_size)
            return array.item() if array.shape == () else array
    except FileNotFoundError:
        raise ValueError(f"there is no {path}") from None
    except RefusedPickleError as error:
        raise ValueError(
            f"{path} holds a pickle that {error}; only numpy arrays and plain Python data are read. Do not "
            "open it with other tools unless you trust its source"
        ) from None
    except _DAMAGE_ERRORS as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from None


def _unpickled(data: bytes) -> np.ndarray:
    most = max(1 << 20, MAX_EXPANSION * len(data))
    array = _Resolver(most).resolve(run_opcodes(data, _allowed_functions(len(data))), 0).value
    if not isinstance(array, np.ndarray):
        raise ValueError("its header promises an array, its pickle holds something else")
    return array


class _Resolved(NamedTuple):
    """A value without stand-ins."""

    value: Any
    size: int  # shared parts count at each mention
    height: int = 0


class _Resolver:
    """Replaces stand-ins by real arrays. Refuses values that are cyclic, deep or large when expanded."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._done: dict[int, tuple[_Resolved, Any]] = {}  # keep the value alive, so that no other gets its id
        self._open: set[int] = set()

    def resolve(self, value: Any, depth: int) -> _Resolved:
        if value is None or isinstance(value, bool | int | float | complex | np.generic):
            return _Resolved(value, 1)
        if isinstance(value, str | bytes | bytearray | set | frozenset):
            return _Resolved(value, 1 + len(value))
        if id(value) in self._done:
            return self._done[id(value)][0]
        if id(value) in self._open:
            raise RefusedPickleError("has a list that holds itself")
        if depth > _DEPTH:
            raise RefusedPickleError(f"nests lists more than {_DEPTH} deep")
        self._open.add(id(value))
        part = self._container(value, depth + 1)
        self._done[id(value)] = part, value
        self._open.remove(id(value))
        if part.size > self._most:
            raise RefusedPickleError("repeats its parts so often that they would fill the memory")
        if part.height > _DEPTH:
            raise RefusedPickleError(f"nests lists more than {_DEPTH} deep")
        return part

    def _container(self, value: Any, depth: int) -> _Resolved:
        if isinstance(value, _NumpyArray) and isinstance(value.value, np.ndarray):
            value = value.value
        if isinstance(value, np.ndarray):
            return _Resolved(value, 1 + value.nbytes)
        objects: Any = value.value if isinstance(value, _NumpyArray) else value
        if type(objects) not in (dict, list, tuple):
            raise ValueError(f"a {getattr(value, 'name', type(value).__name__)} is not data")
        parts = [self.resolve(part, depth) for part in (objects.values() if type(objects) is dict else objects)]
        real = [part.value for part in parts]
        size = 1 + sum(part.size for part in parts)
        height = 1 + max((part.height for part in parts), default=0)
        if isinstance(value, _NumpyArray):
            return _Resolved(value.as_object_array(real), size, height)
        if type(value) is dict:
            value.update(zip(value, real, strict=True))
            return _Resolved(value, size + sum(self.resolve(name, depth).size for name in value), height)
        if type(value) is list:
            value[:] = real
            return _Resolved(value, size, height)
        return _Resolved(tuple(real), size, height)


class _NumpyKind:
    """Replaces `numpy.ndarray` as an argument of `_reconstruct`."""


class _NumpyType(StatefulStandIn):
    """Replaces a simple `numpy.dtype`."""

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


class _NumpyArray(StatefulStandIn):
    """Replaces a `numpy.ndarray` until its state arrives: an array of numbers, or a list of objects."""

    def __init__(self, as_bytes: Callable[[Any], bytes]) -> None:
        self._as_bytes = as_bytes
        self.value: np.ndarray | list[Any] | None = None
        self._shape: tuple[int, ...] = ()
        self._fortran = False

    def build(self, state: Any) -> None:
        """Take shape, type and contents. Raises ValueError if they contradict each other."""
        if type(state) is not tuple or len(state) != 5 or type(state[2]) is not _NumpyType:
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


def _allowed_functions(size: int) -> dict[tuple[str, str], Callable[..., Any]]:
    """Return the functions that a pickle of `size` bytes may call, by module and name."""
    budget = _CopyBudget(_COPIED_SIZES * size)
    return {
        ("numpy", "ndarray"): _NumpyKind,
        ("numpy", "dtype"): _NumpyType,
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

    def empty(self, kind: Any, shape: Any, code: Any) -> _NumpyArray:
        if getattr(kind, "target", None) is not _NumpyKind:
            raise ValueError("an array of an unknown kind")
        return _NumpyArray(self.as_bytes)

    def scalar(self, kind: Any, data: Any = b"") -> Any:
        if type(kind) is not _NumpyType:
            raise ValueError("a scalar of an unknown type")
        if not data and kind.code in ("S0", "U0"):  # an empty text
            return np.zeros((), kind.as_dtype())[()]
        return _array_over(self.as_bytes(data), kind.as_dtype(), (), False)[()]

    def from_buffer(self, data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
        if type(kind) is not _NumpyType or order not in ("C", "F"):
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
