from __future__ import annotations

import dataclasses
import pickle
import threading

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from anyvla.config import to_dict
from anyvla.data.episode import Episode, steady_timestamps
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.open import open_dataset
from anyvla.data.training.mixture import Mixture
from anyvla.data.training.sampler import WindowIndices
from anyvla.data.training.window import WindowBatch, WindowConfig, WindowDataset
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.space import ActionSpace, Group
from anyvla.robot.views import ViewConfig
from tests.data.demonstrations import ROBOT, Counted, InMemory, demonstration, scene

LENGTHS = [9, 1, 14, 5]
EPISODES = [demonstration(n, seed=i) for i, n in enumerate(LENGTHS)]


def of(*datasets: InMemory, instruction: str | None = None) -> Mixture:
    return Mixture(datasets, [1.0] * len(datasets), [instruction] * len(datasets))


def windows_of(config: WindowConfig, *episodes: Episode) -> WindowDataset:
    return WindowDataset(of(InMemory(list(episodes or EPISODES))), config)


def at(*indices: int, source: int = 0, chance: int = 0) -> WindowIndices:
    return WindowIndices(np.full(len(indices), source), np.array(indices), np.full(len(indices), chance, np.uint64))


def expected(config: WindowConfig, index: int) -> dict[str, np.ndarray]:
    """Return one window, built step by step."""
    w, n = config.window, config.chunk
    where = [(i, end) for i, t in enumerate(LENGTHS) for end in range(t + (w - 1) * min(config.stride, t))]
    number, last = where[index]
    episode = EPISODES[number]
    out = {
        "images": np.zeros((w, 2, 32, 32, 3), np.uint8),
        "proprio": np.zeros((w, 4), np.float32),
        "actions": np.zeros((w, n, 4), np.float32),
        "action_mask": np.zeros((w, n), bool),
        "step_mask": np.zeros(w, bool),
    }
    seen = [t for t in list(range(last, -1, -min(config.stride, len(episode))))[:w] if t < len(episode)]
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
    cache_gb=st.sampled_from([0.0, 80_000e-9, 1.0]),  # nothing, some episodes, everything
    fractions=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=8),
)
def test_windows_equal_a_reference_that_goes_step_by_step(window, chunk, stride, cache_gb, fractions):
    assume((window - 1) * stride < 14)  # the longest episode
    config = WindowConfig(window=window, chunk=chunk, stride=stride, cache_gb=cache_gb)
    windows = windows_of(config)
    indices = [int(fraction * windows.sizes[0]) for fraction in fractions]
    batch = windows.batch(at(*indices))
    for b, index in enumerate(indices):
        for key, value in expected(config, index).items():
            assert np.array_equal(batch[key][b], value), key
    assert batch["instructions"] == [EPISODES[number].instruction for _, number, _ in batch["samples"].tolist()]
    ends = windows.end_within(at(*indices))
    for (source, number, last), index, within in zip(batch["samples"].tolist(), indices, ends, strict=True):
        assert last < LENGTHS[number]
        assert within == (windows.find_window(source, number, last) == index)
    assert batch["images"].dtype == np.uint8
    assert batch["actions"].dtype == batch["proprio"].dtype == np.float32


def test_a_window_by_hand():
    """The window that ends at step 5 of 7 has steps 1, 3 and 5, each with the actions that follow."""
    numbers = np.arange(7, dtype=np.float32)
    columns = np.repeat(numbers[:, None], 4, 1)
    episode = demonstration(7, actions=columns, proprio=10 + columns)
    batch = windows_of(WindowConfig(window=3, chunk=3, stride=2), episode).batch(at(5, 1))
    assert batch["proprio"][0, :, 0].tolist() == [11, 13, 15]
    assert batch["actions"][0, :, :, 0].tolist() == [[1, 2, 3], [3, 4, 5], [5, 6, 0]]
    assert batch["action_mask"][0].tolist() == [[True] * 3, [True] * 3, [True, True, False]]
    # near the begin: step 1 alone, masked steps after it
    assert batch["step_mask"][1].tolist() == [True, False, False]
    assert batch["actions"][1, :, :, 0].tolist() == [[1, 2, 3], [0, 0, 0], [0, 0, 0]]


