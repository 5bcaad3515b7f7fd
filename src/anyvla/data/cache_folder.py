"""Reads and writes the cache folder, which holds indices and statistics of data sets.

The cache is optional. Without a writable folder everything is computed again, after one warning. Every file begins with
a checksum of its contents, so that a damaged file is detected and made again.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import logging
import multiprocessing
import os
from pathlib import Path

from anyvla.files import durable

log = logging.getLogger(__name__)

_MARK = b"anyvla cache 1\n"  # files of another version are made again


def read(kind: str, name: str) -> bytes | None:
    """Return the contents of `kind/name`; None if they are absent, damaged or unreadable."""
    try:
        path = _folder() / kind / name
        whole = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        _warn_once(_root(), error.strerror)
        return None
    contents = whole[len(_head(name, b"")) :]
    if whole != _head(name, contents) + contents:
        log.warning("the cache file %s is damaged or of another version; it is made again", path)
        return None
    return contents


def write(kind: str, name: str, contents: bytes) -> None:
    """Write contents to `kind/name` in `$ANYVLA_CACHE` (`~/.cache/anyvla`). Warn once if that is impossible."""
    try:
        path = _folder() / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write(path, _head(name, contents) + contents, to_disk=False)
    except OSError as error:
        _warn_once(_root(), error.strerror)


def _root() -> Path:
    own = os.environ.get("ANYVLA_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "anyvla"


def _folder() -> Path:
    try:
        return _root().expanduser()
    except RuntimeError:  # a user of a container may have no home
        raise OSError(errno.ENOENT, "this user has no home directory") from None


def _head(name: str, contents: bytes) -> bytes:
    return _MARK + hashlib.sha256(name.encode() + contents).digest()


@functools.cache
def _warn_once(root: Path, reason: str) -> None:
    if multiprocessing.parent_process() is None:  # a pool of workers would repeat it
        log.warning(
            "the cache folder %s cannot be used (%s): indices and statistics are computed again in each run. Set "
            "ANYVLA_CACHE to a folder that you may write",
            root,
            reason,
        )
