"""All randomness of training is a pure function of the recipe's seed, the step and the row of the whole batch.

So no generator has to be saved, and noise and augmentation do not depend on how a batch is split over pieces and
processes. Only dropout does: it depends on the first row of a piece.
"""

from __future__ import annotations

import random

import numpy as np
import torch

# The last number of a seed: two kinds of random numbers must not follow each other.
NOISE, DROPOUT, IMAGES, PREDICTIONS = 0, 1, 2, 3


def derive_seed(*numbers: int) -> int:
    """Return a seed that depends on all of the numbers. Zeros at their end change nothing: give equally many always."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def make_generators(seed: int, step: int, kind: int, rows: range) -> list[torch.Generator]:
    """Return a generator for each of these rows of the whole batch of a step. It does not depend on the other rows."""
    seeds = np.random.SeedSequence((seed, step, 0, kind)).generate_state(rows.stop, np.uint64) >> np.uint64(1)
    return [torch.Generator().manual_seed(own) for own in seeds[rows.start :].tolist()]


def seed_global_generators(seed: int, step: int, row: int) -> None:
    """Seed the global generators for the dropout of a piece of a step, which begins with this row of the whole batch.

    They get another seed than the noise: with the same one, dropout would follow it.
    """
    own = derive_seed(seed, step, row, DROPOUT)
    torch.manual_seed(own)  # CUDA's and MPS's too
    np.random.seed(own % 2**32)
    random.seed(own)
