"""Measures a policy on held-out episodes while it trains: its loss, and its errors in units people know.

The windows, the noise and the precision are the same each time, so that only the policy changes from point to point of
a curve. Images are cropped as in acting and not augmented. Data sets count by their shares, as in training.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from anyvla.data.training.mixture import Mixture
from anyvla.data.training.sampler import WindowIndices, spread_at_random
from anyvla.data.training.validation import ValidationConfig
from anyvla.data.training.window import WindowConfig, WindowDataset
from anyvla.policy import VLA
from anyvla.robot.action_errors import find_measure, measure_action_errors
from anyvla.robot.space import Group
from anyvla.robot.views import crop_views, numbers_per_view
from anyvla.training.batches import to_batch
from anyvla.training.config import TrainingConfig, TrainingRecipe
from anyvla.training.device import pick_precision
from anyvla.training.measurements import undisturbed
from anyvla.training.randomness import NOISE, PREDICTIONS, make_generators
from anyvla.types import Batch

logger = logging.getLogger(__name__)

LOSS = "validation.loss"
_SUFFIXES = {"%": "accuracy", "": "error"}  # of the names of errors, by their unit; else the unit itself


@dataclass
class _Sums:
    """Sums and counts by name over the windows of one data set."""

    windows: int = 0
    totals: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, name: str, total: float, count: float) -> None:
        self.totals[name] += total
        self.counts[name] += count


class Validation:
    """Measures `validation.loss` and one error for each action group, as `validation.position_cm`."""

    saves_first = False

    def __init__(
        self, vla: VLA, mixture: Mixture, config: ValidationConfig, training: TrainingConfig, window: WindowConfig
    ) -> None:
        """Choose the windows of a mixture of held-out episodes; `window` is how training cuts its episodes."""
        self.vla, self.config, self.training = vla, config, training
        self.windows = WindowDataset(mixture, window, trained=False)
        limits = [max(1, round(config.windows * share)) for share in mixture.shares]
        self.chosen = [
            spread_at_random(size, most, config.seed) for size, most in zip(self.windows.sizes, limits, strict=True)
        ]
        self.names = name_numbers(vla.layout.embodiment.action.groups)

    @property
    def every(self) -> int:
        """The number of steps from one measurement to the next."""
        return self.training.validate_every or self.training.checkpoint_every

    def describe(self) -> str:
        """Return how many windows and episodes are measured, and how often."""
        episodes = sum(map(len, self.windows.mixture.datasets))
        return (
            f"validation every {self.every} steps on {sum(map(len, self.chosen)):,} of {sum(self.windows.sizes):,} "
            f"windows of {episodes:,} held-out episodes"
        )

    def measure(self, step: int) -> Mapping[str, float]:
        """Return the loss and the errors of the policy on the chosen windows."""
        device, sums = self.vla.device, [_Sums() for _ in self.chosen]
        precision = pick_precision(self.training.precision, device)
        with (
            undisturbed(self.vla),
            torch.no_grad(),
            torch.autocast(device.type, precision, enabled=precision != torch.float32),
        ):
            for indices, batch in self._read_batches():
                own = sums[int(indices.sources[0])]
                self._measure_loss(batch, own)
                # each step once, and after the same steps as in a session
                rows = self.windows.end_within(indices).nonzero()[0]
                if len(rows):
                    generators = self._make_generators(batch, PREDICTIONS)
                    self._measure_errors(batch.select(rows.tolist()), [generators[row] for row in rows], own)
        numbers = _join(sums, self.windows.shares.tolist())
        if lost := [name for name, value in numbers.items() if not math.isfinite(value)]:
            logger.warning("step %d: not finite on the held-out episodes, and left out: %s", step, ", ".join(lost))
        return {name: value for name, value in numbers.items() if name not in lost}

    def _read_batches(self) -> Iterator[tuple[WindowIndices, Batch]]:
        """Yield windows of one data set after the other, and their batch on the device; rows are numbered on."""
        size = self.training.batch_size // self.training.accumulate  # a piece of a batch fits into the memory
        first = 0
        for source, chosen in enumerate(self.chosen):
            chance = np.random.default_rng(self.config.seed).integers(1 << 62, size=len(chosen)).astype(np.uint64)
            for begin in range(0, len(chosen), size):
                own = chosen[begin : begin + size]
                indices = WindowIndices(np.full(len(own), source), own, chance[begin : begin + size])
                yield indices, to_batch({**self.windows.batch(indices), "first_row": first}, self.vla.device)
                first += len(own)

    def _make_generators(self, batch: Batch, kind: int) -> list[torch.Generator]:
        """Return a generator for each window, the same at each measurement and however the windows are split."""
        rows = range(batch.first_row, batch.first_row + len(batch.instructions))
        return make_generators(self.config.seed, 0, kind, rows)

    def _measure_loss(self, batch: Batch, sums: _Sums) -> None:
        """Add the loss of a batch of one data set."""
        crops = numbers_per_view(self.vla.config.view.crop, batch.images, "crop")
        cropped = replace(batch, images=crop_views(batch.images, crops, None))
        loss = self.vla.loss(cropped, self._make_generators(batch, NOISE))
        sums.windows += len(batch.instructions)
        sums.add(LOSS, float(loss.total), self.vla.count_elements(batch))

    def _measure_errors(self, batch: Batch, generators: Sequence[torch.Generator], sums: _Sums) -> None:
        """Add the errors at the last step of windows of a data set, or at all steps of whole rows."""
        every = self.windows.config.whole
        predicted = self.vla.predict(batch, generators, every_step=every).float().cpu().numpy()
        valid = batch.step_mask.cpu()
        measured = valid if every else (torch.arange(len(generators)), valid.sum(1) - 1)
        recorded, mask = batch.actions.cpu()[measured].numpy(), batch.action_mask.cpu()[measured].numpy()
        robot = self.vla.robots[int(batch.robots[0])].embodiment  # a data set is of one robot
        dims = self.vla.layout.robots[robot.name].action
        if not np.isfinite(predicted).all():  # as float16 may overflow
            for group in robot.action.groups:
                sums.add(name_error(group), math.nan, 1)
            return
        errors = measure_action_errors(robot.action, predicted[..., dims], recorded[..., dims], mask)
        for group, error in zip(robot.action.groups, errors, strict=True):
            scale = 100.0 if error.measure == "accuracy" else 1.0  # a share, as the success of an evaluation
            sums.add(name_error(group), sum(error.sums) / scale, sum(error.counts))


def open_validation(recipe: TrainingRecipe, mixture: Mixture, vla: VLA, window: WindowConfig) -> list[Validation]:
    """Return the validation of a training; none if no episode is held out.

    Raises ValueError for a mixture that was opened without the recipe's `data.validation`.
    """
    config, training = recipe.data.validation, recipe.training
    if config is None:
        return []
    if mixture.validation is None:
        raise ValueError("data.validation holds out episodes, but the mixture has none: open it with open_mixture")
    trained, held_out = (sum(int(d.lengths.sum()) for d in m.datasets) for m in (mixture, mixture.validation))
    room = recipe.data.cache_gb * held_out / (trained + held_out)  # beside the frames of the training episodes
    return [Validation(vla, mixture.validation, config, training, replace(window, cache_gb=room))]


def name_numbers(groups: Sequence[Group]) -> dict[str, bool]:
    """Return the names of all numbers of a validation, and whether a higher number is better."""
    return {LOSS: False} | {name_error(group): find_measure(group)[0] == "accuracy" for group in groups}


def name_error(group: Group) -> str:
    """Return the name in the log of the open-loop error of an action group: "validation.position_cm"."""
    unit = find_measure(group)[1]
    return f"validation.{group.name}_{_SUFFIXES.get(unit, unit)}".replace(" ", "_").replace("/", "_per_")


def _join(sums: Sequence[_Sums], shares: Sequence[float]) -> dict[str, float]:
    """Return the means over all data sets, each of which counts by its share as in the batches of training."""
    out = {}
    for name in dict.fromkeys(name for of in sums for name in of.totals):
        pairs = list(zip(sums, shares, strict=True))
        total = math.fsum(share * of.totals[name] / of.windows for of, share in pairs)
        count = math.fsum(share * of.counts[name] / of.windows for of, share in pairs)
        if count:
            out[name] = total / count
    return out
