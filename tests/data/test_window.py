from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest
from demonstrations import ROBOT, demonstration, scene
from hypothesis import assume, given
from hypothesis import strategies as st

from anyvla.data.episode import Episode
from anyvla.data.formats.lerobot import LeRobotDataset
from anyvla.data.formats.lerobot_writer import write_dataset
from anyvla.data.window import EpochSampler, WindowConfig, WindowDataset


class InMemory:
    """Episodes in a list; counts what is read."""

    embodiment = ROBOT

    def __init__(self, episodes: list[Episode]) -> None:
        self.episodes = episodes
        self.single_frames = 0

    @property
    def lengths(self) -> list[int]:
        return [len(e) for e in self.episodes]

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, index: int) -> Episode:
        return self.episodes[index]

    def frames(self, camera: str, episode: int, indices: Sequence[int]) -> np.ndarray:
        self.single_frames += len(indices)
        return self.episodes[episode].images[camera][list(indices)]


EPISODES = [demonstration(n, seed=i) for i, n in enumerate([9, 1, 14, 5])]
STARTS = np.cumsum([0, 9, 1, 14, 5])


def expected(config: WindowConfig, index: int) -> dict[str, np.ndarray]:
    """One window, step by step."""
    number = int(np.searchsorted(STARTS, index, side="right")) - 1
    episode, last = EPISODES[number], index - STARTS[number]
    w, n = config.window, config.chunk
    out = {
        "images": np.zeros((w, 2, 32, 32, 3), np.uint8),
        "proprio": np.zeros((w, 4), np.float32),
        "actions": np.zeros((w, n, 4), np.float32),
        "action_mask": np.zeros((w, n), bool),
        "step_mask": np.zeros(w, bool),
    }
    seen = list(range(last, -1, -config.stride))[:w]
    for k, step in enumerate(reversed(seen)):
        out["step_mask"][k] = True
        out["proprio"][k] = episode.proprio[step]
        for v, camera in enumerate(ROBOT.cameras):
            out["images"][k, v] = episode.images[camera][step]
        for j, action in enumerate(episode.actions[step : step + n]):
            out["actions"][k, j], out["action_mask"][k, j] = action, True
    return out


@given(
    window=st.integers(1, 5),
    chunk=st.integers(1, 6),
    stride=st.integers(1, 4),
    cache_gb=st.sampled_from([0.0, 80_000e-9, 1.0]),  # nothing, the first two episodes, everything
    indices=st.lists(st.integers(0, 28), min_size=1, max_size=8),
)
def test_windows_are_those_cut_out_step_by_step(window, chunk, stride, cache_gb, indices):
    assume((window - 1) * stride < 14)  # the longest episode
    config = WindowConfig(window=window, chunk=chunk, stride=stride, cache_gb=cache_gb)
    batch = WindowDataset(InMemory(EPISODES), config).batch(np.array(indices))
    for b, index in enumerate(indices):
        for key, value in expected(config, index).items():
            assert np.array_equal(batch[key][b], value), key
    assert batch["instructions"] == [
        EPISODES[int(np.searchsorted(STARTS, i, side="right")) - 1].instruction for i in indices
    ]
    assert batch["images"].dtype == np.uint8
    assert batch["actions"].dtype == batch["proprio"].dtype == np.float32


def test_a_window_never_crosses_into_the_next_episode():
    batch = WindowDataset(InMemory(EPISODES), WindowConfig(window=3, chunk=4, stride=2)).batch(np.array([8, 9, 10]))
    assert batch["step_mask"].tolist() == [[True, True, True], [True, False, False], [True, False, False]]
    assert batch["action_mask"][0].sum(1).tolist() == [4, 3, 1]  # the chunks from steps 4, 6 and 8 of 9
    assert batch["action_mask"][1].sum(1).tolist() == [1, 0, 0]
    assert batch["action_mask"][2].sum(1).tolist() == [4, 0, 0]


def test_frames_are_kept_as_far_as_they_fit():
    data = InMemory(EPISODES)
    windows = WindowDataset(data, WindowConfig(cache_gb=80_000e-9))  # 13 frames of 6144 bytes: episodes 0 and 1
    assert windows.kept_in_memory == 10 / 29
    windows.batch(np.arange(10))
    assert data.single_frames == 0
    windows.batch(np.array([3, 20]))
    assert data.single_frames == 2  # one frame of two cameras


def test_preload_reports_progress():
    seen = []
    WindowDataset(InMemory(EPISODES), WindowConfig()).preload(lambda done, total: seen.append((done, total)))
    assert seen[-1] == (4, 4)


def test_on_disk_cached_and_uncached_agree(tmp_path):
    write_dataset(tmp_path / "set", ROBOT, EPISODES)
    dataset = LeRobotDataset(tmp_path / "set")
    indices = np.array([0, 8, 9, 15, 23, 28])
    kept, read = (
        WindowDataset(dataset, WindowConfig(window=3, stride=3, cache_gb=gb)).batch(indices) for gb in (1.0, 0.0)
    )
    assert all(np.array_equal(kept[k], read[k]) for k in kept)


