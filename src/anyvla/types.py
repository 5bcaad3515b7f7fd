"""The types that cross boundaries between layers: observations, training batches and chunks of actions.

An `Observation` (numpy) is one step of one robot, a `Batch` (torch) the input of the loss. Letters of shapes, the same
everywhere in anyvla:
B batch, T window (steps), V views (cameras), H/W height/width of an image, L tokens, R readouts, D width, N chunk,
A action dims, P proprio dims, M steps of all windows together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor

from anyvla_sim.base import Observation as Observation  # shared with the environment side

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Windows of episodes, in robot units, in the layout that a policy's robots share.

    A window starts at its first valid step; masked steps follow at its end.
    """

    images: UInt8[Tensor, "B T V H W 3"]
    proprio: Float[Tensor, "B T P"]
    instructions: Sequence[str]  # B of them
    actions: Float[Tensor, "B T N A"]  # the chunk that begins at each step
    action_mask: Bool[Tensor, "B T N"]  # False past the end of the episode and on masked steps
    step_mask: Bool[Tensor, "B T"]  # False past the end of the episode
    robots: Int64[Tensor, "B"]  # index of the robot of each window; dims that a robot lacks are 0
    # data set, episode and last step of each window, by number; `WindowDataset.describe` names them. None: not known
    samples: Int64[Tensor, "B 3"] | None = None
    # `Codec.encode` of the normalized chunks, padded with their last action; None: not encoded yet, or continuous
    tokens: Int64[Tensor, "B T L"] | None = None
    # The valid steps of each window, which need not be asked of the device of `step_mask` then; None: not counted yet
    counts: Sequence[int] | None = None
    # The number of the first window in the whole batch of the step, of which this may be a part
    first_row: int = 0

    def cut(self, begin: int, end: int) -> Batch:
        """Return the windows `begin` to `end`."""
        return replace(self._with_windows(lambda of: of[begin:end]), first_row=self.first_row + begin)

    def select(self, rows: Sequence[int]) -> Batch:
        """Return the windows of these numbers."""
        chosen = torch.tensor(rows, dtype=torch.int64)
        return self._with_windows(
            lambda of: of[chosen.to(of.device)] if isinstance(of, Tensor) else [of[row] for row in rows]
        )

    def spread(self, values: Sequence[T]) -> list[T]:
        """Return the value of each window once for each of its valid steps."""
        counts = self.step_mask.sum(1).tolist() if self.counts is None else self.counts
        return [value for value, count in zip(values, counts, strict=True) for _ in range(count)]

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its tensors on a device. Tensors in pinned memory are copied without waiting."""
        wait = torch.device(device).type == "cpu"  # a copy that is not there yet would be read
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=not wait))

    def pin_memory(self) -> Batch:
        """Return the batch with its tensors in pinned memory, from which a GPU copies them by itself."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_windows(self, change: Callable[[Any], Any]) -> Batch:
        fields = {name: value for name, value in vars(self).items() if isinstance(value, Sequence | Tensor)}
        return replace(self, **{name: change(value) for name, value in fields.items()})

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        changed: dict[str, Any] = {name: change(value) for name, value in tensors.items()}
        return replace(self, **changed)


@dataclass(frozen=True)
class Chunk:
    """The next N actions of one robot, in robot units."""

    actions: Float32[np.ndarray, "N A"]


class ChunkError(ValueError):
    """The policy predicted a chunk that is not finite."""
