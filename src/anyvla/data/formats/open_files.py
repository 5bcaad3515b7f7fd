"""Files kept open between reads: the last few of each thread, anew in a forked process and where a file was replaced.

A reader that may be pickled and called by several threads keeps paths only, and asks here for what is open.
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
    """`files(path)`: what `opener(path)` gives, kept open; each thread has at most `most` of them.

    An object belongs to the thread that asked for it, until that thread asks for another.
    """

    def __init__(self, opener: Callable[[Path], T], most: int) -> None:
        self._opener, self._most = opener, most
        self._local = threading.local()

    def __call__(self, path: Path) -> T:
        # A fork must not share its parent's position; a file that was edited must be opened anew; a pipe would hang.
        key = (os.getpid(), str(path), *stat_of(check_regular(path)))
        files = self._open_files()
        if key not in files:
            files[key] = self._opener(path)
            if len(files) > self._most:
                files.popitem(last=False)[1].close()
        files.move_to_end(key)
        return files[key]

    def close_all(self) -> None:
        """Close what this thread has open: after an error, its state is not known."""
        files = self._open_files()
        while files:
            files.popitem()[1].close()

    def _open_files(self) -> OrderedDict[tuple[int | str, ...], T]:
        if not hasattr(self._local, "files"):
            self._local.files = OrderedDict()
        return self._local.files
