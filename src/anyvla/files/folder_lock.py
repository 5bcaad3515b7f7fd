"""Lock a folder for one command at a time: two would destroy or double each other's results.

The kernel holds the lock (`flock` of a small file) and drops it when the process ends, however it ends. Nothing needs
to be cleaned up after a crash, and process numbers, which mean nothing in another container, decide nothing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)  # where no file can be made, no work can be written either
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a file system
_RACES = 100  # lost in a row; an error that lasts is raised after them


class FolderInUse(RuntimeError):
    """Another command works in the folder."""


@dataclass
class _Lock:
    file: int
    thread: int
    depth: int = 1


_held: dict[Path, _Lock] = {}  # of this process
_guard = threading.Lock()


def lock_folder(folder: Path) -> AbstractContextManager[None]:
    """Make `folder`, and keep other processes and threads out of it. Raises FolderInUse with the process that holds it.

    The same thread may enter again, since some commands run others.
    """
    return _holding(folder / ".lock", folder)


def lock_while_making(folder: Path) -> AbstractContextManager[None]:
    """Lock a folder that appears only when it is complete: like `lock_folder`, with the lock file beside the folder."""
    return _holding(folder.with_name(f".{folder.name}.lock"), folder)


@contextlib.contextmanager
def _holding(path: Path, folder: Path) -> Iterator[None]:
    made = [p for p in (path.parent, *path.parent.parents) if not p.exists()]
    key = path.absolute().parent.resolve() / path.name
    with _guard:
        lock = _held.get(key)
        if lock is None:
            file = _take(path, folder)
            if file is not None:
                _held[key] = _Lock(file, threading.get_ident())
        elif lock.thread == threading.get_ident():
            lock.depth += 1
        else:
            raise FolderInUse(f"{folder} is in use by another thread of this process")
    try:
        yield
    finally:
        with _guard:
            if key in _held:
                _held[key].depth -= 1
                if not _held[key].depth:
                    with contextlib.suppress(OSError):  # the folder may have moved
                        key.unlink()
                    os.close(_held.pop(key).file)
                    for empty in made:
                        with contextlib.suppress(OSError):
                            empty.rmdir()


def _take(path: Path, folder: Path) -> int | None:
    """Lock the file. Return its descriptor, or None where files cannot be made or locked."""
    if fcntl is None:
        return None
    try:
        while True:
            file = _open_in_its_folder(path)  # not inherited by processes that are spawned
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(file)
                if isinstance(error, BlockingIOError):
                    raise FolderInUse(_in_use(path, folder)) from None
                raise
            if _is(path, file):
                break
            os.close(file)  # its holder has removed it, so it no longer locks anything
    except OSError as error:
        if error.errno in _NO_LOCKS:
            logger.warning("%s: this file system has no locks. Let no other command work there", folder)
        elif error.errno not in _NOT_OURS:
            raise
        return None
    with contextlib.suppress(OSError):  # on a full disk the lock holds without a text
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(_me()).encode(), 0)
    return file


def _open_in_its_folder(path: Path) -> int:
    """Make the folder and open the file. Another command that ends may remove the folder at any moment."""
    for _ in range(_RACES):
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            path.parent.mkdir(parents=True, exist_ok=True)
            return _open(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return _open(path)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)  # another user's: it can be asked who holds it


def _is(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _me() -> dict[str, object]:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"pid": os.getpid(), "host": socket.gethostname(), "command": command[:200], "since": since}


def _in_use(path: Path, folder: Path) -> str:
    try:
        with path.open("rb") as file:
            who = json.loads(file.read(4096))
        by = f"`{who['command']}` (process {who['pid']} on {who['host']}, since {who['since']})"
    except (OSError, ValueError, KeyError, TypeError):  # it was just taken, or released
        by = "another command"
    return f"{folder} is in use by {by}: wait until that has ended, stop it, or choose another output folder"


def _drop_in_fork() -> None:
    """Close the inherited locks in a fork, which would otherwise keep them after the end of its parent."""
    global _guard
    _guard = threading.Lock()  # another thread may have held it
    for lock in _held.values():
        os.close(lock.file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_in_fork)
