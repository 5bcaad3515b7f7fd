from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from demonstrations import ROBOT, demonstration
from hypothesis import given
from hypothesis import strategies as st

from anyvla.actions.normalize import Statistics
from anyvla.data.chunks import action_normalizer, hold_out, read_chunks
from anyvla.data.episode import Episode
from anyvla.data.window import WindowConfig, WindowDataset

LENGTHS = [9, 1, 14, 5]


class InMemory:
    embodiment = ROBOT

    def __init__(self, episodes: Sequence[Episode]) -> None:
        self.episodes = list(episodes)
        rows = np.concatenate([e.actions for e in self.episodes]) if self.episodes else np.zeros((1, 4))
        low, high = np.nanquantile(rows, 0.01, axis=0), np.nanquantile(rows, 0.99, axis=0)
        self.statistics = {"action": {"q01": low.tolist(), "q99": high.tolist()}}

    @property
    def lengths(self) -> list[int]:
        return [len(e) for e in self.episodes]

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, index: int) -> Episode:
        return self.episodes[index]


DATA = InMemory([demonstration(n, seed=i) for i, n in enumerate(LENGTHS)])
NORMALIZER = action_normalizer(DATA, "quantile")


@given(length=st.integers(1, 20))
def test_they_are_the_chunks_that_training_cuts_out(length: int) -> None:
    chunks = read_chunks(DATA, NORMALIZER, length)
    windows = WindowDataset(DATA, WindowConfig(chunk=min(length, 14)))
    batch = windows.batch(np.arange(sum(LENGTHS)))
    n = min(length, 14)
    mask = torch.from_numpy(batch["action_mask"][:, 0])
    assert len(chunks) == sum(LENGTHS)
    assert torch.equal(chunks.mask[:, :n], mask)
    assert not chunks.mask[:, n:].any()
    trained = NORMALIZER.normalise(torch.from_numpy(batch["actions"][:, 0]))
    assert torch.equal(chunks.actions[:, :n][mask], trained[mask])
    for actions, own in zip(chunks.actions, chunks.mask, strict=True):
        last = actions[int(own.sum()) - 1]
        assert torch.equal(actions[~own], last.expand(int((~own).sum()), -1))
    assert chunks.actions.abs().max() <= 1


def test_some_episodes_give_their_own_chunks_only() -> None:
    some = read_chunks(DATA, NORMALIZER, 4, [3, 0])
    every = read_chunks(DATA, NORMALIZER, 4)
    assert torch.equal(some.actions, torch.cat([every.actions[24:29], every.actions[:9]]))
    assert torch.equal(some.mask, torch.cat([every.mask[24:29], every.mask[:9]]))


@given(most=st.integers(1, 40), seed=st.integers(0, 5))
def test_a_cap_leaves_as_many_spread_evenly(most: int, seed: int) -> None:
    numbered = np.arange(29, dtype=np.float32)
    episode = replace(demonstration(29), actions=np.repeat(numbered[:, None] / 100, 4, 1))
    data = InMemory([episode])
    chunks = read_chunks(data, action_normalizer(data, "quantile"), 1, most=most, seed=seed)
    normalised = read_chunks(data, action_normalizer(data, "quantile"), 1).actions[:, 0, 0]
    assert len(chunks) == min(most, 29)
    assert torch.equal(
        chunks.actions, read_chunks(data, action_normalizer(data, "quantile"), 1, most=most, seed=seed).actions
    )
    if most < 29:
        places = torch.searchsorted(normalised[1:-1].contiguous(), chunks.actions[:, 0, 0].contiguous()).double()
        even = (torch.arange(most, dtype=torch.float64) + 0.5) * 29 / most
        assert (places - even).abs().max() <= 29 / most + 2


def test_another_seed_leaves_others() -> None:
    a, b = (read_chunks(DATA, NORMALIZER, 2, most=7, seed=s) for s in (0, 1))
    assert not torch.equal(a.actions, b.actions)


@given(count=st.integers(0, 200), seed=st.integers(0, 9))
def test_a_tenth_of_the_episodes_is_held_out(count: int, seed: int) -> None:
    own, aside = hold_out(count, seed=seed)
    assert sorted(own + aside) == list(range(count))
    assert len(aside) == (0 if count < 2 else max(1, round(count / 10)))
    assert (own, aside) == hold_out(count, seed=seed)


def test_scaling_is_that_of_a_policy_trained_on_the_data() -> None:
    statistics = Statistics(DATA.statistics["action"], {}, "f")
    x = torch.from_numpy(DATA[0].actions)
    low, high = (torch.tensor(statistics.action[key]) for key in ("q01", "q99"))
    expected = ((x - (low + high) / 2) / ((high - low) / 2)).clamp(-1, 1)
    torch.testing.assert_close(NORMALIZER.normalise(x)[:, :3], expected[:, :3])
    torch.testing.assert_close(NORMALIZER.normalise(x)[:, 3], x[:, 3].clamp(-1, 1))  # the gripper's declared range


def test_bad_data_name_episode_and_step() -> None:
    broken = demonstration(6, seed=1)
    broken.actions[4, 2] = np.nan
    with pytest.raises(ValueError, match="actions must be finite: episode 1, step 4, group 'hand', dim 2"):
        read_chunks(InMemory([demonstration(5), broken]), NORMALIZER, 4)
    with pytest.raises(ValueError, match="there is no episode to take chunks from"):
        read_chunks(InMemory([]), NORMALIZER, 4)
