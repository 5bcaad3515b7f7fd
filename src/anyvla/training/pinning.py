"""Puts batches into pinned memory ahead, so that their copies to a GPU need no time of the thread that trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from anyvla.data.threads import compute_alone
from anyvla.types import Batch

AHEAD = 2  # batches in pinned memory beside the one in use


def pin_ahead(batches: Generator[Batch, None, None], device: torch.device) -> Generator[Batch, None, None]:
    """Return batches in pinned memory if they are for a GPU, else `batches` itself.

    A thread takes and pins the next ones while one is used. The generator raises the errors of `batches`. When it is
    closed, it closes `batches`, after the batch that the thread waits for.
    """
    return _pin_in_thread(batches) if device.type == "cuda" else batches


def _pin_in_thread(batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    pinned = _pin(batches)
    with ThreadPoolExecutor(1, thread_name_prefix="pin", initializer=compute_alone) as pool:
        coming: deque[Future[Batch | None]] = deque(pool.submit(next, pinned, None) for _ in range(AHEAD))
        try:
            while (batch := coming.popleft().result()) is not None:
                coming.append(pool.submit(next, pinned, None))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)
            batches.close()


def _pin(batches: Iterator[Batch]) -> Iterator[Batch]:
    for batch in batches:
        yield batch.pin_memory()
