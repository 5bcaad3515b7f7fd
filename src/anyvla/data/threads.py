"""Threads that read and prepare data beside the thread that computes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_THREADS = 4
_BLOCK = 64  # items whose results may wait in memory
_starting = threading.Lock()


def map_in_threads(
    function: Callable[[T], R], items: Sequence[T], progress: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[R]:
    """Yield the results of a function, in the order of the items. `progress(done, total)` counts items."""
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), thread_name_prefix="read") as pool:
        for first in range(0, len(items), _BLOCK):
            block = items[first : first + _BLOCK]
            yield from pool.map(function, block)
            progress(first + len(block), len(items))


def compute_alone() -> None:
    """Let PyTorch use no helper threads in the calling thread: for threads beside the one that trains or acts.

    OpenMP keeps helpers for each thread that has used them. Once all of them together outnumber the cores, GNU's OpenMP
    no longer spins at the end of a parallel loop: every thread then sleeps there, which slowed down the steps of the
    quickstart by 12 to 46 % on two cores. `torch.set_num_threads` changes the calling thread, but also the default of
    the threads that use PyTorch for the first time later on; a thread that only does that sets the default back.
    """
    import torch

    with _starting:
        default = torch.get_num_threads()
        torch.set_num_threads(1)
        other = threading.Thread(target=torch.set_num_threads, args=(default,))
        other.start()
        other.join()
