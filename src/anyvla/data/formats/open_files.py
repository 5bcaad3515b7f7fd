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
from anyvla.files.inside import regular


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
        key = (os.getpid(), str(path), *stat_of(regular(path)))
        kept = self._kept()
        if key not in kept:
            kept[key] = self._opener(path)
            if len(kept) > self._most:
                kept.popitem(last=False)[1].close()
        kept.move_to_end(key)
        return kept[key]

    def drop(self) -> None:
        """Close what this thread has open: after an error, its state is not known."""
        kept = self._kept()
        while kept:
            kept.popitem()[1].close()

    def _kept(self) -> OrderedDict[tuple[int | str, ...], T]:
        if not hasattr(self._local, "kept"):
            self._local.kept = OrderedDict()
        return self._local.kept
