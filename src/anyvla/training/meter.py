"""Measure the speed of training, and describe one line of its log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import psutil
import torch

from anyvla.training.flops import FlopsMeter
from anyvla.training.processes import Processes
from anyvla.training.spans import span
from anyvla.training.step import StepResult


class Speed(NamedTuple):
    """A reading of the meter; `Progress` says what the numbers are."""

    samples_per_s: float
    wait_share: float
    elapsed_s: float
    memory_gb: float
    mfu: float | None


@dataclass(frozen=True)
class Progress:
    """One log line."""

    step: int
    steps: int
    loss: float
    parts: Mapping[str, float]
    lr: float
    grad_norm: float
    samples_per_s: float  # windows x valid steps, of all processes
    wait_share: float  # of the time, waiting for data; the mean of all processes
    elapsed_s: float  # this run of the process
    memory_gb: float  # of the GPU at the peak so far, or of the process on a CPU; the most of all processes
    mfu: float | None = None  # share of the peak FLOP/s of the GPUs; None: not known

    @classmethod
    def of(cls, step: int, steps: int, result: StepResult, speed: Speed) -> Progress:
        """Join the result of a step with the readings of the meter."""
        return cls(step, steps, result.loss, result.parts, result.lr, result.grad_norm, *speed)

    def as_line(self) -> dict[str, Any]:
        """Return the line of the log, without numbers that are not known."""
        return {key: value for key, value in vars(self).items() if key != "steps" and value is not None}


class Meter:
    """Measures samples per second and the share of time spent waiting, since the last reading."""

    def __init__(
        self, device: torch.device, precision: torch.dtype, processes: Processes, *, compiled: bool = False
    ) -> None:
        self._processes = processes
        self._device, self.flops = device, FlopsMeter(device, precision, compiled=compiled)
        self.begin = self.last = time.perf_counter()
        self.samples, self.waited = 0, 0.0

    def count(self, samples: float) -> None:
        """Count the samples of the batch of a step, over all processes."""
        self.samples += int(samples)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time within the context as waiting for data."""
        start = time.perf_counter()
        with span("data wait"):
            yield
        self.waited += time.perf_counter() - start

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """Leave the time within the context out of the speed."""
        start = time.perf_counter()
        yield
        self.last += time.perf_counter() - start

    def read(self) -> Speed:
        """Return the speed since the last reading. All processes call it at the same steps."""
        now = time.perf_counter()
        spent = now - self.last
        rate = self.samples / spent
        shares, memory = zip(
            *(m.numbers for m in self._processes.exchange([self.waited / spent, self._measure_memory()])), strict=True
        )
        own_rate = rate / self._processes.count
        reading = Speed(
            rate, sum(shares) / len(shares), now - self.begin, max(memory), self.flops.utilization(own_rate)
        )
        self.last, self.samples, self.waited = now, 0, 0.0
        return reading

    def _measure_memory(self) -> float:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / 1e9
        return psutil.Process().memory_info().rss / 1e9
