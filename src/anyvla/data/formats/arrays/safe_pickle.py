"""Reads `.npy` files of Python objects (as CALVIN has them) without running what a pickle may ask for.

`np.load(allow_pickle=True)` lets a file call any function. Here a pickle may hold numpy arrays and scalars of simple
types, and what Python writes without an import: dict, list, tuple, set, str, bytes and numbers. Anything else is
refused by name. Reading takes at most `MOST_MEMORY` times the file, and 1 MiB.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from anyvla.data.formats.arrays.npy import FAULTS, read_array, read_head
from anyvla.data.formats.arrays.pickle_arrays import NumpyArray, table
from anyvla.data.formats.arrays.pickle_opcodes import RefusedError, run
from anyvla.files.inside import regular

MOST_MEMORY = 400  # an empty set is one byte in a pickle and 216 in memory
MOST_EXPANDED = 256  # times the file: what comes out if shared parts are written anew at each mention
_DEPTH = 64  # of lists within lists
_DAMAGE = (*FAULTS, AttributeError, SystemError, struct.error)


def load_objects(path: Path) -> Any:
    """Return what `np.save(path, objects)` wrote: an array, or the object itself if it was saved alone, as dicts are.

    Raise ValueError that names the file if it is no .npy file, is damaged, or asks for anything but arrays and plain
    data.
    """
    try:
        with regular(path).open("rb") as file:
            head = read_head(file)
            if head.dtype == object:
                array = _unpickled(file.read()).reshape(head.shape, order="F" if head.fortran else "C")
            else:
                file.seek(0)
                array = read_array(file, path.stat().st_size)
            return array.item() if array.shape == () else array
    except FileNotFoundError:
        raise ValueError(f"there is no {path}") from None
    except RefusedError as error:
        raise ValueError(
            f"{path} holds a pickle that {error}; only numpy arrays and plain Python data are read. Do not "
            "open it with other tools unless you trust where it comes from"
        ) from None
    except _DAMAGE as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from None


def _unpickled(data: bytes) -> np.ndarray:
    most = max(1 << 20, MOST_EXPANDED * len(data))
    array = _Finished(most).of(run(data, table(len(data))), 0).value
    if not isinstance(array, np.ndarray):
        raise ValueError("its head promises an array, its pickle holds something else")
    return array


class _Part(NamedTuple):
    """A value without stand-ins."""

    value: Any
    size: int  # shared parts count at each mention
    height: int = 0


class _Finished:
    """Puts real arrays in place of stand-ins. Refuses values that are endless, deep or large when they are walked."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._done: dict[int, tuple[_Part, Any]] = {}  # with the value itself, so that no other takes its id
        self._open: set[int] = set()

    def of(self, value: Any, depth: int) -> _Part:
        if value is None or isinstance(value, bool | int | float | complex | np.generic):
            return _Part(value, 1)
        if isinstance(value, str | bytes | bytearray | set | frozenset):
            return _Part(value, 1 + len(value))
        if id(value) in self._done:
            return self._done[id(value)][0]
        if id(value) in self._open:
            raise RefusedError("has a list that holds itself")
        if depth > _DEPTH:
            raise RefusedError(f"nests lists more than {_DEPTH} deep")
        self._open.add(id(value))
        part = self._container(value, depth + 1)
        self._done[id(value)] = part, value
        self._open.remove(id(value))
        if part.size > self._most:
            raise RefusedError("repeats its parts so often that they would fill the memory")
        if part.height > _DEPTH:
            raise RefusedError(f"nests lists more than {_DEPTH} deep")
        return part

    def _container(self, value: Any, depth: int) -> _Part:
        if isinstance(value, NumpyArray) and isinstance(value.value, np.ndarray):
            value = value.value
        if isinstance(value, np.ndarray):
            return _Part(value, 1 + value.nbytes)
        objects: Any = value.value if isinstance(value, NumpyArray) else value
        if type(objects) not in (dict, list, tuple):
            raise ValueError(f"a {getattr(value, 'name', type(value).__name__)} is no data")
        parts = [self.of(part, depth) for part in (objects.values() if type(objects) is dict else objects)]
        real = [part.value for part in parts]
        size = 1 + sum(part.size for part in parts)
        height = 1 + max((part.height for part in parts), default=0)
        if isinstance(value, NumpyArray):
            return _Part(value.of_objects(real), size, height)
        if type(value) is dict:
            value.update(zip(value, real, strict=True))
            return _Part(value, size + sum(self.of(name, depth).size for name in value), height)
        if type(value) is list:
            value[:] = real
            return _Part(value, size, height)
        return _Part(tuple(real), size, height)