def test_a_window_that_hangs_over_the_end_by_hand():
    """Of the window that would end at step 9 of 7, steps 7 and 9 do not exist."""
    numbers = np.arange(7, dtype=np.float32)
    columns = np.repeat(numbers[:, None], 4, 1)
    windows = windows_of(WindowConfig(window=3, chunk=3, stride=2), demonstration(7, actions=columns, proprio=columns))
    batch = windows.batch(at(9, 6))
    assert windows.sizes == [7 + 2 * 2]
    assert batch["step_mask"].tolist() == [[True, False, False], [True, True, True]]
    assert batch["proprio"][0, :, 0].tolist() == [5, 0, 0]
    assert batch["actions"][0, 0, :, 0].tolist() == [5, 6, 0]
    assert batch["samples"].tolist() == [[0, 0, 5], [0, 0, 6]]
    assert windows.end_within(at(9, 6)).tolist() == [False, True]


def test_a_window_never_crosses_into_the_next_episode():
    """The first episode has 9 steps and 9 + 2 * 2 windows, the second 1 step and 1 + 2 * 1 windows."""
    batch = windows_of(WindowConfig(window=3, chunk=4, stride=2)).batch(at(8, 12, 13, 16))
    assert batch["samples"].tolist() == [[0, 0, 8], [0, 0, 8], [0, 1, 0], [0, 2, 0]]
    assert batch["step_mask"].sum(1).tolist() == [3, 1, 1, 1]
    assert batch["action_mask"][0].sum(1).tolist() == [4, 3, 1]  # the chunks from steps 4, 6 and 8 of 9
    assert batch["action_mask"][1:, 0].sum(1).tolist() == [1, 1, 4]


def counted(episode: Episode) -> Episode:
    return dataclasses.replace(episode, images={c: Counted(np.asarray(f)) for c, f in episode.images.items()})


def test_only_shown_frames_are_decoded_and_kept_frames_once():
    episodes = [counted(e) for e in EPISODES]
    windows = windows_of(WindowConfig(window=2, stride=3, cache_gb=60_000e-9), *episodes)  # 9 frames of two cameras
    windows.batch(at(8))
    windows.batch(at(3, 8, 0))
    assert [e.images["wrist"].decoded for e in episodes] == [9, 0, 0, 0]
    number = windows.find_window(0, 2, 10)
    windows.batch(at(number))  # of episode 2, which does not fit: steps 7 and 10
    windows.batch(at(number))
    assert [e.images["wrist"].decoded for e in episodes] == [9, 0, 4, 0]


def test_on_disk_cached_and_uncached_agree(tmp_path):
    write_dataset(tmp_path / "set", ROBOT, EPISODES)
    dataset = open_dataset(tmp_path / "set")
    kept, read = (
        WindowDataset(Mixture([dataset], [1], [None]), WindowConfig(window=3, stride=3, cache_gb=gb)).batch(
            at(0, 8, 9, 15, 23, 28)
        )
        for gb in (1.0, 0.0)
    )
    same(kept, read)


def same(one: WindowBatch, other: WindowBatch) -> None:
    assert all(np.array_equal(one[k], other[k]) for k in one)


