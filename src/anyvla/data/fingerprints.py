"""Computes fingerprints: hashes of the whole contents of a data set's files, and of their meaning.

Equal contents have equal fingerprints, wherever the files are. Each file is hashed in full once. The cache keeps its
hash by path, size, inode and times, and the hash is reused while these are the same. The kernel sets the time of change
(ctime) at every write, so restoring the time of modification does not hide an edit. A file that changed in the last
seconds is hashed each time, since clocks of file systems are coarse.

Two edits stay hidden: one that sets the clock of the machine back, and one on a network file system whose clock is
more than `_RECENT_NS` behind. Removing the folder `hashes` of the cache makes every file be hashed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from anyvla.data import cache_folder
from anyvla.data.threads import map_in_threads
from anyvla.files.inside import check_regular

log = logging.getLogger(__name__)

# The version of the method, which begins each fingerprint. Without one, only heads and tails of files were hashed.
VERSION = "2-"
_BLOCK = 512  # files
_AT_ONCE = 1 << 20  # bytes read together
_REPORT_S = 10.0  # between two reports of progress
_RECENT_NS = 2_000_000_000  # the coarsest clock of a file system in use (FAT)
_HASHES = "hashes"

FileState = tuple[int, int, int, int]  # size, inode, times of modification and of change in nanoseconds
_taken: dict[Path, FileState] = {}  # the files whose hashes this process used, and their state then


def hash_files(root: Path, files: Iterable[Path], meaning: str) -> str:
    """Return the fingerprint of the contents and names of files below `root`, and of their meaning.

    Raises ValueError for a file that is missing, is no regular file or changes while it is hashed.
    """
    return combine(meaning, *_join_hashes(_hashes(root, sorted(files))))


def hash_many_files(root: Path, files: Sequence[Path], meaning: str) -> str:
    """Return the fingerprint of many small files, with hashes cached in blocks. Raises like `hash_files`."""
    parts, report = list[str](), _Progress(root, len(files), "files")
    for begin in range(0, len(files), _BLOCK):
        block = files[begin : begin + _BLOCK]
        name = cache_key(root, block, "contents")
        known = cache_folder.read("blocks", name)
        if known is None:
            known = combine(*_join_hashes({of.name: of.digest for of in _hash_in_order(root, block)})).encode()
            cache_folder.write("blocks", name, known)
        parts.append(known.decode())
        report.count(len(block))
    return combine(meaning, *parts)


def combine(*parts: str) -> str:
    """Return one fingerprint of several fingerprints or texts, in order."""
    return VERSION + hashlib.sha256("\n".join(f"{len(p)}:{p}" for p in parts).encode()).hexdigest()


def are_comparable(one: str, other: str) -> bool:
    """Return whether both come from the same method, so that they differ only if the data differs."""
    return one.startswith(VERSION) == other.startswith(VERSION)


def cache_key(root: Path, files: Iterable[Path], meaning: str) -> str:
    """Return the name of a cache entry for results computed from these files, without reading them.

    The name depends on sizes, inodes and times, so it changes with every edit, but also with a copy. Only files that
    changed in the last seconds are hashed.
    """
    now = time.time_ns()
    found = {_name(root, path): _state_of(path) for path in sorted(files)}
    recent = [root / name for name, seen in found.items() if not _settled(seen, now)]
    return combine(meaning, str(root.resolve()), json.dumps(found), json.dumps(_hashes(root, recent)))


def find_edited(roots: Collection[Path]) -> list[Path]:
    """Return the files below `roots` that were edited or removed since this process took their hashes."""
    return [
        path
        for path, seen in _taken.items()
        if any(path.is_relative_to(root) for root in roots) and not (path.is_file() and stat_of(path) == seen)
    ]


def stat_of(path: Path) -> FileState:
    """Return size, inode and times of a file: values that change with every edit."""
    return _as_state(path.stat())


class _Hash(NamedTuple):
    name: str
    seen: FileState
    digest: str
    settled: bool  # the last change was so long ago that every later edit changes `seen`


class _Progress:
    """Logs the progress of a long computation from time to time."""

    def __init__(self, root: Path, total: float, unit: str) -> None:
        self._root, self._total, self._unit, self._done = root, total, unit, 0.0
        self._reported, self._lock = time.monotonic(), threading.Lock()

    def count(self, more: float) -> None:
        """Add to the amount done."""
        with self._lock:
            self._done += more
            if time.monotonic() - self._reported > _REPORT_S:
                self._reported = time.monotonic()
                progress = f"{self._done:.4g} of {self._total:.4g} {self._unit}"
                log.warning("fingerprint of %s, made once: %s", self._root, progress)


def _hashes(root: Path, files: Iterable[Path]) -> dict[str, str]:
    """Return the hash of each file by its name below `root`, from the cache where the file is unchanged."""
    kept_as = hashlib.sha256(str(root.resolve()).encode()).hexdigest() + ".json"
    kept: dict[str, tuple[Sequence[int], str]] = json.loads(cache_folder.read(_HASHES, kept_as) or b"{}")
    out, missing = dict[str, str](), list[Path]()
    for path in files:
        before, out[_name(root, path)] = kept.get(_name(root, path), ((), ""))
        _taken[path] = _state_of(path)
        if tuple(before) != _taken[path]:
            missing.append(path)
    saved, new = time.monotonic(), False
    for number, of in enumerate(_hash_in_order(root, missing), 1):
        out[of.name], _taken[root / of.name] = of.digest, of.seen
        if of.settled:
            kept[of.name], new = (of.seen, of.digest), True
        if new and (number == len(missing) or time.monotonic() - saved > _REPORT_S):  # an interruption loses little
            cache_folder.write(_HASHES, kept_as, json.dumps(kept).encode())
            saved, new = time.monotonic(), False
    return out


def _hash_in_order(root: Path, files: Sequence[Path]) -> Iterator[_Hash]:
    """Hash files in full, several at once, in order."""
    report = _Progress(root, sum(path.stat().st_size for path in files) / 1e9, "GB")
    return map_in_threads(lambda path: _hash(root, path, report), files)


def _hash(root: Path, path: Path, report: _Progress) -> _Hash:
    now, digest = time.time_ns(), hashlib.sha256()
    with check_regular(path).open("rb") as file:
        before = _as_state(os.fstat(file.fileno()))
        left = before[0] + 1  # a limit for files that grow
        while left > 0 and (part := file.read(min(left, _AT_ONCE))):
            digest.update(part)
            left -= len(part)
            report.count(len(part) / 1e9)
        if before != _as_state(os.fstat(file.fileno())):
            raise ValueError(f"{path} changed while it was read: wait until it is complete, then start again")
    return _Hash(_name(root, path), before, digest.hexdigest(), _settled(before, now))


def _join_hashes(hashes: Mapping[str, str]) -> list[str]:
    return [f"{name}:{digest}" for name, digest in hashes.items()]


def _state_of(path: Path) -> FileState:
    """Return `stat_of(path)`. Raises ValueError if there is no such regular file."""
    try:
        return stat_of(check_regular(path))
    except FileNotFoundError:
        raise ValueError(f"there is no {path}; copy the data set again") from None


def _as_state(of: os.stat_result) -> FileState:
    return of.st_size, of.st_ino, of.st_mtime_ns, of.st_ctime_ns


def _settled(seen: FileState, now: int) -> bool:
    return max(seen[2:]) <= now - _RECENT_NS


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