def test_threads_may_share_a_dataset():
    windows = WindowDataset(InMemory(EPISODES), WindowConfig(window=2))
    indices = np.arange(29)
    results: list = []
    threads = [threading.Thread(target=lambda: results.append(windows.batch(indices)["images"])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(np.array_equal(r, results[0]) for r in results)


def test_bad_input():
    mixed = demonstration(5, images={"corner": scene(5), "wrist": scene(5, 48)})
    with pytest.raises(ValueError, match="must have one size, got corner 32x32, wrist 48x48: render or crop"):
        WindowDataset(InMemory([mixed]), WindowConfig(chunk=4))
    larger = demonstration(5, images={"corner": scene(5, 48), "wrist": scene(5, 48)})
    with pytest.raises(ValueError, match=r"episode 1: camera 'corner' has frames of shape \(5, 48, 48, 3\), expected"):
        WindowDataset(InMemory([EPISODES[0], larger]), WindowConfig()).preload()
    with pytest.raises(ValueError, match="holds no episode"):
        WindowDataset(InMemory([]), WindowConfig())
    with pytest.raises(IndexError, match=r"in \[0, 29\)"):
        WindowDataset(InMemory(EPISODES), WindowConfig()).batch(np.array([29]))
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        WindowConfig(stride=0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "actions",
            np.nan,
            r"actions must be finite: episode 1, step 4, group 'gripper', dim 0 of it, is nan \(2 of 3 episodes "
            r"hold such numbers\): mend these episodes or leave them out",
        ),
        ("proprio", -np.inf, "proprio must be finite: episode 1, step 4, group 'opening', dim 0 of it, is -inf"),
    ],
)
def test_numbers_that_are_not_finite_are_found_at_once(name, value, message):
    episodes = [demonstration(6, seed=i) for i in range(3)]
    getattr(episodes[1], name)[4, 3] = value
    getattr(episodes[2], name)[0, 0] = value
    with pytest.raises(ValueError, match=message):
        WindowDataset(InMemory(episodes), WindowConfig(chunk=4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"actions": np.zeros((6, 7), np.float32)},
            r"episode 1 of 2: actions have shape \(6, 7\), but embodiment 'arm' declares 4 dims \(hand 3, gripper 1\), "
            "and the episode has 6 steps: declare the groups that the data has",
        ),
        (
            {"proprio": np.zeros((6, 2), np.float32)},
            r"proprio have shape \(6, 2\), but embodiment 'arm' declares 4 dims",
        ),
        ({"proprio": np.zeros((5, 4), np.float32)}, r"proprio have shape \(5, 4\), .* and the episode has 6 steps"),
    ],
)
def test_vectors_of_another_size_than_declared(changes, message):
    episodes = [demonstration(6), demonstration(6, **changes)]
    with pytest.raises(ValueError, match=message):
        WindowDataset(InMemory(episodes), WindowConfig(chunk=4))


def test_windows_and_chunks_that_no_episode_supplies():
    data = InMemory([demonstration(n) for n in (30, 40)])
    with pytest.raises(
        ValueError,
        match=r"a window of 16 steps with stride 8 spans 121 steps of an episode, but the longest of 2 episodes "
        r"\(number 1\) has 40 steps, so that no window would ever be full: use a window of at most 5, a stride "
        r"\(the actions executed at once\) of at most 2, or longer episodes",
    ):
        WindowDataset(data, WindowConfig(window=16, stride=8))
    for config in (WindowConfig(window=5, stride=8), WindowConfig(window=16, stride=2)):
        assert len(WindowDataset(data, config)) == 70
    with pytest.raises(ValueError, match="use a window of at most 40, or longer episodes"):
        WindowDataset(data, WindowConfig(window=64))
    with pytest.raises(ValueError, match=r"a chunk of 64 actions, but the longest .* has 40 steps, .* at most 40, or"):
        WindowDataset(data, WindowConfig(chunk=64))


def test_windows_and_chunks_that_few_episodes_supply_are_told(caplog):
    data = InMemory([demonstration(n) for n in (6, 6, 6, 12)])
    WindowDataset(data, WindowConfig(window=3, stride=5, chunk=6))
    assert [r.getMessage() for r in caplog.records] == [
        "75 % of the 4 episodes are too short for one full window of 3: that takes 11 steps, and half of them have 6 "
        "or fewer"
    ]
    caplog.clear()
    WindowDataset(data, WindowConfig(chunk=8))
    assert "75 % of the 4 episodes are too short for one full chunk of 8" in caplog.text


@given(n=st.integers(1, 50), batch_size=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_every_number_comes_up_once_per_epoch(n, batch_size, seed):
    sampler = EpochSampler(n, batch_size, seed)
    steps = -(-3 * n // batch_size)
    stream = np.concatenate([sampler.indices(s) for s in range(steps)])
    assert len(stream) == steps * batch_size
    for epoch in range(3):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


@given(n=st.integers(1, 50), batch_size=st.integers(1, 70), step=st.integers(0, 10_000))
def test_a_batch_depends_on_seed_and_step_only(n, batch_size, step):
    used = EpochSampler(n, batch_size, 3)
    for s in (5, 0, step + 1):
        used.indices(s)
    assert np.array_equal(used.indices(step), EpochSampler(n, batch_size, 3).indices(step))


def test_seeds_and_epochs_differ():
    sampler = EpochSampler(100, 100, 0)
    assert not np.array_equal(sampler.indices(0), sampler.indices(1))
    assert not np.array_equal(sampler.indices(0), EpochSampler(100, 100, 1).indices(0))
    with pytest.raises(ValueError, match="at least 1, got n=0, batch_size=4"):
        EpochSampler(0, 4, 0)
