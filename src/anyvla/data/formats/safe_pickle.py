"""Reads `.npy` files of Python objects (as CALVIN has them) without running what a pickle may ask for.

`np.load(allow_pickle=True)` lets a file call any function. Here a pickle may hold numpy arrays and scalars, and what
Python writes without an import: dict, list, tuple, set, str, bytes and numbers. Anything else is refused by name.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np


def load_objects(path: Path) -> Any:
    """What `np.save(path, objects)` wrote: an array, or the object itself where it was saved alone, as dicts are.

    Raises ValueError that names the file for one that is no .npy file, is damaged, or asks for anything but arrays and
    plain data.
    """
    try:
        with path.open("rb") as file:
            array = _read_array(file, path)
    except FileNotFoundError:
        raise ValueError(f"there is no {path}") from None
    except _FAULTS as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from None
    return array.item() if array.shape == () else array


class RefusedError(ValueError):
    """A pickle asks for what plain data does not need."""


_FAULTS = (pickle.UnpicklingError, EOFError, AttributeError, TypeError, IndexError, KeyError, UnicodeDecodeError)


class _PlainUnpickler(pickle.Unpickler):
    """Nothing that a pickle names is imported; each of the few names it may use stands for a function below."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file, encoding="latin1")  # numpy says so for arrays that Python 2 wrote
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """Raises RefusedError for what is not on the list."""
        if (module, name) not in _ADMITTED:
            raise RefusedError(
                f"{self._path} holds a pickle that wants {module}.{name}; only numpy arrays and plain Python data are "
                "read. Do not open it with other tools unless you trust where it comes from"
            )
        return _ADMITTED[module, name]


def _read_array(file: IO[bytes], path: Path) -> np.ndarray:
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if not dtype.hasobject:
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} is no whole .npy file: {error}") from None
    array = _PlainUnpickler(file, path).load()
    if not isinstance(array, np.ndarray) or array.size != np.prod(shape, dtype=np.int64):
        raise ValueError(f"{path}: its head promises an array of shape {shape}, its pickle holds something else")
    return array.reshape(shape, order="F" if fortran else "C")


def _empty(kind: type, shape: tuple[int, ...], code: Any) -> np.ndarray:
    if kind is not np.ndarray:
        raise TypeError("an array of an unknown kind")
    return np.ndarray(shape, "b")  # its state follows and says shape and dtype


def _scalar(dtype: np.dtype, data: bytes | str = b"") -> Any:
    if dtype.hasobject:
        raise TypeError("a scalar that holds objects")
    raw = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(raw, dtype)[0] if raw else np.zeros((), dtype)[()]


def _from_buffer(buffer: Any, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _latin1(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise TypeError(f"bytes written as {encoding!r}")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,  # how protocol 2 writes bytes
    **{
        (f"numpy.{core}.{module}", name): target
        for core in ("core", "_core")
        for module, name, target in (
            ("multiarray", "_reconstruct", _empty),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")
        for kind in (set, frozenset, complex, bytearray)
    },
}
