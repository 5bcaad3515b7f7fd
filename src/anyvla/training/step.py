"""One optimizer step: the loss of a batch, its gradients, clipping and the update."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from anyvla.backbones.frozen_features import computing_features
from anyvla.decoders.base import Loss
from anyvla.files.sharded_tensors import gather
from anyvla.training import nonfinite
from anyvla.training.config import TrainingConfig
from anyvla.training.device import pick_precision
from anyvla.training.errors import TrainingError
from anyvla.training.gradients import Gradients
from anyvla.training.parameter_groups import freeze_until_due, set_learning_rates
from anyvla.training.processes import Processes
from anyvla.training.randomness import NOISE, make_generators, seed_global_generators
from anyvla.training.schedules import learning_rate
from anyvla.training.spans import BACKWARD, span
from anyvla.training.state import TrainingState
from anyvla.types import Batch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepResult:
    """The outcome of one optimizer step."""

    loss: float  # the mean over the valid elements of the global batch
    parts: Mapping[str, float]  # the loss of each action group
    lr: float
    grad_norm: float  # before clipping
    overflowed: float | None = None  # the scale of float16 gradients that overflowed; nothing was updated with them


class OptimizerStep:
    """Makes one optimizer step at a time."""

    def __init__(
        self,
        state: TrainingState,
        config: TrainingConfig,
        device: torch.device,
        describe: nonfinite.Describe = lambda sample, text: f"sample {tuple(sample)} ({text!r})",
        gradients: Gradients | None = None,  # None: those of one process
    ) -> None:
        self.state, self.vla, self.optimizer = state, state.vla, state.optimizer
        self.config, self.device = config, device
        self.gradients = gradients or Gradients(state.vla, Processes.single())
        self.describe = describe  # names the samples that fail
        self.exact = torch.float32 if device.type == "mps" else torch.float64  # type of sums; Apple's GPUs lack float64
        self.precision = pick_precision(config.precision, device)
        self.autocast = torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32)

    def __call__(self, batch: Batch, step: int, last: Path | None, count: float | None = None) -> StepResult:
        """Update the weights by the gradient of a batch in step `step` (from 0).

        `batch` has the rows of this process, and `count` is the number of valid elements of all rows; None: the batch
        has all rows. `last` is the newest checkpoint, for messages. Raises TrainingError, before any weight changes, if
        the loss or the gradients are not finite.
        """
        config, scaler = self.config, self.state.scaler
        rate = learning_rate(config.optim, step, config.steps)
        set_learning_rates(self.optimizer, rate)
        if freeze_until_due(self.optimizer, self.vla, step):
            self.gradients.rebuild()
        self.optimizer.zero_grad(set_to_none=True)
        count = float(self.vla.count_elements(batch)) if count is None else count
        sums: dict[str, Tensor] = {}  # on the device: the loss, as "", and its parts
        for number, piece in enumerate(_split(batch, config.accumulate, self.device)):
            with self.gradients.summing(last=number + 1 == config.accumulate):
                loss = self._add_gradient(step, count, piece)
            own = {"": loss.total.detach()} | {name: loss.count * mean for name, mean in loss.parts.items()}
            sums = {name: sums.get(name, 0) + value.to(self.exact) for name, value in own.items()}
        means = self.gradients.sum(torch.stack(list(sums.values())) / max(1.0, count))
        scaler.unscale_(self.optimizer)
        with span("clip"):
            norms = gather(torch.nn.utils.clip_grad_norm_(self.state.parameters, config.optim.clip))
            # Read together: the only time that a step waits for the device. Nothing is updated before.
            total, *of_parts, norm = torch.cat([means, norms.to(means).view(1)]).tolist()
        parts = dict(zip(list(sums)[1:], of_parts, strict=True))
        overflowed = None
        if scaler.is_enabled() and np.isfinite(total) and not np.isfinite(norm):
            overflowed = scaler.get_scale()
        if not (np.isfinite(total) and np.isfinite(norm)) and not (overflowed and overflowed > 1):
            where = f"the last good checkpoint is {last}" if last else "no checkpoint was written yet"
            pieces = [
                (piece, partial(self._add_gradient, step, count))
                for piece in _split(batch, config.accumulate, self.device)
            ]
            raise TrainingError(
                f"step {step + 1}: loss {total}, gradient norm {norm}; nothing was updated with it, {where}. "
                + self._explain(pieces)
            )
        if overflowed:
            logger.warning(
                "step %d: gradients overflowed float16 at a loss scale of %g: nothing is updated, the scale is halved",
                *(step + 1, overflowed),
            )
        with span("optimizer"):
            scaler.step(self.optimizer)  # skips gradients that overflowed
            scaler.update()
        if self.state.ema is not None:
            with span("ema"):
                self.state.ema.update(step + 1)
        return StepResult(total, parts, rate, norm, overflowed)

    def _explain(self, pieces: Sequence[tuple[Batch, nonfinite.Run]]) -> str:
        """Return the cause that the first process finds in its rows."""
        processes = self.gradients.processes
        cause: str | None
        try:
            with self.gradients.alone():
                cause = nonfinite.explain(self.vla, pieces, self.describe, self.precision)
        except (RuntimeError, ValueError, OSError) as error:  # the failed step must be reported all the same
            cause = f"The search for the cause failed ({str(error).partition(chr(10))[0]})"
        for rank, found in enumerate(processes.gather(cause)):
            if found is not None:
                return found if processes.count == 1 else f"In {processes.describe(rank)}: {found}"
        return nonfinite.describe_no_cause(self.precision)

    def count_flops(self, batch: Batch) -> float:
        """Return the floating-point operations of a sample (a valid step of a window), forward and backward.

        Runs a piece of the batch without an effect on the training: counting decomposes some operators, so that the
        last bits of a counted step would differ.
        """
        piece = next(_split(batch, self.config.accumulate, self.device))
        buffers = [(buffer, buffer.clone()) for buffer in self.vla.buffers()]  # means of batch norms
        alone, features = self.gradients.alone(), computing_features(self.vla.backbone)
        with alone, features, FlopCounterMode(display=False) as counter:
            self._add_gradient(0, 1.0, piece)
        for buffer, before in buffers:
            buffer.copy_(before)
        self.optimizer.zero_grad(set_to_none=True)
        return counter.get_total_flops() / max(1, int(piece.step_mask.sum()))

    def _add_gradient(self, step: int, count: float, piece: Batch) -> Loss:
        """Add the gradient of a piece of a batch of `count` elements, and return the loss of the piece."""
        seed, first = self.config.seed, piece.first_row
        seed_global_generators(seed, step, first)
        generators = make_generators(seed, step, NOISE, range(first, first + len(piece.instructions)))
        with self.autocast:
            loss = self.gradients.loss(piece, generators)
        with span(BACKWARD):
            self.state.scaler.scale(loss.total * (self.gradients.scale / max(1.0, count))).backward()
        return loss


def _split(batch: Batch, parts: int, device: torch.device) -> Iterator[Batch]:
    size = len(batch.instructions) // parts
    for begin in range(0, len(batch.instructions), size):
        with span("to device"):
            piece = batch.cut(begin, begin + size).to(device)
        yield piece
