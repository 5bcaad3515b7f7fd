from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyvla.data.training.sampler import MixtureSampler, permute, round_keys

FIELDS = ("sources", "windows", "chance")


def order(numbers: np.ndarray, size: int, key: int) -> np.ndarray:
    count = len(numbers)
    return permute(numbers, np.full(count, size), np.tile(round_keys((key,)), (count, 1)))


@given(size=st.integers(1, 3000), key=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_shuffle_is_a_permutation(size: int, key: int):
    got = order(np.arange(size), size, key)
    assert np.array_equal(np.sort(got), np.arange(size))
    some = np.random.default_rng(key).integers(0, size, 7)
    assert np.array_equal(order(some, size, key), got[some])  # each number by itself


def test_a_shuffle_mixes_and_depends_on_its_key():
    one, other = (order(np.arange(10_000), 10_000, key) for key in (0, 1))
    assert (one == other).mean() < 0.01
    for got in (one, other):
        assert abs(np.corrcoef(np.arange(10_000), got)[0, 1]) < 0.05
        assert (np.diff(got) == 1).mean() < 0.01  # neighbors are torn apart


def test_every_window_is_sampled_once_per_epoch():
    sampler = MixtureSampler([13, 7], [0.5, 0.5], batch_size=4, seed=1)
    sampled = [sampler.sample(step) for step in range(40)]
    sources, windows = (np.concatenate([getattr(d, name) for d in sampled]) for name in ("sources", "windows"))
    for source, size in enumerate((13, 7)):
        own = windows[sources == source]
        epochs = [own[i : i + size] for i in range(0, len(own) - size + 1, size)]
        assert len(epochs) > 3
        assert all(np.array_equal(np.sort(e), np.arange(size)) for e in epochs)
        assert not np.array_equal(epochs[0], epochs[1])


def test_shares_are_kept():
    sampler = MixtureSampler([1000, 2000, 500], [0.7, 0.2, 0.1], batch_size=20_000, seed=0)
    counts = sum(np.bincount(sampler.sample(step).sources, minlength=3) for step in range(5))
    np.testing.assert_allclose(counts / 100_000, [0.7, 0.2, 0.1], atol=0.005)


def test_a_step_does_not_depend_on_earlier_samples():
    """Resuming at a step needs only its number, also beyond the first block of positions."""
    sizes, shares = [50_000, 777], [0.9, 0.1]
    used = MixtureSampler(sizes, shares, 96, seed=3)
    for step in (0, 1, 2000, 5, 2000, 683):  # 65536 / 96 = 682.7: this batch spans two blocks
        fresh = MixtureSampler(sizes, shares, 96, seed=3)
        for name in FIELDS:
            assert np.array_equal(getattr(used.sample(step), name), getattr(fresh.sample(step), name))
    assert not np.array_equal(used.sample(0).windows, MixtureSampler(sizes, shares, 96, seed=4).sample(0).windows)


def test_chances_are_spread():
    sampler = MixtureSampler([1000], [1], 1000, seed=0)
    counts = np.bincount((sampler.sample(0).chance % np.uint64(5)).astype(int), minlength=5)
    assert counts.min() > 150


@pytest.mark.parametrize("field", FIELDS)
def test_samples_depend_on_the_seed_and_the_step(field: str):
    """Half of the sources are equal by chance. Windows are compared within one source."""
    count = 2 if field == "sources" else 1
    samples = [
        getattr(MixtureSampler([10**6] * count, [1] * count, 1000, seed).sample(step), field)
        for seed, step in ((0, 0), (1, 0), (0, 1))
    ]
    for other in samples[1:]:
        assert (samples[0] == other).mean() < (0.6 if field == "sources" else 0.01)


def test_chances_follow_neither_the_window_nor_the_source():
    sampled = MixtureSampler([2000, 2000], [1, 1], 4000, seed=0).sample(0)
    chance = (sampled.chance >> np.uint64(40)).astype(float)
    for other in (sampled.sources, sampled.windows, np.arange(4000)):
        assert abs(np.corrcoef(chance, other)[0, 1]) < 0.06
    again = MixtureSampler([2000, 2000], [1, 1], 4000, seed=0).sample(1)
    for window in range(2000):  # the same window gets a different number each time
        assert not set(sampled.chance[sampled.windows == window]) & set(again.chance[again.windows == window])


def test_sources_of_one_size_are_shuffled_each_in_its_own_order():
    sampled = MixtureSampler([200, 200], [1, 1], 800, seed=0).sample(0)
    one, other = (sampled.windows[sampled.sources == s][:200] for s in (0, 1))
    assert sorted(one) == sorted(other) == list(range(200))
    assert (one == other).mean() < 0.05


def test_a_second_block_continues_the_first():
    """Sources are sampled for 65536 positions at once. The next block has other sources and repeats no window."""
    sampler = MixtureSampler([100_000, 100_000], [1, 1], 1 << 16, seed=0)
    first, second = (sampler.sample(step) for step in (0, 1))
    assert (first.sources == second.sources).mean() < 0.55
    for source in (0, 1):
        seen = np.concatenate([d.windows[d.sources == source] for d in (first, second)])
        assert len(seen) == len(set(seen.tolist()))
