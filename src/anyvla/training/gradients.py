"""Compute losses whose gradients are summed over all processes, while they are still being computed."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from anyvla.decoders.base import Loss
from anyvla.policy import VLA
from anyvla.training.processes import Processes
from anyvla.types import Batch


class Gradients:
    """The loss of a policy in one process or several.

    With several, DistributedDataParallel (arXiv 2006.15704) adds the gradients of all processes bucket by bucket during
    the backward pass of the last piece of a batch. Earlier pieces add to the gradients of their own process.
    """

    def __init__(self, vla: VLA, processes: Processes) -> None:
        """Take a policy whose weights are on their device. Sets the weights of all processes to those of the first."""
        self.vla, self.processes = vla, processes
        self._parallel: Any = None
        self.rebuild()

    @property
    def scale(self) -> float:
        """The factor of each process's loss: its gradients are averaged, and their sum is wanted."""
        return float(self.processes.count)

    def rebuild(self) -> None:
        """Sum the gradients of the weights that are trained from now on, and no others: frozen ones take no memory.

        All processes call it after some were frozen or unfrozen.
        """
        if self.processes.count == 1:
            return
        from torch.nn.parallel import DistributedDataParallel

        self._parallel = None  # its hooks go first
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`broadcast_buffers`", category=FutureWarning)  # of PyTorch 2.13
            # Which weights have a gradient may differ from batch to batch, and by process: a data set may lack a view,
            # and layers after the one that is read never have any.
            self._parallel = DistributedDataParallel(
                _LossAsForward(self.vla),
                broadcast_buffers=False,  # checkpoints hold those of process 0
                find_unused_parameters=True,
                gradient_as_bucket_view=True,
            )

    def loss(self, piece: Batch, generators: Sequence[torch.Generator] | None) -> Loss:
        """Return the loss of a piece of a batch."""
        return self.vla.loss(piece, generators) if self._parallel is None else self._parallel(piece, generators)

    def summing(self, *, last: bool) -> AbstractContextManager[Any]:
        """Return the context of the forward and the backward pass of a piece; `last` of the pieces of a batch."""
        if self._parallel is None:
            return contextlib.nullcontext()
        return self.processes.depended_on() if last else self._parallel.no_sync()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Let this process compute gradients for itself within the context, as the others do not take part."""
        with contextlib.nullcontext() if self._parallel is None else self._parallel.no_sync():
            yield

    def sum(self, numbers: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes, on its device and without waiting for it."""
        if self.processes.count == 1:
            return numbers
        import torch.distributed as dist

        with self.processes.depended_on():
            dist.all_reduce(numbers)
        return numbers


class _LossAsForward(nn.Module):
    """A policy whose forward pass is its loss, as DistributedDataParallel wants it."""

    def __init__(self, vla: VLA) -> None:
        super().__init__()
        self.vla = vla

    def forward(self, piece: Batch, generators: Sequence[torch.Generator] | None) -> Loss:
        return self.vla.loss(piece, generators)
