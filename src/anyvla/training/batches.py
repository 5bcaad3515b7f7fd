"""Training batches in order, made ahead by a thread or by worker processes: the same ones in either case.

A batch is a pure function of (seed, step): which windows, which of their instructions, and how images are varied.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from anyvla.data.augment import augment
from anyvla.data.sampler import MixtureSampler
from anyvla.data.views import ViewConfig
from anyvla.data.window import WindowDataset
from anyvla.types import Batch

if TYPE_CHECKING:
    from anyvla.training.loop import TrainingConfig


class _Steps(Dataset[Batch]):
    """Step -> batch."""

    def __init__(self, windows: WindowDataset, config: TrainingConfig, view: ViewConfig) -> None:
        self.windows, self.config, self.view = windows, config, view
        self.sampler = MixtureSampler(windows.sizes, windows.mixture.shares.tolist(), config.batch_size, config.seed)

    def __getitem__(self, step: int) -> Batch:
        arrays = self.windows.batch(self.sampler.draw(step))
        seed = np.random.SeedSequence((self.config.seed, step)).generate_state(1, np.uint64)[0] >> np.uint64(1)
        generator = torch.Generator().manual_seed(int(seed))
        images = augment(torch.from_numpy(arrays["images"]), self.config.augment, self.view.crop, generator)
        tensors = {k: torch.from_numpy(v) for k, v in arrays.items() if isinstance(v, np.ndarray) and k != "images"}
        return Batch(images=images, instructions=arrays["instructions"], **tensors)


def batches_from(
    start: int, windows: WindowDataset, config: TrainingConfig, view: ViewConfig, workers: int
) -> Generator[Batch, None, None]:
    """The batches of step `start` and after, each being made while earlier ones are used."""
    made, steps = _Steps(windows, config, view), range(start, config.steps)
    if not workers:
        yield from _by_thread(made, steps)
    else:  # spawned, as what has threads or a GPU must not fork
        loader = DataLoader(
            made,
            batch_size=None,
            sampler=steps,
            num_workers=workers,
            multiprocessing_context="spawn",
            prefetch_factor=2,
        )
        yield from loader


def _by_thread(made: _Steps, steps: range) -> Iterator[Batch]:
    with ThreadPoolExecutor(1, thread_name_prefix="data") as pool:
        ahead = pool.submit(made.__getitem__, steps.start) if steps else None
        for step in steps:
            assert ahead is not None
            batch = ahead.result()
            ahead = pool.submit(made.__getitem__, step + 1) if step + 1 < steps.stop else None
            yield batch
