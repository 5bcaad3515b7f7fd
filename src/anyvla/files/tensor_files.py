"""Open the tensors of one safetensors file, or of several with an index, as one.

Several files are the shards `NAME-00001-of-00004.safetensors` and so on, and the index `NAME.safetensors.index.json`,
in the format of Hugging Face. Every function takes the path of the one file, `NAME.safetensors`, and finds either form.
Whoever made the folder wrote the index, so that its names are not trusted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from anyvla.files.documents import as_mapping, read_object, regular_size
from anyvla.files.inside import check_name, resolve_inside

MOST_SHARDS = 500  # each is an open file, and systems allow 1,024
_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.safetensors")
_AGAIN = "copy the folder again, whole"
IDENTITY = "checkpoint"  # metadata of index and shards: equal where they were written together


class Tensors(Protocol):
    """Named tensors in files."""

    def keys(self) -> Sequence[str]: ...

    def get_tensor(self, name: str) -> Tensor: ...

    def get_slice(self, name: str) -> Any: ...


def index_path(path: Path) -> Path:
    """Return the path of the index if the tensors are in several files."""
    return path.with_name(path.name + ".index.json")


def shard_path(path: Path, number: int, count: int) -> Path:
    """Return the path of a shard, `number` from 1 to `count`."""
    return path.with_name(f"{path.stem}-{number:05d}-of-{count:05d}{path.suffix}")


def exist(path: Path) -> bool:
    """Return whether there is the one file, or an index."""
    return os.path.lexists(path) or os.path.lexists(index_path(path))


def list_files(path: Path) -> list[Path]:
    """Return the one file, or the index and its shards in order. Raises ValueError for an index that is refused."""
    if not os.path.lexists(index_path(path)):
        return [path]
    return [index_path(path), *_shards(path, _read_index(path))]


def size(path: Path) -> int:
    """Return the bytes of all files. Raises ValueError like `list_files`."""
    return sum(file.stat().st_size for file in list_files(path))


@contextmanager
def opened(path: Path) -> Iterator[Tensors]:
    """Open the tensors at `path`.

    Raises a ValueError that names the file if one is missing, no regular file or damaged, if the index and its shards
    do not belong together, or if a tensor is in two of them.
    """
    with ExitStack() as stack, _naming(path):
        yield _open_shards(path, stack) if os.path.lexists(index_path(path)) else _open(path, stack)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): copy the folder again, whole") from error


def _open(path: Path, stack: ExitStack) -> safe_open:
    regular_size(path)
    with _naming(path):
        return stack.enter_context(safe_open(path, "pt", backend="pread"))  # a memory map would hold the file as well


class _Shards:
    """The tensors of several open files."""

    def __init__(self, holders: Mapping[str, safe_open]) -> None:
        self._holders = holders

    def keys(self) -> list[str]:
        return list(self._holders)

    def get_tensor(self, name: str) -> Tensor:
        return self._holders[name].get_tensor(name)

    def get_slice(self, name: str) -> Any:
        return self._holders[name].get_slice(name)


def _open_shards(path: Path, stack: ExitStack) -> _Shards:
    index, document = index_path(path), _read_index(path)
    holders: dict[str, safe_open] = {}
    for shard in _shards(path, document):
        file = _open(shard, stack)
        if (file.metadata() or {}).get(IDENTITY) != document.identity:
            raise ValueError(f"{shard} is of another checkpoint than {index}: {_AGAIN}")
        held = list(file.keys())
        if twice := holders.keys() & held:
            raise ValueError(f"{shard} holds {join_first(twice)}, and so does another shard: {_AGAIN}")
        if strange := [name for name in held if document.shard_of.get(name) != shard.name]:
            raise ValueError(f"{shard} holds {join_first(strange)}, which {index} does not name there: {_AGAIN}")
        holders |= dict.fromkeys(held, file)
    if lacking := document.shard_of.keys() - holders.keys():
        raise ValueError(f"{index} names {join_first(lacking)}, which its shards lack: {_AGAIN}")
    return _Shards(holders)


@dataclass(frozen=True)
class _Index:
    shard_of: Mapping[str, str]  # the name of the file of each tensor
    identity: str | None


def _read_index(path: Path) -> _Index:
    """Return the index of a path without the one file. Raises ValueError for names that no shard has."""
    index = index_path(path)
    if os.path.lexists(path):
        raise ValueError(f"there are both {path} and {index}: {_AGAIN}")
    document = read_object(index)
    shard_of = as_mapping(document.get("weight_map"), f"{index}, weight_map")
    for name in shard_of.values():
        if not isinstance(name, str) or not _SHARD.fullmatch(name) or not name.startswith(f"{path.stem}-"):
            check_name(name, index)
            raise ValueError(f"{index} names the file {name[:200]!r}, expected {shard_path(path, 1, 2).name}: {_AGAIN}")
    identity = as_mapping(document.get("metadata", {}), f"{index}, metadata").get(IDENTITY)
    return _Index(shard_of, None if identity is None else str(identity))


def _shards(path: Path, document: _Index) -> list[Path]:
    """Return the paths of the shards in order. Raises ValueError if one is missing, or one too many is there."""
    named, index = set(document.shard_of.values()), index_path(path)
    if not 0 < len(named) <= MOST_SHARDS:
        raise ValueError(f"{index} names {len(named):,} files, expected 1 to {MOST_SHARDS}: {_AGAIN}")
    wanted = [shard_path(path, number, len(named)) for number in range(1, len(named) + 1)]
    if odd := named ^ {shard.name for shard in wanted}:
        raise ValueError(f"{index} names {len(named)} files, but not as shards of one another ({join_first(odd)})")
    there = {p.name for p in path.parent.iterdir() if _SHARD.fullmatch(p.name) and p.name.startswith(f"{path.stem}-")}
    if foreign := there - named:
        raise ValueError(f"{index} does not name {join_first(foreign)}, which is beside it: {_AGAIN}")
    return [resolve_inside(path.parent, shard.name) for shard in wanted]


def join_first(names: Iterable[str], most: int = 4) -> str:
    """Return the first of many names, for a message."""
    listed = sorted(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
