"""Randomness follows from the seed, the step and the part of the batch."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch

from anyvla.config import ConfigError, build
from anyvla.training.config import TrainingConfig
from anyvla.training.randomness import (
    DROPOUT,
    IMAGES,
    NOISE,
    derive_seed,
    make_generators,
    seed_global_generators,
)


def test_no_two_seeds_steps_pieces_and_purposes_share_a_seed() -> None:
    """Otherwise images would be shifted by the noise of their step. NumPy reads a missing number as 0."""
    assert len({NOISE, DROPOUT, IMAGES}) == 3
    keys = list(itertools.product(range(4), range(6), range(3), (NOISE, DROPOUT, IMAGES)))
    assert len({derive_seed(*key) for key in keys}) == len(keys)
    assert all(0 <= derive_seed(*key) < 2**63 for key in keys)


def test_a_seed_is_the_same_in_every_version() -> None:
    """Runs resume under later versions: upper 63 bits of the first number of NumPy's SeedSequence((3, 4))."""
    assert derive_seed(3, 4) == 8_142_286_996_972_879_346


def test_every_generator_is_seeded_from_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's generator is replaced, since this machine may have none."""
    cuda: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", cuda.append)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: False)

    def sample_all(*of: int) -> tuple[Any, ...]:
        seed_global_generators(*of)
        seed, step, row = of
        [noise] = make_generators(seed, step, NOISE, range(row, row + 1))
        values = torch.rand(()).item(), float(np.random.rand()), random.random(), torch.rand((), generator=noise)
        return *map(float, values), cuda[-1]

    assert sample_all(0, 1, 0) == sample_all(0, 1, 0)
    others = [sample_all(1, 1, 0), sample_all(0, 2, 0), sample_all(0, 1, 1)]
    assert all(a != b for other in others for a, b in zip(sample_all(0, 1, 0), other, strict=True))
    assert sample_all(0, 1, 0)[0] != sample_all(0, 1, 0)[3]  # dropout does not follow the noise


def test_a_row_has_its_generator_in_any_part_of_a_batch() -> None:
    """The seeds are the first numbers of one SeedSequence, in order."""
    numbers = np.random.SeedSequence((3, 5, 0, IMAGES)).generate_state(8, np.uint64)
    assert [g.initial_seed() for g in make_generators(3, 5, IMAGES, range(8))] == [int(n) // 2 for n in numbers]
    assert [g.initial_seed() for g in make_generators(3, 5, IMAGES, range(2, 4))] == [int(n) // 2 for n in numbers[2:4]]
    others = [make_generators(*key, range(8)) for key in ((4, 5, IMAGES), (3, 6, IMAGES), (3, 5, NOISE))]
    assert len({g.initial_seed() for of in others for g in of} | {int(n) // 2 for n in numbers}) == 32


def test_a_seed_that_no_generator_takes_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed"):
        build(TrainingConfig, {"seed": -1})
