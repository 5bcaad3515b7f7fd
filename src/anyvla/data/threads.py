"""Runs a function over the episodes or the files of a data set in a few threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_THREADS = 4
_BLOCK = 64  # items whose results may wait in memory


def map_in_threads(
    function: Callable[[T], R], items: Sequence[T], progress: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[R]:
    """Yield the results of a function, in the order of the items. `progress(done, total)` counts items."""
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), thread_name_prefix="read") as pool:
        for first in range(0, len(items), _BLOCK):
            block = items[first : first + _BLOCK]
            yield from pool.map(function, block)
            progress(first + len(block), len(items))
