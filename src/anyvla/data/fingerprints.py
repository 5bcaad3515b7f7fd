"""Fingerprints: hashes of the whole contents of a data set's files, and of what they mean.

A fingerprint travels: checkpoints, codecs and conversions carry it to say which data they are made of. Equal contents
have equal fingerprints, wherever the files are. Each file is hashed in full once. Its hash is kept in the cache by
path, size, inode and times of modification and of change, and is taken again while these are the same. The time of
change (ctime) is set by the kernel at every write, so that restoring the time of modification does not hide an edit.
A file that changed in the last seconds is hashed each time, since clocks of file systems are coarse.

Two edits stay hidden: one that sets the clock of the machine back, and one on a network file system whose clock is
more than `_RECENT_NS` behind. Removing the folder `hashes` of the cache makes every file be hashed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from anyvla.data import stored

log = logging.getLogger(__name__)

# Of the way fingerprints are made, and their first characters. Without a version: heads and tails of files only.
VERSION = "2-"
_THREADS = 4
_BLOCK = 512  # files
_REPORT_S = 10.0  # between two reports of progress
_RECENT_NS = 2_000_000_000  # the coarsest clock of a file system in use (FAT)
_HASHES = "hashes"

Seen = tuple[int, int, int, int]  # size, inode, times of modification and of change in nanoseconds


def of_files(root: Path, files: Iterable[Path], meaning: str) -> str:
    """Return the fingerprint of the contents and names of files below `root`, and of what they mean.

    Raises ValueError for a file that changes while it is hashed.
    """
    return derived(meaning, *_listed(_hashes(root, sorted(files))))


def of_many(root: Path, files: Sequence[Path], meaning: str) -> str:
    """Return the fingerprint of so many small files that their hashes are kept in blocks."""
    parts, reported = list[str](), time.monotonic()
    for begin in range(0, len(files), _BLOCK):
        block = files[begin : begin + _BLOCK]
        name = state(root, block, "contents")
        known = stored.read("blocks", name)
        if known is None:
            found = _hashed(root, {_name(root, path): path for path in block})
            known = derived(*_listed({name: digest for name, _, digest, _ in found})).encode()
            stored.keep("blocks", name, known)
        parts.append(known.decode())
        if time.monotonic() - reported > _REPORT_S:
            reported = time.monotonic()
            log.warning("fingerprint of %s, made once: %d of %d files", root, begin + len(block), len(files))
    return derived(meaning, *parts)


def derived(*parts: str) -> str:
    """Return the fingerprint of what is made of other fingerprints, or of texts."""
    return VERSION + hashlib.sha256("\n".join(f"{len(p)}:{p}" for p in parts).encode()).hexdigest()


def comparable(one: str, other: str) -> bool:
    """Return whether both were made in the same way, so that they differ only if the data differ."""
    return one.startswith(VERSION) == other.startswith(VERSION)


def state(root: Path, files: Iterable[Path], meaning: str) -> str:
    """Return a name for what is computed from these files here and kept in the cache: no file is read for it.

    It follows from sizes, inodes and times, so that it changes with every edit, but also with a copy. Only files that
    changed in the last seconds are hashed.
    """
    found = {_name(root, path): _needed(path) for path in sorted(files)}
    recent = [root / name for name, of in found.items() if _recent(of)]
    return derived(meaning, str(root.resolve()), json.dumps(found), json.dumps(_hashes(root, recent)))


def _listed(hashes: Mapping[str, str]) -> list[str]:
    return [f"{name}:{digest}" for name, digest in hashes.items()]


def _hashes(root: Path, files: Iterable[Path]) -> dict[str, str]:
    """Return the hash of each file by its name below `root`, from the cache where the file is as it was."""
    kept_as = hashlib.sha256(str(root.resolve()).encode()).hexdigest() + ".json"
    kept: dict[str, tuple[Sequence[int], str]] = json.loads(stored.read(_HASHES, kept_as) or b"{}")
    out, missing = dict[str, str](), dict[str, Path]()
    for path in files:
        name = _name(root, path)
        before, out[name] = kept.get(name, ((), ""))
        if tuple(before) != _needed(path):
            missing[name] = path
    certain = False
    for name, seen, digest, report in _hashed(root, missing):
        out[name] = digest
        if not _recent(seen):
            kept[name], certain = (seen, digest), True
        if report and certain:  # an interruption loses little
            stored.keep(_HASHES, kept_as, json.dumps(kept).encode())
    return out


def _hashed(root: Path, files: Mapping[str, Path]) -> Iterator[tuple[str, Seen, str, bool]]:
    """Hash files in full, several at once. The last value says to save now: from time to time, and at the end."""
    total, done, reported = sum(p.stat().st_size for p in files.values()), 0, time.monotonic()
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), thread_name_prefix="hashes") as pool:
        hashes = zip(files, pool.map(_hash, files.values()), strict=True)
        for number, (name, (seen, digest)) in enumerate(hashes, 1):
            done += seen[0]
            report = time.monotonic() - reported > _REPORT_S
            if report:
                reported = time.monotonic()
                log.warning("fingerprint of %s, made once: %.1f of %.1f GB", root, done / 1e9, total / 1e9)
            yield name, seen, digest, report or number == len(files)


def _hash(path: Path) -> tuple[Seen, str]:
    with path.open("rb") as file:
        before = stat_of(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if before != stat_of(file.fileno()):
            raise ValueError(f"{path} changed while it was read: wait until it is complete, then start again")
    return before, digest


def stat_of(file: Path | int) -> Seen:
    """Return what changes with every edit of a file."""
    of = os.fstat(file) if isinstance(file, int) else file.stat()
    return of.st_size, of.st_ino, of.st_mtime_ns, of.st_ctime_ns


def _needed(path: Path) -> Seen:
    try:
        return stat_of(path)
    except FileNotFoundError:
        raise ValueError(f"there is no {path}; copy the data set again") from None


def _recent(seen: Seen) -> bool:
    return max(seen[2:]) > time.time_ns() - _RECENT_NS


def _name(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()
