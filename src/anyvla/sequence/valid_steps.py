"""Which steps of a batch of windows are valid, known on the CPU: asking a GPU would make the host wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from anyvla.transfer import send
from anyvla.types import Batch


class ValidSteps:
    """The M valid steps of B windows of at most T steps: the first `counts` of each, row by row."""

    def __init__(self, counts: Sequence[int], length: int, device: torch.device) -> None:
        """`length`: T. `device`: of the values that are selected."""
        self.counts, self.length, self.device = tuple(counts), length, device

    @classmethod
    def of_mask(cls, mask: Bool[Tensor, "B T"]) -> ValidSteps:
        """Return the valid steps of a mask. A GPU is asked once."""
        return cls(mask.sum(1).tolist(), mask.shape[1], mask.device)

    @classmethod
    def of_batch(cls, batch: Batch) -> ValidSteps:
        """Return the valid steps of a batch. A GPU is asked unless they were counted before."""
        if batch.counts is None:
            return cls.of_mask(batch.step_mask)
        return cls(batch.counts, batch.step_mask.shape[1], batch.step_mask.device)

    @property
    def all_valid(self) -> bool:
        """Whether all windows have T valid steps."""
        return all(count == self.length for count in self.counts)

    @cached_property
    def places(self) -> Int64[Tensor, "M"]:
        """Return the places of the valid steps among all B * T."""
        return send(np.flatnonzero(np.arange(self.length) < np.array(self.counts)[:, None]), self.device)

    def first_steps(self) -> Int64[np.ndarray, "B"]:
        """Return the number of the first step of each window among the M."""
        return np.cumsum([0, *self.counts[:-1]])

    def last_steps(self) -> Int64[Tensor, "B"]:
        """Return the number of the last step of each window among the M."""
        return send(np.cumsum(self.counts) - 1, self.device)

    def select(self, values: Shaped[Tensor, "B T ..."]) -> Shaped[Tensor, "M ..."]:
        """Return the values at valid steps. They may share memory with `values`."""
        flat = values.flatten(0, 1)
        # index_select copies whole images; indexing with a mask takes ten times as long on a CPU
        return flat if self.all_valid else flat.index_select(0, self.places)

    def scatter(self, values: Shaped[Tensor, "M ..."]) -> Shaped[Tensor, "B T ..."]:
        """Return the values at their places in the windows, and zeros elsewhere."""
        shape = (len(self.counts), self.length)
        if self.all_valid:
            return values.unflatten(0, shape)
        return (
            values.new_zeros(shape[0] * shape[1], *values.shape[1:])
            .index_copy(0, self.places, values)
            .unflatten(0, shape)
        )