def test_threads_may_share_a_dataset():
    windows = windows_of(WindowConfig(window=2, cache_gb=60_000e-9))
    results: list = []
    threads = [threading.Thread(target=lambda: results.append(windows.batch(at(*range(29))))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in results:
        same(result, results[0])


def test_windows_can_be_pickled():
    windows = windows_of(WindowConfig(window=2))
    before = windows.batch(at(3, 20))
    same(pickle.loads(pickle.dumps(windows)).batch(at(3, 20)), before)


ARMS = Embodiment(
    name="two arms",
    cameras=("head", "wrist"),
    control_hz=20,
    proprio=ActionSpace(groups=(Group(name="left_joints", size=6, kind="joints"),)),
    action=ActionSpace(
        groups=(
            Group(name="left_joints", size=6, kind="joints"),
            Group(name="gripper", size=1, kind="gripper", low=-1, high=1),
        )
    ),
)


def arms(length: int, seed: int = 0, size: int = 32) -> Episode:
    rng = np.random.default_rng(seed)
    return Episode(
        embodiment=ARMS,
        images={"head": scene(length, size, seed), "wrist": scene(length, size, seed + 1)},
        proprio=rng.normal(size=(length, 6)).astype(np.float32),
        actions=rng.normal(size=(length, 7)).astype(np.float32),
        instructions=("fold the towel", "fold it"),
        timestamps=steady_timestamps(length, 20),
    )


def test_robots_share_a_batch():
    """The shared layout has dims hand 3, gripper 1, left_joints 6 and views corner, wrist, head."""
    two = arms(9)
    data = WindowDataset(of(InMemory(EPISODES), InMemory([two], ARMS)), WindowConfig(window=2, chunk=4))
    batch = data.batch(WindowIndices(np.array([1, 0]), np.array([5, 8]), np.array([1, 0], np.uint64)))
    assert batch["robots"].tolist() == [1, 0]
    assert batch["instructions"] == ["fold it", "open the drawer"]
    assert batch["actions"].shape == (2, 2, 4, 10)
    assert batch["proprio"].shape == (2, 2, 10)  # hand 3, opening 1, left_joints 6
    assert np.array_equal(batch["proprio"][0, :, 4:], two.proprio[4:6])
    assert not batch["proprio"][0, :, :4].any()
    assert np.array_equal(batch["proprio"][1, :, :4], EPISODES[0].proprio[7:9])
    assert not batch["proprio"][1, :, 4:].any()
    assert batch["images"].shape == (2, 2, 3, 32, 32, 3)
    assert np.array_equal(batch["actions"][0, 1, :, 4:], two.actions[5:9, :6])
    assert np.array_equal(batch["actions"][0, 1, :, 3], two.actions[5:9, 6])
    assert not batch["actions"][0, :, :, :3].any()
    assert np.array_equal(batch["actions"][1, 1, 0, :4], EPISODES[0].actions[8])
    assert not batch["actions"][1, :, :, 4:].any()
    assert np.array_equal(batch["images"][0, 0, 2], two.images["head"][4])
    assert np.array_equal(batch["images"][0, 0, 1], two.images["wrist"][4])
    assert not batch["images"][0, :, 0].any()  # this robot has no corner camera
    assert np.array_equal(batch["images"][1, 1, 0], EPISODES[0].images["corner"][8])


def test_the_default_window_is_one_step_with_a_chunk_of_eight():
    assert to_dict(WindowConfig()) == {
        "window": 1,
        "chunk": 8,
        "stride": 1,
        "whole": False,
        "view": {"size": None, "fit": "stretch", "crop": 1.0},
        "cache_gb": 2.0,
    }


def test_the_memory_of_all_frames():
    """There are 29 steps of two cameras and 9 steps of two others, of 16 x 24 pixels of 3 bytes."""
    data = of(InMemory(EPISODES), InMemory([arms(9)], ARMS))
    windows = WindowDataset(data, WindowConfig(chunk=4, view=ViewConfig(size=(16, 24))))
    assert windows.decoded_gb == pytest.approx((29 * 2 + 9 * 2) * 16 * 24 * 3 / 1e9)
    assert windows.image_size == (16, 24)
    assert windows.sizes == [29, 9]


@pytest.mark.parametrize(
    ("cache_gb", "long_fits", "short_fits"),  # 9 steps of two cameras are 55 kB, 2 are 12
    [(0.0, False, False), (30_000e-9, False, True), (60_000e-9, True, False), (1.0, True, True)],
)
def test_frames_are_decoded_once_as_long_as_they_fit_in_memory(cache_gb, long_fits, short_fits):
    corner, wrist = Counted(scene(9)), Counted(scene(9))
    few = Counted(scene(2))
    data = [
        demonstration(9, images={"corner": corner, "wrist": wrist}),
        demonstration(2, images=dict.fromkeys(ROBOT.cameras, few)),
    ]
    windows = windows_of(WindowConfig(cache_gb=cache_gb, chunk=2), *data)
    for _ in range(3):
        windows.batch(at(3, 4, 10))
    assert corner.decoded == wrist.decoded == (9 if long_fits else 6)
    assert few.decoded == (4 if short_fits else 6)


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_views_are_in_the_order_of_the_robots_cameras(cache_gb):
    images = {"wrist": scene(3, seed=1), "corner": scene(3, seed=2)}
    windows = windows_of(WindowConfig(chunk=1, cache_gb=cache_gb), demonstration(3, images=images))
    [[[corner, wrist]]] = windows.batch(at(2))["images"]
    assert np.array_equal(corner, scene(3, seed=2)[2])
    assert np.array_equal(wrist, scene(3, seed=1)[2])


def test_windows_are_numbered_within_their_source():
    """One source has episodes of 9, 1, 14 and 5 steps, the other of 2, 3 and 8."""
    other = [demonstration(n, seed=i + 10) for i, n in enumerate([2, 3, 8])]
    data = WindowDataset(of(InMemory(EPISODES), InMemory(other, fingerprint="o")), WindowConfig())
    batch = data.batch(WindowIndices(np.array([1, 1, 1, 0, 0]), np.array([1, 2, 12, 2, 9]), np.zeros(5, np.uint64)))
    expected = [other[0].proprio[1], other[1].proprio[0], other[2].proprio[7]]
    expected += [EPISODES[0].proprio[2], EPISODES[1].proprio[0]]
    assert np.array_equal(batch["proprio"][:, 0], expected)
    assert data.sizes == [29, 13]
    with pytest.raises(IndexError, match="source 1 has 13 windows; no window 13"):
        data.batch(at(13, source=1))


def test_images_are_resized_to_one_size():
    data = of(InMemory(EPISODES), InMemory([arms(9, size=48)], ARMS))
    with pytest.raises(ValueError, match=r"one size, got memory corner 32x32, .*48x48: set model\.view\.size"):
        WindowDataset(data, WindowConfig(chunk=4))
    for gb in (0.0, 1.0):
        sized = WindowDataset(data, WindowConfig(chunk=4, view=ViewConfig(size=(16, 24)), cache_gb=gb))
        assert sized.batch(at(3, source=1))["images"].shape == (1, 1, 3, 16, 24, 3)


def test_instructions():
    unlabeled = demonstration(9, instructions=())
    windows = windows_of(WindowConfig(chunk=4), unlabeled)
    with pytest.raises(ValueError, match="has no instruction; give the source one"):
        windows.batch(at(0))
    instructed = WindowDataset(of(InMemory([unlabeled, EPISODES[0]]), instruction="do it"), WindowConfig(chunk=4))
    assert instructed.batch(at(0, 9))["instructions"] == ["do it", "open the drawer"]
    several = windows_of(WindowConfig(chunk=4), demonstration(9, instructions=("a", " ", "b", "c")))
    assert [several.batch(at(0, chance=c))["instructions"][0] for c in range(5)] == ["a", "b", "c", "a", "b"]


def test_bad_input():
    mixed = demonstration(5, images={"corner": scene(5), "wrist": scene(5, 48)})
    with pytest.raises(ValueError, match=r"must have one size, got corner 32x32, wrist 48x48: set model\.view\.size"):
        windows_of(WindowConfig(chunk=4), mixed)
    larger = demonstration(5, images={"corner": scene(5, 48), "wrist": scene(5, 48)}, provenance="set, episode 1")
    for gb in (0.0, 1.0):
        with pytest.raises(ValueError, match="set, episode 1: camera 'corner' has frames of 48x48, expected 32x32"):
            windows_of(WindowConfig(cache_gb=gb), EPISODES[0], larger).batch(at(9))
    with pytest.raises(ValueError, match="memory holds no episode"):
        WindowDataset(of(InMemory([])), WindowConfig())
    with pytest.raises(IndexError, match="source 0 has 29 windows; no window 29"):
        windows_of(WindowConfig()).batch(at(29))
    with pytest.raises(ValueError, match="stride"):
        WindowConfig(stride=0)


def test_windows_and_chunks_longer_than_every_episode_are_refused():
    data = [demonstration(n) for n in (30, 40)]
    with pytest.raises(
        ValueError,
        match=r"a window of 16 steps with stride 8 spans 121 steps of an episode, but the longest of 2 episodes "
        r"\(number 1 of memory\) has 40 steps, so that no window would ever be full: use a window of at most 5, a "
        r"stride \(the actions executed at once\) of at most 2, or longer episodes",
    ):
        windows_of(WindowConfig(window=16, stride=8), *data)
    for config, hanging in ((WindowConfig(window=5, stride=8), 4 * 8), (WindowConfig(window=16, stride=2), 15 * 2)):
        assert windows_of(config, *data).sizes == [70 + 2 * hanging]
    with pytest.raises(ValueError, match="use a window of at most 40, or longer episodes"):
        windows_of(WindowConfig(window=64), *data)
    with pytest.raises(ValueError, match=r"a chunk of 64 actions, but the longest .* has 40 steps, .* at most 40, or"):
        windows_of(WindowConfig(chunk=64), *data)


def test_windows_and_chunks_longer_than_most_episodes_give_a_warning(caplog):
    data = [demonstration(n) for n in (6, 6, 6, 12)]
    windows_of(WindowConfig(window=3, stride=5, chunk=6), *data)
    assert [r.getMessage() for r in caplog.records] == [
        "75 % of the 4 episodes of memory are too short for one full window of 3: that takes 11 steps, and half of "
        "them have 6 or fewer"
    ]
    caplog.clear()
    windows_of(WindowConfig(chunk=8), *data)
    assert "75 % of the 4 episodes of memory are too short for one full chunk of 8" in caplog.text
