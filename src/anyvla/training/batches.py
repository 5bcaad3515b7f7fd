"""Training batches in order, made ahead by a thread or by worker processes: the same ones in either case.

A batch is a pure function of (seed, step): which windows, which of their instructions, and how images are augmented.
Some rows of it, for one of several processes, are those of the whole batch.
Batches of workers come as arrays through pipes: tensors would need a /dev/shm that holds several batches.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from anyvla.data.threads import compute_alone
from anyvla.data.training.augment import augment
from anyvla.data.training.reading import ReadingNotes, read_notes
from anyvla.data.training.sampler import MixtureSampler
from anyvla.data.training.window import WindowDataset
from anyvla.robot.views import ViewConfig
from anyvla.training.action_tokens import ActionTokens
from anyvla.training.randomness import IMAGES, make_generators
from anyvla.types import Batch
from anyvla.worker_pool import WorkerDied, WorkerPool

if TYPE_CHECKING:
    from anyvla.training.config import TrainingConfig

logger = logging.getLogger(__name__)

_STOP_WAITS_S = 5.0  # for a batch, where schedulers kill half a minute after they asked
_SLOW = "the data's disk may hang, or an episode may be very long"


class StalledData(RuntimeError):
    """The workers gave no batch within the time allowed, which is short after a request to stop."""


class _Steps:
    """Makes the batch of a step, as arrays."""

    def __init__(
        self,
        windows: WindowDataset,
        config: TrainingConfig,
        view: ViewConfig,
        rows: range,
        tokens: ActionTokens | None,
    ) -> None:
        self.windows, self.config, self.view, self.rows, self.tokens = windows, config, view, rows, tokens
        self.sampler = MixtureSampler(windows.sizes, windows.shares.tolist(), config.batch_size, config.seed)

    def make(self, step: int) -> dict[str, Any]:
        arrays = self.windows.batch(self.sampler.sample(step).cut(self.rows))
        generators = make_generators(self.config.seed, step, IMAGES, self.rows)
        given, counts = torch.from_numpy(arrays["images"]), arrays["step_mask"].sum(1).tolist()
        images = augment(given, self.config.augment, self.view.crop, generators, counts)
        made = {**arrays, "images": images.numpy(), "first_row": self.rows.start, "counts": counts}
        if self.tokens is not None:
            chunks = (arrays[name] for name in ("actions", "action_mask", "step_mask", "robots"))
            made["tokens"] = self.tokens.encode(*chunks)
        return made


def make_batches(
    start: int,
    windows: WindowDataset,
    config: TrainingConfig,
    view: ViewConfig,
    workers: int,
    timeout_s: float,
    stop: Callable[[], bool] = lambda: False,
    rows: range | None = None,
    tokens: ActionTokens | None = None,
) -> Generator[Batch, None, None]:
    """Yield the batches of step `start` and after, each being made while earlier ones are used.

    `rows`: those of the whole batch that this process uses; None: all of them. No other window is read. `tokens`
    encodes the actions of a policy that writes tokens.

    Raises StalledData if worker processes give no batch for `timeout_s` seconds, or for a few after `stop()` is true,
    and WorkerDied if one of them dies. A thread cannot be ended: after `timeout_s` it is only reported.
    """
    steps = _Steps(windows, config, view, rows or range(config.batch_size), tokens)
    if workers:
        yield from _by_processes(steps, range(start, config.steps), workers, timeout_s, stop)
    else:
        yield from _by_thread(steps, range(start, config.steps), timeout_s)


def _by_thread(made: _Steps, steps: range, timeout_s: float) -> Generator[Batch, None, None]:
    with ThreadPoolExecutor(1, thread_name_prefix="data", initializer=compute_alone) as pool:
        try:
            for step, coming in _ahead(pool, made.make, steps, 2):
                while not wait([coming], timeout_s).done:
                    logger.warning("the batch of step %d has not come for %g s: %s", step + 1, timeout_s, _SLOW)
                yield to_batch(coming.result())
        finally:
            pool.shutdown(cancel_futures=True)


def _by_processes(
    made: _Steps, steps: range, workers: int, timeout_s: float, stop: Callable[[], bool]
) -> Generator[Batch, None, None]:
    remedy = "try fewer --data.workers (0: a thread) or a smaller --data.cache_gb"
    with (
        tempfile.TemporaryDirectory(prefix="anyvla-reading-") as notes,
        _naming_files(Path(notes)),
        WorkerPool(workers, _begin, (made, Path(notes)), remedy=remedy) as pool,
    ):
        try:
            for step, coming in _ahead(pool, _make, steps, 2 * workers):
                begin = time.monotonic()
                while not pool.finished([coming], 0.5):
                    if time.monotonic() - begin <= (_STOP_WAITS_S if stop() else timeout_s):
                        continue
                    raise StalledData(
                        f"the data workers gave no batch for {timeout_s:g} s at step {step + 1}: {_SLOW}. Try "
                        "--data.workers 0, or more patience with --data.worker_timeout_s"
                        f"{_mention(read_notes(Path(notes)), 'They are')}"
                    )
                yield to_batch(coming.result())
        finally:
            pool.kill()  # they only read


@contextlib.contextmanager
def _naming_files(notes: Path) -> Iterator[None]:
    """Add to WorkerDied what the worker was reading, from the folder of the workers' notes."""
    try:
        yield
    except WorkerDied as error:
        reading = _mention(read_notes(notes, *error.processes), "It was")
        raise WorkerDied(f"{error}{reading}", error.processes) from error


def _mention(notes: list[str], who: str) -> str:
    return f". {who} reading {' and '.join(notes)}" if notes else ""


def _ahead(
    pool: Executor, make: Callable[[int], dict[str, Any]], steps: range, count: int
) -> Generator[tuple[int, Future[dict[str, Any]]], None, None]:
    """Yield each step with its future. At most `count` batches are asked for and not yet given."""
    coming: deque[Future[dict[str, Any]]] = deque()
    for step in steps:
        while len(coming) < min(count, steps.stop - step):
            coming.append(pool.submit(make, step + len(coming)))
        yield step, coming.popleft()


def to_batch(arrays: Mapping[str, Any], device: torch.device | str = "cpu") -> Batch:
    """Return a batch of arrays as one of tensors, which share their memory on a CPU."""
    tensors = {k: torch.from_numpy(v).to(device) for k, v in arrays.items() if isinstance(v, np.ndarray)}
    return Batch(**{**arrays, **tensors})


_made: _Steps | None = None  # of a worker process


def _begin(made: _Steps, notes: Path) -> None:
    global _made
    torch.set_num_threads(1)  # as many processes as cores do this
    made.windows.note_reading(ReadingNotes(notes))
    _made = made


def _make(step: int) -> dict[str, Any]:
    assert _made is not None
    return _made.make(step)
