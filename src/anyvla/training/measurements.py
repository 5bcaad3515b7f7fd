"""Makes measurements of the policy every so many steps of its training, without an effect on the training."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch

from anyvla.checkpoint.of_run import Score
from anyvla.config import ConfigError
from anyvla.policy import VLA
from anyvla.registry import suggest
from anyvla.training.keeping import CheckpointKeeper
from anyvla.training.log import TrainingLog
from anyvla.training.meter import Meter
from anyvla.training.processes import Processes
from anyvla.training.spans import not_traced

_PREFERRED = ("evaluation.success", "validation.loss")  # the scores of checkpoints, if training.best names none


class PlannedMeasurement(Protocol):
    """A measurement whose policy does not exist yet."""

    @property
    def names(self) -> Mapping[str, bool]:
        """The names of the numbers of the measurement, and whether a higher number is better."""
        ...

    def start(self, vla: VLA) -> Measurement:
        """Take the policy to measure."""
        ...


class Measurement(Protocol):
    """Measures the policy as it is now: validation loss, open-loop error, success on a benchmark."""

    saves_first: bool  # whether a checkpoint is written before: measuring takes long, or may end the process

    @property
    def every(self) -> int:
        """The number of steps from one measurement to the next; the last step is measured too."""
        ...

    @property
    def names(self) -> Mapping[str, bool]:
        """The names of the numbers that it returns, and whether a higher number is better."""
        ...

    def describe(self) -> str:
        """Return a sentence for people: how often the policy is measured, and on which data or episodes."""
        ...

    def measure(self, step: int) -> Mapping[str, float]:
        """Return numbers under their names in the log, such as "validation.loss", after `step` steps.

        It leaves weights, modes and all generators of random numbers as they were.
        """
        ...


class Measurements:
    """Makes the measurements of a training when they are due, logs them, and scores checkpoints by one of them."""

    def __init__(
        self,
        measurements: Sequence[Measurement],
        steps: int,
        best: tuple[str, bool] | None,
        keeper: CheckpointKeeper,
        log: TrainingLog,
        meter: Meter,
        say: Callable[[str], None],
        acting_weights: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
        writers: Processes | None = None,
    ) -> None:
        """Take the measurements of a training of `steps` steps, and the number that scores checkpoints.

        `best` is from `choose_best`. `acting_weights` returns a context in which the policy has the weights that it
        will act with. `writers`: the processes of a sharded training, which all take part; None: this one alone.
        """
        self.measurements, self.steps, self.acting_weights = measurements, steps, acting_weights
        self.writers = writers or Processes.single()
        self.keeper, self.log, self.meter, self.say = keeper, log, meter, say
        self.best = best
        for of in measurements:
            say(of.describe())

    def resume(self, step: int) -> None:
        """Make the measurements after `step` steps that an interruption prevented."""
        logged = {name for line in self.log.earlier if line["step"] == step for name in line}
        if step:
            due = self._find_due(step)
            lacking = self.writers.on_main(lambda: [i for i, m in enumerate(due) if logged.isdisjoint(m.names)])
            self._measure([due[i] for i in lacking], step)

    def __call__(self, step: int) -> None:
        """Make the measurements that are due after `step` steps."""
        self._measure(self._find_due(step), step)

    def _find_due(self, step: int) -> list[Measurement]:
        return [m for m in self.measurements if step % m.every == 0 or step == self.steps]

    def _measure(self, due: Sequence[Measurement], step: int) -> None:
        if not due:
            return
        if any(m.saves_first for m in due):
            self.keeper.save(step)
        begin = time.perf_counter()
        with self.meter.pausing(), not_traced(), self.acting_weights():
            numbers = {name: value for m in due for name, value in m.measure(step).items()}
        if not numbers:
            return
        if self.best is not None and self.best[0] in numbers:
            name, higher_is_better = self.best
            self.keeper.record(step, Score(name, numbers[name], higher_is_better))
        # after the score: what is logged is not measured again, so that a kill in between would lose the score
        self.log.write({"step": step} | numbers)
        listed = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        self.say(f"step {step}: {listed} ({time.perf_counter() - begin:.0f} s)")


def choose_best(names: Mapping[str, bool], best: str | None) -> tuple[str, bool] | None:
    """Return the name of the number by which checkpoints are compared, and whether a higher one is better.

    `names` are the names of all measurements. `best` is `training.best`; None: the success of an evaluation if there is
    one, else the validation loss, else none. Raises ConfigError, with the nearest name, if it is none of them.
    """
    if best is None:
        best = next((name for name in _PREFERRED if name in names), None)
        return None if best is None else (best, names[best])
    if best not in names:
        raise ConfigError(
            f"training.best: {best!r} is not measured: {suggest(best, names)} Measured are {', '.join(names) or 'none'}"
        )
    return best, names[best]


@contextlib.contextmanager
def undisturbed(vla: VLA) -> Iterator[None]:
    """Put a policy into evaluation mode. Afterwards all modes and the global generators are as they were before."""
    modes = [(module, module.training) for module in vla.modules()]
    of_numpy, of_python = np.random.get_state(), random.getstate()
    devices = [vla.device] if vla.device.type == "cuda" else []
    vla.eval()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        np.random.set_state(of_numpy)
        random.setstate(of_python)
