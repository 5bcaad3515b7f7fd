"""Every step of an episode weighs the same in an epoch, whatever the window and the stride."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyvla.data.training.cutting import count_windows, list_steps
from anyvla.data.training.mixture import Mixture
from anyvla.data.training.sampler import MixtureSampler, WindowIndices
from anyvla.data.training.window import WindowConfig, WindowDataset
from tests.data.demonstrations import InMemory, demonstration

WINDOWS = st.sampled_from([1, 2, 3, 4, 8])


def every_window(length: int, window: int, stride: int) -> list[list[int]]:
    [count] = count_windows(np.array([length]), window, stride)
    return [list_steps(end, length, window, stride).tolist() for end in range(count)]


@given(length=st.integers(1, 40), window=WINDOWS, stride=st.integers(1, 12))
def test_each_step_is_once_at_each_distance_from_the_end_of_a_window(length, window, stride):
    """A window that hangs over the end of its episode lacks its newest steps, which count as distance."""
    seen = Counter()
    stride_here = min(stride, length)
    for end, steps in enumerate(every_window(length, window, stride)):
        assert 1 <= len(steps) <= window
        assert set(np.diff(steps)) <= {stride_here}
        seen.update((step, (end - step) // stride_here) for step in steps)
    assert seen == Counter({(step, distance): 1 for step in range(length) for distance in range(window)})


@given(length=st.integers(1, 40), window=WINDOWS, stride=st.integers(1, 12))
def test_windows_that_end_at_a_step_have_the_steps_of_a_session(length, window, stride):
    for end in range(length):
        session = list(range(end, -1, -min(stride, length)))[:window]
        assert list_steps(end, length, window, stride).tolist() == session[::-1]


def test_windows_by_hand():
    assert every_window(5, 2, 2) == [[0], [1], [0, 2], [1, 3], [2, 4], [3], [4]]
    assert every_window(3, 3, 1) == [[0], [0, 1], [0, 1, 2], [1, 2], [2]]
    assert every_window(2, 2, 4) == [[0], [1], [0], [1]]  # shorter than the stride
    assert every_window(3, 1, 4) == [[0], [1], [2]]


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4), stride=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_each_step_is_in_one_whole_row_which_begins_as_a_session_could(lengths, stride):
    episodes = [demonstration(n, seed=i) for i, n in enumerate(lengths)]
    mixture = Mixture([InMemory(episodes)], [1.0], [None])
    longest = -(-max(lengths) // stride)
    windows = WindowDataset(mixture, WindowConfig(window=longest, chunk=1, stride=stride, whole=True))
    assert windows.sizes == [sum(min(stride, n) for n in lengths)]
    numbers = np.arange(windows.sizes[0])
    batch = windows.batch(WindowIndices(np.zeros_like(numbers), numbers, numbers.astype(np.uint64)))
    seen = Counter()
    for proprio, valid, (_, number, last) in zip(
        batch["proprio"], batch["step_mask"], batch["samples"].tolist(), strict=True
    ):
        episode = episodes[number]
        steps = np.arange(last % min(stride, len(episode)), len(episode), min(stride, len(episode)))
        assert last == steps[-1]
        assert valid.sum() == len(steps)
        assert np.array_equal(proprio[: len(steps)], episode.proprio[steps])
        seen.update((number, step) for step in steps.tolist())
    assert seen == Counter({(i, step): 1 for i, n in enumerate(lengths) for step in range(n)})
    assert windows.end_within(WindowIndices(np.zeros_like(numbers), numbers, numbers.astype(np.uint64))).all()


def test_a_batch_of_whole_rows_is_as_long_as_its_longest_one():
    mixture = Mixture([InMemory([demonstration(n) for n in (3, 10, 20)])], [1.0], [None])
    windows = WindowDataset(mixture, WindowConfig(window=64, chunk=1, stride=2, whole=True))
    for numbers, steps in (([0, 1], 2), ([0, 2], 5), ([4, 3], 10)):
        batch = windows.batch(WindowIndices(np.zeros(2, np.int64), np.array(numbers), np.zeros(2, np.uint64)))
        assert batch["step_mask"].shape == (2, steps)
        assert batch["images"].shape[1] == batch["actions"].shape[1] == steps


@pytest.mark.parametrize("trained", [True, False])
def test_episodes_longer_than_the_longest_row_are_refused(trained):
    mixture = Mixture([InMemory([demonstration(n) for n in (6, 21)])], [1.0], [None])
    config = WindowConfig(window=11, chunk=1, stride=2, whole=True)
    assert WindowDataset(mixture, config, trained=trained).sizes == [4]
    with pytest.raises(
        ValueError,
        match=r"trains on whole episodes, and episode 1 of memory has 21 steps: with 2 executed at once, a row of 11 "
        r"steps, where model\.history\.steps allows 10\. Raise it to 11",
    ):
        WindowDataset(mixture, WindowConfig(window=10, chunk=1, stride=2, whole=True), trained=trained)


def sum_weights(windows: WindowDataset, batch_size: int, seed: int) -> list[Counter]:
    """Return for each source the share of the loss of each action that begins at each step, over whole epochs."""
    weights = [Counter() for _ in windows.sizes]
    for source, size in enumerate(windows.sizes):
        own = MixtureSampler([size], [1.0], batch_size, seed)
        draws = [own.sample(step) for step in range(-(-size // batch_size))]
        numbers = np.concatenate([draw.windows for draw in draws])[:size]
        draw = WindowIndices(np.full(size, source), numbers, np.zeros(size, np.uint64))
        batch = windows.batch(draw)
        config = windows.config
        for row, (_, episode, last) in enumerate(batch["samples"].tolist()):
            count = int(batch["step_mask"][row].sum())
            stride = min(config.stride, int(windows.mixture.datasets[source].lengths[episode]))
            for k in range(count):
                step = last - (count - 1 - k) * stride
                for n in np.flatnonzero(batch["action_mask"][row, k]):
                    weights[source][episode, step, int(n)] += windows.shares[source] / size
    return weights


@given(
    lengths=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=3), min_size=1, max_size=3),
    window=WINDOWS,
    stride=st.integers(1, 5),
    shares=st.lists(st.floats(0.1, 5), min_size=3, max_size=3),
    batch_size=st.integers(1, 7),
)
@settings(max_examples=25, deadline=None)
def test_over_an_epoch_each_step_of_a_mixture_has_the_weight_of_its_source(lengths, window, stride, shares, batch_size):
    data = [
        InMemory([demonstration(n, seed=10 * i + j) for j, n in enumerate(own)], fingerprint=str(i))
        for i, own in enumerate(lengths)
    ]
    mixture = Mixture(data, shares[: len(data)], [None] * len(data))
    config = WindowConfig(window=window, chunk=3, stride=stride)
    windows = WindowDataset(mixture, config, trained=False)
    weights = sum_weights(windows, batch_size, seed=0)
    for own, of, share in zip(lengths, weights, mixture.shares, strict=True):
        every = {
            (episode, step, n)
            for episode, length in enumerate(own)
            for step, n in itertools.product(range(length), range(3))
            if step + n < length
        }
        assert set(of) == every
        for weight in of.values():
            assert weight == pytest.approx(window * share / sum(own), rel=1e-6)


def test_windows_of_one_step_are_the_steps():
    """So nothing changes for policies without history: neither the windows nor the shares of sources."""
    data = [InMemory([demonstration(n) for n in of], fingerprint=str(of)) for of in ((9, 1, 5), (4, 30))]
    mixture = Mixture(data, [0.3, 0.1], [None, None])
    windows = WindowDataset(mixture, WindowConfig(stride=4), trained=False)
    assert windows.sizes == [15, 34]
    assert windows.shares.tolist() == mixture.shares.tolist()
