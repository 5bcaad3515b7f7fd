from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from demonstrations import ROBOT, InMemory, demonstration
from hypothesis import given
from hypothesis import strategies as st

from anyvla.actions.normalize import Normalizer, Statistics
from anyvla.data.canonical import Robot
from anyvla.data.chunks import action_normalizer, hold_out, read_chunks
from anyvla.data.episode import Episode
from anyvla.data.mixture import Mixture
from anyvla.data.sampler import Draw
from anyvla.data.window import WindowConfig, WindowDataset

LENGTHS = [9, 1, 14, 5]


EPISODES = [demonstration(n, seed=i) for i, n in enumerate(LENGTHS)]


def of(*episodes: Episode) -> Mixture:
    return Mixture([InMemory(list(episodes))], [1.0], [None])


def scaling(mixture: Mixture) -> Normalizer:
    rows = np.concatenate([e.actions for e in mixture.datasets[0].episodes])
    bounds = {f"q{q:02}": np.quantile(rows, q / 100, axis=0).tolist() for q in (1, 99)}
    return action_normalizer(mixture, [Robot(ROBOT, Statistics(bounds, {}, "f"))], "quantile")


DATA = of(*EPISODES)
NORMALIZER = scaling(DATA)
EVERY = [range(len(EPISODES))]


def robots(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64)


@given(length=st.integers(1, 20))
def test_they_are_the_chunks_that_training_cuts_out(length: int) -> None:
    chunks = read_chunks(DATA, NORMALIZER, length, EVERY)
    windows = WindowDataset(DATA, WindowConfig(chunk=min(length, 14)))
    count = sum(LENGTHS)
    batch = windows.batch(Draw(np.zeros(count, np.int64), np.arange(count), np.zeros(count, np.uint64)))
    n = min(length, 14)
    mask = torch.from_numpy(batch["action_mask"][:, 0])
    assert len(chunks) == sum(LENGTHS)
    assert torch.equal(chunks.mask[:, :n], mask)
    assert not chunks.mask[:, n:].any()
    trained = NORMALIZER.normalise(torch.from_numpy(batch["actions"][:, 0]), robots(count))
    assert torch.equal(chunks.actions[:, :n][mask], trained[mask])
    for actions, own in zip(chunks.actions, chunks.mask, strict=True):
        last = actions[int(own.sum()) - 1]
        assert torch.equal(actions[~own], last.expand(int((~own).sum()), -1))
    assert chunks.actions.abs().max() <= 1


def test_some_episodes_give_their_own_chunks_only() -> None:
    some = read_chunks(DATA, NORMALIZER, 4, [[3, 0]])
    every = read_chunks(DATA, NORMALIZER, 4, EVERY)
    assert torch.equal(some.actions, torch.cat([every.actions[24:29], every.actions[:9]]))
    assert torch.equal(some.mask, torch.cat([every.mask[24:29], every.mask[:9]]))


@given(most=st.integers(1, 40), seed=st.integers(0, 5))
def test_a_cap_leaves_as_many_spread_evenly(most: int, seed: int) -> None:
    numbered = np.arange(29, dtype=np.float32)
    episode = replace(demonstration(29), actions=np.repeat(numbered[:, None] / 100, 4, 1))
    data = of(episode)
    chunks, again = (read_chunks(data, scaling(data), 1, [[0]], most=most, seed=seed) for _ in range(2))
    normalised = read_chunks(data, scaling(data), 1, [[0]]).actions[:, 0, 0]
    assert len(chunks) == min(most, 29)
    assert torch.equal(chunks.actions, again.actions)
    if most < 29:
        places = torch.searchsorted(normalised[1:-1].contiguous(), chunks.actions[:, 0, 0].contiguous()).double()
        even = (torch.arange(most, dtype=torch.float64) + 0.5) * 29 / most
        assert (places - even).abs().max() <= 29 / most + 2


def test_another_seed_leaves_others() -> None:
    a, b = (read_chunks(DATA, NORMALIZER, 2, EVERY, most=7, seed=s) for s in (0, 1))
    assert not torch.equal(a.actions, b.actions)


@given(count=st.integers(0, 200), seed=st.integers(0, 9))
def test_a_tenth_of_the_episodes_is_held_out(count: int, seed: int) -> None:
    own, aside = hold_out(count, seed=seed)
    assert sorted(own + aside) == list(range(count))
    assert len(aside) == (0 if count < 2 else max(1, round(count / 10)))
    assert (own, aside) == hold_out(count, seed=seed)


def test_scaling_is_that_of_a_policy_trained_on_the_data() -> None:
    rows = np.concatenate([e.actions for e in EPISODES])
    x = torch.from_numpy(EPISODES[0].actions)
    low, high = (torch.from_numpy(np.quantile(rows, q, axis=0)).float() for q in (0.01, 0.99))
    expected = ((x - (low + high) / 2) / ((high - low) / 2)).clamp(-1, 1)
    got = NORMALIZER.normalise(x, robots(len(x)))
    torch.testing.assert_close(got[:, :3], expected[:, :3])
    torch.testing.assert_close(got[:, 3], x[:, 3].clamp(-1, 1))  # the gripper's declared range


def test_each_data_set_gives_its_share() -> None:
    data = Mixture([InMemory(EPISODES), InMemory([demonstration(400, seed=9)])], [3.0, 1.0], [None, None])
    chunks = read_chunks(data, NORMALIZER, 4, [range(4), [0]], most=20)
    assert len(chunks) == 20
    first = read_chunks(data, NORMALIZER, 4, [range(4), []], most=20)
    assert torch.equal(chunks.actions[:15], first.actions)


def test_no_episode() -> None:
    with pytest.raises(ValueError, match="there is no episode to take chunks from"):
        read_chunks(DATA, NORMALIZER, 4, [[]])
