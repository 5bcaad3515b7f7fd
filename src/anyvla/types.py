"""The data that crosses a boundary between layers: what a robot shows, what a model is trained on, what it answers.

Environments and data readers speak `Observation` (numpy, one step of one robot); the model's loss takes a `Batch`
(torch, windows of many episodes); the model answers a `Chunk`. Between history and backbone go `StepTokens`s (tokens of
single steps) and `TokenSequence`s (steps laid out). Letters used in shapes everywhere in anyvla:
B batch, W window, V views (cameras), H/W height/width of an image (only beside C or 3), L tokens, R readouts,
D width, N chunk, A action dims, P proprio dims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor

from anyvla_sim.base import Observation as Observation  # what the environment side gives, numpy alone


@dataclass(frozen=True)
class Batch:
    """Windows of episodes, in robot units, in the layout that a policy's robots share.

    A window starts at its first valid step; masked steps follow at its end.
    """

    images: UInt8[Tensor, "B W V H W 3"]
    proprio: Float[Tensor, "B W P"]
    instructions: Sequence[str]  # B of them
    actions: Float[Tensor, "B W N A"]  # the chunk that begins at each step
    action_mask: Bool[Tensor, "B W N"]  # False past the end of the episode and on masked steps
    step_mask: Bool[Tensor, "B W"]  # False past the end of the episode
    robots: Int64[Tensor, "B"]  # which of the policy's robots each window is of; dims that it lacks are 0


@dataclass(frozen=True)
class Chunk:
    """The next N actions of one robot, in robot units."""

    actions: Float32[np.ndarray, "N A"]


class ChunkError(ValueError):
    """The policy predicted a chunk that is not finite."""
