"""Compute losses of a sharded policy, whose gradients are summed over all processes and kept in parts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from anyvla.decoders.base import Loss
from anyvla.policy import VLA
from anyvla.training.gradients import Gradients
from anyvla.training.processes import Processes
from anyvla.training.sharding import gathered, list_weights
from anyvla.types import Batch


class ShardedGradients(Gradients):
    """The loss of a policy that is sharded over several processes.

    The gradients of every piece of a batch are summed, because whole ones of several pieces would need the memory that
    sharding saves. A weight that no process used in a step has no gradient after it, as in one process.
    """

    def __init__(self, vla: VLA, processes: Processes) -> None:
        self._weights = list_weights(vla)
        self._watched: set[int] = set()
        self._used: set[int] = set()  # numbers of the weights to which a gradient came in this step
        super().__init__(vla, processes)
        processes.wait_for_all()

    @property
    def scale(self) -> float:
        return 1.0

    def rebuild(self) -> None:
        for of in self._weights:
            if hasattr(of, "_unsharded_param"):
                of._unsharded_param.requires_grad_(of.sharded_param.requires_grad)

    def loss(self, piece: Batch, generators: Sequence[torch.Generator] | None) -> Loss:
        loss: Loss = self.vla.loss(piece, generators)
        for number, of in enumerate(self._weights):
            if number not in self._watched and of.sharded_param.requires_grad and hasattr(of, "_unsharded_param"):
                of._unsharded_param.register_post_accumulate_grad_hook(partial(self._note, number))
                self._watched.add(number)
        return loss

    @contextlib.contextmanager
    def summing(self, *, last: bool) -> Iterator[None]:
        with self.processes.depended_on():
            yield
            if last:
                self._drop_unused()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with gathered(self.vla):
            yield
        self._used.clear()

    def _note(self, number: int, _: Tensor) -> None:
        self._used.add(number)

    def _drop_unused(self) -> None:
        """Remove the zeros that stand for gradients of weights that no process used."""
        import torch.distributed as dist

        used = torch.tensor([number in self._used for number in range(len(self._weights))], dtype=torch.uint8)
        dist.all_reduce(used, dist.ReduceOp.MAX)  # on the CPU, so that no GPU is waited for
        for of, there in zip(self._weights, used.tolist(), strict=True):
            if not there:
                of.sharded_param.grad = None
        self._used.clear()
