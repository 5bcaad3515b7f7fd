"""Compare training with a plain PyTorch loop over the same model and the same batches in memory.

    python benchmarks/training_overhead.py outputs/quickstart/dataset [--pairs 24] [--steps 110] [--rounds 2]

First the loop alone: anyvla trains on batches that are in memory, and after every ten of its steps the plain loop makes
ten; the overhead is the median of the ratios of these pairs. Then training as users start it, which reads the data with
a thread (0 workers) and with 2 worker processes, in turns with the plain loop: seconds per step (medians of ten steps)
and the share of the time that it waits for data. The CPU time includes the data workers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import psutil
import torch

from anyvla.data.training.mixture import DataConfig, Mixture, open_mixture
from anyvla.data.training.window import WindowConfig, WindowDataset
from anyvla.policy import VLA
from anyvla.recipe import Recipe, read
from anyvla.training import loop
from anyvla.training.batches import make_batches
from anyvla.training.device import pick_precision
from anyvla.training.meter import Progress
from anyvla.types import Batch

EVERY = 10  # steps between two readings of the clocks, and lines of the log


class Clocks(NamedTuple):
    """Seconds since some moment; of two readings, those between them for each of ten steps."""

    wall: float
    cpu: float  # of this process and its children

    @classmethod
    def read(cls) -> Clocks:
        this = psutil.Process()
        times = [p.cpu_times() for p in (this, *this.children(recursive=True))]
        return cls(time.perf_counter(), sum(t.user + t.system for t in times))

    def per_step(self, later: Clocks) -> Clocks:
        return Clocks((later.wall - self.wall) / EVERY, (later.cpu - self.cpu) / EVERY)


class PlainLoop:
    """The loop that a tutorial would write."""

    def __init__(self, recipe: Recipe, mixture: Mixture) -> None:
        self.config = recipe.training
        torch.manual_seed(self.config.seed)
        self.vla = VLA(recipe.model, mixture.robots())
        self.vla.train()
        optim = self.config.optim
        self.optimizer = torch.optim.AdamW(self.vla.parameters(), lr=optim.lr, betas=optim.betas, fused=True)
        self.dtype = pick_precision(self.config.precision, torch.device("cpu"))

    def time_ten(self, batches: Iterator[Batch]) -> Clocks:
        """Make ten steps and return the time of each."""
        begin = Clocks.read()
        for batch in itertools.islice(batches, EVERY):
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
                loss = self.vla.loss(batch)
            (loss.total / loss.count).backward()
            torch.nn.utils.clip_grad_norm_(self.vla.parameters(), self.config.optim.clip)
            self.optimizer.step()
        return begin.per_step(Clocks.read())


def make_all_batches(recipe: Recipe, mixture: Mixture) -> list[Batch]:
    model, config = recipe.model, recipe.training
    window = WindowConfig(
        window=model.history.build().window, chunk=model.chunk, stride=model.execute, view=model.view, cache_gb=2
    )
    batches = make_batches(0, WindowDataset(mixture, window), config, model.view, 0, 300)
    return list(itertools.islice(batches, config.steps))


def time_pairs(
    recipe: Recipe, mixture: Mixture, plain: PlainLoop, batches: Sequence[Batch]
) -> list[tuple[Clocks, Clocks]]:
    """Return the times of ten plain steps and of ten steps of `train` on batches in memory, alternating."""
    pairs: list[tuple[Clocks, Clocks]] = []
    begin: Clocks | None = None
    endless = itertools.cycle(batches)

    def alternate(_: Progress) -> None:
        nonlocal begin
        if begin is not None:  # the first ten steps of each are left out
            ours = begin.per_step(Clocks.read())
            pairs.append((plain.time_ten(endless), ours))
        else:
            plain.time_ten(endless)
        begin = Clocks.read()

    with (
        tempfile.TemporaryDirectory() as run,
        mock.patch.object(loop, "make_batches", lambda start, *_, **__: (batch for batch in batches[start:])),
    ):
        loop.train(recipe, mixture, Path(run), progress=alternate)
    return pairs


def time_with_data(recipe: Recipe, mixture: Mixture) -> tuple[list[Clocks], float]:
    """Return the times of ten steps each of training as users start it, and the mean share of waiting for data."""
    marks: list[Clocks] = []
    waits: list[float] = []

    def mark(line: Progress) -> None:
        marks.append(Clocks.read())
        waits.append(line.wait_share)

    with tempfile.TemporaryDirectory() as run:
        loop.train(recipe, mixture, Path(run), progress=mark)
    return [a.per_step(b) for a, b in itertools.pairwise(marks)], statistics.mean(waits[1:])


def summarize(times: Sequence[Clocks]) -> dict[str, float]:
    """Return the medians of the wall-clock and of the CPU seconds of a step."""
    return {
        "wall_s": round(statistics.median(t.wall for t in times), 4),
        "cpu_s": round(statistics.median(t.cpu for t in times), 4),
    }


def summarize_ratios(ratios: Sequence[float]) -> list[float]:
    """Return the median and the quartiles of ratios, less 1."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    return [round(value - 1, 4) for value in (middle, low, high)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--pairs", type=int, default=24, help="of ten steps each, with the batches in memory")
    parser.add_argument("--steps", type=int, default=110, help="of a training that reads its data")
    parser.add_argument("--rounds", type=int, default=2, help="of trainings that read their data; 0: none")
    options, overrides = parser.parse_known_args()
    mixture = open_mixture(DataConfig(), options.dataset)

    def configure(steps: int, workers: int = 0) -> Recipe:
        given = [f"--training.steps={steps}", f"--training.log_every={EVERY}", f"--data.workers={workers}"]
        return read(options.recipe, [*given, *overrides])

    in_memory = configure((options.pairs + 1) * EVERY)
    batches, plain = make_all_batches(in_memory, mixture), PlainLoop(in_memory, mixture)
    pairs = time_pairs(in_memory, mixture, plain, batches)
    result: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "plain": summarize([one for one, _ in pairs]),
        "loop": summarize([other for _, other in pairs]),
        "overhead_of_the_loop": {
            "wall": summarize_ratios([ours.wall / plain.wall for plain, ours in pairs]),
            "cpu": summarize_ratios([ours.cpu / plain.cpu for plain, ours in pairs]),
        },
    }
    print(json.dumps(result), flush=True)
    endless = itertools.cycle(batches)
    for _, workers in itertools.product(range(options.rounds), (0, 2)):
        before = [plain.time_ten(endless) for _ in range(options.steps // EVERY)]
        times, wait = time_with_data(configure(options.steps, workers), mixture)
        found = {"workers": workers, "plain": summarize(before), "training": summarize(times)}
        print(json.dumps({**found, "wait_share": round(wait, 4)}), flush=True)


if __name__ == "__main__":
    main()
