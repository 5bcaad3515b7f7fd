"""Arrays out of `.npz` files, with errors that say which file and which key."""

from __future__ import annotations

import threading
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

# numpy reads an array's head with `ast.literal_eval`, which fails now and then when two threads are in it: Python 3.11
# counts their depths together ("AST constructor recursion depth mismatch", github.com/python/cpython/issues/106905).
_HEADS = threading.Lock()


def load_arrays(path: Path, keys: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Some or all arrays of a file; only those are decompressed. Raises ValueError that names the file and the key."""
    with _open(path) as file:
        names = file.files if keys is None else list(keys)
        missing = [k for k in names if k not in file.files]
        if missing:
            raise ValueError(f"{path} has no key {missing[0]!r}; it has {', '.join(file.files) or 'none'}")
        return {k: _array(file, path, k) for k in names}


def keys_of(path: Path) -> list[str]:
    """The names of its arrays, without reading them. Raises ValueError that names the file."""
    with _open(path) as file:
        return list(file.files)


def shape_of(path: Path, key: str) -> tuple[int, ...]:
    """The shape of one array; only its head is read. Raises ValueError that names the file and the key."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
            return _head(file)[0]
    except KeyError:
        raise ValueError(f"{path} has no key {key!r}; it has {', '.join(keys_of(path)) or 'none'}") from None
    except FileNotFoundError:
        raise ValueError(f"there is no {path}; copy the data set again") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as .npz ({error}); copy it again") from None


def _open(path: Path) -> np.lib.npyio.NpzFile:
    try:
        file = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise ValueError(f"there is no {path}; copy the data set again") from None
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as .npz ({error}); copy it again") from None
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError(f"{path} is a single array (.npy), no .npz")
    return file


def _head(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the order is Fortran's, type; leaves the file where the numbers begin."""
    with _HEADS:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(file)


def _array(file: np.lib.npyio.NpzFile, path: Path, key: str) -> np.ndarray:
    assert file.zip is not None
    try:
        with file.zip.open(f"{key}.npy") as member:
            shape, fortran, dtype = _head(member)
            if dtype.hasobject:
                raise ValueError("it holds objects")
            return np.frombuffer(member.read(), dtype).copy().reshape(shape, order="F" if fortran else "C")
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path}, key {key!r}: {error}; copy the file again, or write it without objects") from None
