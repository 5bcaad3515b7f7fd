"""Opens HDF5 files and reads their arrays, with errors that name the file and the key.

An HDF5 file can refer to other files: by links, as raw storage of an array, as sources of a virtual array. The library
would open them silently, so names are resolved here step by step and those that leave the file are refused. A file can
also promise arrays that it does not hold; their size is compared with the stored bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from anyvla.data.formats.data_files import list_files
from anyvla.data.formats.open_files import OpenFiles
from anyvla.data.formats.vectors import check_real
from anyvla.files.inside import regular_files

SUFFIXES = (".hdf5", ".h5")
# An array may have this many bytes in any case, or this many times its stored bytes (an hour of black frames).
_FREE_BYTES, _RATIO = 256 << 20, 100
# h5py raises these for damaged files.
_DAMAGE_ERRORS = (OSError, RuntimeError, KeyError, MemoryError, TypeError, OverflowError, UnicodeError)
_MOST_LINKS, _DEEPEST, _MOST_NAMES = 16, 8, 10_000


def find_files(root: Path) -> list[Path]:
    """Return the HDF5 files of a data set: `root`, or the files in it. Raises ValueError if there are none."""
    files = regular_files(root, (p for p in list_files(root) if p.suffix in SUFFIXES)) if root.is_dir() else [root]
    if not files:
        raise ValueError(f"{root} holds no file *.hdf5 or *.h5")
    return files


def open_file(path: Path) -> Any:
    """Return an `h5py.File` that stays open for this thread. Raises a ValueError that names the file."""
    try:
        return _files(path)
    except FileNotFoundError:
        raise ValueError(f"there is no {path}; copy the data set again") from None
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read as HDF5 ({error}); copy it again") from None


def read_array(path: Path, key: str) -> np.ndarray:
    """Return a whole array of the file."""
    found = open_array(path, key)
    with errors_naming(path, key):
        return np.asarray(found[()])


def read_numbers(path: Path, key: str) -> np.ndarray:
    """Return a whole array of real numbers. Raises ValueError for text, complex numbers and records."""
    found = open_array(path, key)
    check_real(found.dtype, f"{path}: {key}")
    return read_array(path, key)


def open_array(path: Path, key: str) -> Any:
    """Return an `h5py.Dataset`. Raises a ValueError that names file and key if it promises more than is stored."""
    import h5py

    with errors_naming(path, key):
        found = open_node(path, key)
        if not isinstance(found, h5py.Dataset) or found.shape is None:
            raise ValueError(f"{path}: {key!r} is not an array")
        if found.external or found.is_virtual:
            raise ValueError(
                f"{path}: {key!r} keeps its numbers in another file, which is not read; copy them into this file"
            )
        if h5py.check_ref_dtype(found.dtype) is not None:
            raise ValueError(f"{path}: {key!r} holds references, expected numbers, text or images")
        chunk = math.prod(found.chunks or (0,)) * found.dtype.itemsize
        size, stored = math.prod(found.shape) * found.dtype.itemsize, found.id.get_storage_size()
        if size > max(_FREE_BYTES, _RATIO * stored) or chunk > 4 * _FREE_BYTES:
            raise ValueError(f"{path}: {key!r} promises {size} bytes {found.shape}, {stored} are stored")
        return found


def open_node(path: Path, key: str) -> Any:
    """Return the array or group of this name. Raises a ValueError that lists the existing names if it is missing."""
    file = open_file(path)
    try:
        with errors_naming(path, key):
            return _follow(file, key, path)
    except _AbsentError:
        parent = key.strip("/").rpartition("/")[0]
        while parent and not has_key(path, parent):
            parent = parent.rpartition("/")[0]
        around = open_node(path, parent)
        inside = ", ".join(child_names(around)[:40]) or "nothing" if hasattr(around, "keys") else "numbers"
        raise ValueError(f"{path} has no {key!r}; {parent or '/'} holds: {inside}") from None


def has_key(path: Path, key: str) -> bool:
    """Return whether the file has this array or group. Raises ValueError if it is in another file."""
    with errors_naming(path, key):
        try:
            _follow(open_file(path), key, path)
        except _AbsentError:
            return False
    return True


def read_attribute(path: Path, key: str, name: str) -> Any:
    """Return an attribute of an array or group, bytes as text; None if it is missing."""
    with errors_naming(path, key):
        return as_text(open_node(path, key).attrs.get(name))


def read_json_attribute(path: Path, key: str, name: str) -> dict[str, Any]:
    """Return the JSON object in an attribute, {} if it is missing. Raises a ValueError that names the file."""
    text = read_attribute(path, key, name)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: attribute {name!r} of {key!r} is not JSON ({error}); copy the file again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: attribute {name!r} of {key!r} holds no keys and values")
    return value


def as_text(value: Any) -> Any:
    """Return bytes as text, anything else as it is."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def child_names(group: Any) -> list[str]:
    """Return the names in a group, except names that are not UTF-8, which h5py gives as bytes."""
    return [name for name in group if isinstance(name, str)]


def find_arrays(path: Path, key: str) -> dict[str, Any]:
    """Return the arrays below a group by name, without following links."""
    import h5py

    found, waiting, seen = dict[str, Any](), [("", open_node(path, key))], 0
    with errors_naming(path, key):
        while waiting:
            name, at = waiting.pop()
            if isinstance(at, h5py.Dataset):
                found[name] = at
                continue
            for child in child_names(at):
                seen += 1
                if seen > _MOST_NAMES:
                    raise ValueError(f"{path}: {key or '/'} holds more than {_MOST_NAMES} names")
                hard = at.id.links.get_info(child.encode()).type == h5py.h5l.TYPE_HARD
                if hard and name.count("/") < _DEEPEST:
                    waiting.append((f"{name}/{child}".lstrip("/"), _follow(at, child, path)))
    return dict(sorted(found.items()))


@contextmanager
def errors_naming(path: Path, key: str) -> Iterator[None]:
    """Turn h5py's errors for damaged files into a ValueError that names the file and the key."""
    try:
        yield
    except _DAMAGE_ERRORS as error:
        raise ValueError(f"{path}, key {key!r} cannot be read ({error}); copy the file again") from None


class _AbsentError(Exception):
    """There is no array or group of this name."""


def _follow(file: Any, key: str, path: Path) -> Any:
    """Return the array or group of a name. Raises _AbsentError if it is missing, ValueError if elsewhere."""
    import h5py

    at, parts, links = file, key.split("/"), 0
    while parts:
        name = parts.pop(0)
        if name in ("", "."):
            continue
        if not isinstance(at, h5py.Group) or not at.id.links.exists(name.encode()):
            raise _AbsentError(name)
        kind = at.id.links.get_info(name.encode()).type
        if kind == h5py.h5l.TYPE_HARD:
            at = at[name]
            continue
        if kind != h5py.h5l.TYPE_SOFT:
            target = at.get(name, getlink=True)
            raise ValueError(
                f"{path}: {name!r} of {key!r} is a link to the file {getattr(target, 'filename', '')!r}, which is not "
                "read: HDF5 may name its own arrays only; copy them into it"
            )
        links += 1
        if links > _MOST_LINKS:
            raise ValueError(f"{path}: {key!r} is a cycle of links")
        target = at.get(name, getlink=True).path
        at = file if target.startswith("/") else at
        parts = [*target.split("/"), *parts]
    return at


def _open(path: Path) -> Any:
    try:
        import h5py  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise ImportError("HDF5 files are read by h5py: pip install 'anyvla[hdf5]'") from None
    return h5py.File(path, "r")


_files: OpenFiles[Any] = OpenFiles(_open, most=8)
