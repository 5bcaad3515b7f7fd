"""Keeps files open between reads.

Readers may be pickled and called by several threads, so they store paths only and get the open file here. Each thread
keeps its last few files. A file is opened again in a forked process, and after it was replaced.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from anyvla.data.fingerprints import stat_of
from anyvla.files.inside import check_regular


class _Closable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closable)


class OpenFiles(Generic[T]):
    """Opens files with `opener` and keeps them open, at most `most` in each thread.

    An object returned by `files(path)` belongs to the calling thread until that thread asks for another one.
    """

    def __init__(self, opener: Callable[[Path], T], most: int) -> None:
        self._opener, self._most, self._local = opener, most, threading.local()

    def __call__(self, path: Path) -> T:
        # A fork must not share the file position of its parent, an edited file must be reopened, and a pipe would hang.
        key = (os.getpid(), str(path), *stat_of(check_regular(path)))
        files = self._open_files()
        if key not in files:
            files[key] = self._opener(path)
            if len(files) > self._most:
                files.popitem(last=False)[1].close()
        files.move_to_end(key)
        return files[key]

    def close_all(self) -> None:
        """Close all files of this thread; after an error, their state is unknown."""
        files = self._open_files()
        while files:
            files.popitem()[1].close()

    def _open_files(self) -> OrderedDict[tuple[int | str, ...], T]:
        if not hasattr(self._local, "files"):
            self._local.files = OrderedDict()
        return self._local.files
