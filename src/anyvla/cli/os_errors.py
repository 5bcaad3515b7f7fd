"""Explain an error of the operating system in one line: the path, the reason and the remedy."""

from __future__ import annotations

import errno

_RUN_AGAIN = "Everything reported so far is kept: free some space and run the same command again"
_REMEDIES = {
    errno.ENOSPC: _RUN_AGAIN,
    errno.EDQUOT: _RUN_AGAIN,
    errno.EACCES: "Choose a path that you may read and write, or change its permissions",
    errno.EPERM: "Choose a path that you may read and write, or change its permissions",
    errno.EROFS: "Choose a folder on a disk that can be written",
    errno.ENOENT: "Check the path",
    errno.ENOTDIR: "A part of the path is a file: choose another path",
    errno.EISDIR: "A file is needed there: choose another path",
    errno.EEXIST: "Choose another path, or remove it",
    errno.ENOTEMPTY: "Choose another folder, or empty it",
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.ELOOP: "Its symbolic links form a loop: remove them",
    errno.EMFILE: "Allow more open files (ulimit -n 8192), or use fewer workers",
    errno.ENFILE: "The system has too many open files: close other programs",
    errno.ENOMEM: "Free some memory, or use fewer workers",
    errno.EIO: "The disk or the network drive reports a fault: check it, then run the same command again",
    errno.ESTALE: "The network drive was mounted again: run the same command again",
    errno.ETIMEDOUT: "Check the network drive, then run the same command again",
    errno.EADDRINUSE: "Choose another port, or stop the program that uses it",
}


def explain(error: Exception) -> str:
    """Return the message of an error. Those raised by anyvla name the remedy already and are returned unchanged."""
    if isinstance(error, UnicodeEncodeError):  # a library could not encode a path
        return f"{error.object!r} cannot be encoded in this locale: set PYTHONUTF8=1 and run it again"
    if not isinstance(error, OSError):
        return str(error)
    if error.errno is None or not error.strerror or ": " in error.strerror:
        return error.strerror or str(error)
    paths = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    reason = error.strerror[0].lower() + error.strerror[1:]
    remedy = _REMEDIES.get(error.errno)
    return (f"{paths}: {reason}" if paths else reason) + (f". {remedy}" if remedy else "")
