"""Reads `.npy` files of Python objects, such as CALVIN's, without running code from the pickle.

`np.load(allow_pickle=True)` lets a file call any function. Here a pickle may hold numpy arrays and scalars of simple
types, and the types that Python writes without an import: dict, list, tuple, set, str, bytes and numbers. Anything else
is refused by name. Reading takes at most `MAX_MEMORY_RATIO` times the size of the file, plus 1 MiB.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from anyvla.data.formats.arrays.npy import DAMAGE_ERRORS, read_array, read_header
from anyvla.data.formats.arrays.pickle_arrays import NumpyArray, allowed_functions
from anyvla.data.formats.arrays.pickle_opcodes import RefusedPickleError, run_opcodes
from anyvla.files.inside import check_regular

MAX_MEMORY_RATIO = 400  # an empty set is one byte in a pickle and 216 in memory
MAX_EXPANSION = 256  # times the file: the size of the value when shared parts count at each mention
_DEPTH = 64  # levels of nested lists
_DAMAGE_ERRORS = (*DAMAGE_ERRORS, AttributeError, SystemError, struct.error)


def load_objects(path: Path) -> Any:
    """Return the array that `np.save` wrote, or the object itself if it was saved alone, as dicts are.

    Raises ValueError that names the file if it is no .npy file, is damaged, or asks for anything but arrays and plain
    data.
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
    array = _Resolver(most).resolve(run_opcodes(data, allowed_functions(len(data))), 0).value
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
        if isinstance(value, NumpyArray) and isinstance(value.value, np.ndarray):
            value = value.value
        if isinstance(value, np.ndarray):
            return _Resolved(value, 1 + value.nbytes)
        objects: Any = value.value if isinstance(value, NumpyArray) else value
        if type(objects) not in (dict, list, tuple):
            raise ValueError(f"a {getattr(value, 'name', type(value).__name__)} is not data")
        parts = [self.resolve(part, depth) for part in (objects.values() if type(objects) is dict else objects)]
        real = [part.value for part in parts]
        size = 1 + sum(part.size for part in parts)
        height = 1 + max((part.height for part in parts), default=0)
        if isinstance(value, NumpyArray):
            return _Resolved(value.as_object_array(real), size, height)
        if type(value) is dict:
            value.update(zip(value, real, strict=True))
            return _Resolved(value, size + sum(self.resolve(name, depth).size for name in value), height)
        if type(value) is list:
            value[:] = real
            return _Resolved(value, size, height)
        return _Resolved(tuple(real), size, height)
