from __future__ import annotations

import dataclasses
import json
import os
import zipfile
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest

from anyvla.data import cache_folder
from anyvla.data.episode import EpisodeDataset
from anyvla.data.formats.folder import write_description
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.open import open_dataset
from anyvla.data.robot_statistics import is_same_data, pool_statistics
from anyvla.robot.normalize import Statistics
from anyvla.robot.space import ActionSpace, Group
from tests.data.demonstrations import ROBOT, InMemory, demonstration

EPISODES = [demonstration(5 + i, seed=i) for i in range(6)]


def statistics_of(dataset: EpisodeDataset) -> Statistics:
    return pool_statistics([dataset])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYVLA_CACHE", str(tmp_path))
    return tmp_path / "statistics"


def test_statistics_are_of_all_rows():
    rows = np.concatenate([e.actions for e in EPISODES]).astype(np.float64)
    of = statistics_of(InMemory(EPISODES)).action
    for key, value in (
        ("min", rows.min(0)),
        ("max", rows.max(0)),
        ("mean", rows.mean(0)),
        ("std", rows.std(0)),
        ("q01", np.quantile(rows, 0.01, axis=0)),
        ("q99", np.quantile(rows, 0.99, axis=0)),
    ):
        np.testing.assert_allclose(of[key], value, atol=1e-12)
    assert of["count"] == [len(rows)]


def test_ordinary_dims_are_scaled_by_percentiles_and_rare_motion_by_its_whole_range():
    numbers = np.zeros((1001, 4), np.float32)
    numbers[:, 0] = np.random.default_rng(0).permutation(1001)
    numbers[500:505, 1] = 7  # rests, and moves once
    found = statistics_of(InMemory([demonstration(1001, actions=numbers, proprio=numbers[:, ::-1].copy())]))
    assert (found.action["low"], found.action["high"]) == ([10, 0, 0, 0], [990, 7, 0, 0])
    assert (found.proprio["low"], found.proprio["high"]) == ([0, 0, 0, 10], [0, 0, 7, 990])


def test_proprio_and_actions_have_separate_statistics():
    found = statistics_of(InMemory(EPISODES))
    for of, rows in ((found.action, [e.actions for e in EPISODES]), (found.proprio, [e.proprio for e in EPISODES])):
        np.testing.assert_allclose(of["mean"], np.concatenate(rows).mean(0, np.float64), atol=1e-12)


def described(fingerprint: str, **changes: dict[str, list[float]]) -> Statistics:
    """Return statistics as of an earlier version, without the range by which dims are scaled."""
    of = {"min": [0.0], "q01": [1.0], "q99": [8.0], "max": [9.0], "count": [50]}
    return Statistics(**{name: of | changes.get(name, {}) for name in ("action", "proprio")}, fingerprint=fingerprint)


def test_data_is_the_same_if_its_fingerprint_is():
    now = described("2-a")
    assert is_same_data(described("2-a"), now)
    assert is_same_data(described("2-a", action={"max": [10.0]}), now)
    assert not is_same_data(described("2-b"), now)


@pytest.mark.parametrize("part", ["action", "proprio"])
@pytest.mark.parametrize("key", ["min", "q01", "q99", "max", "count"])
def test_data_with_old_fingerprints_is_compared_by_its_values(part, key):
    now = described("2-a", **{name: {"low": [1.0], "high": [8.0]} for name in ("action", "proprio")})
    assert is_same_data(described("a"), now)
    assert not is_same_data(described("a", **{part: {key: [2.5]}}), now)


@pytest.mark.parametrize("part", ["action", "proprio"])
def test_data_differs_if_a_dim_is_scaled_differently(part):
    ends = {"low": [1.0], "high": [8.0]}
    for changes in ({"low": [0.5]}, {"high": [9.0]}):
        scaled = {name: ends | (changes if name == part else {}) for name in ("action", "proprio")}
        assert not is_same_data(described("a"), described("2-a", **scaled))


def test_several_data_sets_are_pooled_under_their_own_fingerprint():
    whole = statistics_of(InMemory(EPISODES))
    parts = [InMemory(EPISODES[:2], fingerprint="a"), InMemory(EPISODES[2:], fingerprint="b")]
    both = pool_statistics(parts)
    assert (both.action, both.proprio) == (whole.action, whole.proprio)
    assert both.fingerprint not in ("a", "b", whole.fingerprint)
    assert pool_statistics(parts[:1]).fingerprint == "a"


class Unreadable(InMemory):
    def __getitem__(self, index):
        raise AssertionError("the numbers were read again")


def test_statistics_are_cached_by_fingerprint_and_damaged_files_ignored(cache):
    first = statistics_of(InMemory(EPISODES))
    assert statistics_of(Unreadable(EPISODES)) == first
    other = statistics_of(InMemory(EPISODES[:3], fingerprint="changed"))
    assert other.action != first.action
    path = cache / f"{'m' * 64}.json"
    path.write_bytes(path.read_bytes()[:100])  # cut
    assert statistics_of(InMemory(EPISODES)) == first
    path.write_bytes((cache / "changed.json").read_bytes())  # of other data, under this name
    assert statistics_of(InMemory(EPISODES)) == first


def test_cached_statistics_of_another_version_are_computed_again(cache):
    first = statistics_of(InMemory(EPISODES))
    kept = json.loads(cache_folder.read("statistics", f"{'m' * 64}.json") or b"")
    other = kept | {"version": kept["version"] - 1, "action": {"min": [0.0]}}
    cache_folder.write("statistics", f"{'m' * 64}.json", json.dumps(other).encode())
    assert statistics_of(InMemory(EPISODES)) == first


def test_no_frame_is_decoded():
    class Dark(dict):
        def __getitem__(self, camera):
            raise AssertionError("a frame was asked for")

    dark = [dataclasses.replace(e, images=Dark()) for e in EPISODES]
    assert statistics_of(InMemory(dark)).action["count"] == [sum(map(len, EPISODES))]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"actions": np.zeros((6, 7), np.float32)},
            r"memory, episode 1: actions have shape \(6, 7\), but embodiment 'arm' declares 4 dims "
            r"\(hand 3, gripper 1\), and the episode has 6 steps: declare the groups that the data has",
        ),
        ({"proprio": np.zeros((6, 2), np.float32)}, r"proprio have shape \(6, 2\), but embodiment 'arm' declares 4"),
        ({"proprio": np.zeros((5, 4), np.float32)}, r"proprio have shape \(5, 4\), .* and the episode has 6 steps"),
        (
            {"actions": np.where(np.eye(6, 4), np.nan, 0).astype(np.float32)},
            "memory, episode 1: actions must be finite: step 0, group 'hand', dim 0, is nan",
        ),
        ({"proprio": np.full((6, 4), -np.inf, np.float32)}, "proprio must be finite: step 0, group 'hand', dim 0"),
    ],
)
def test_invalid_numbers_are_refused_with_their_position(changes, message):
    with pytest.raises(ValueError, match=message):
        statistics_of(InMemory([demonstration(6), demonstration(6, **changes)]))


def test_a_robot_without_proprio():
    robot = dataclasses.replace(ROBOT, proprio=dataclasses.replace(ROBOT.proprio, groups=()))
    blind = [dataclasses.replace(e, embodiment=robot, proprio=e.proprio[:, :0]) for e in EPISODES]
    assert statistics_of(InMemory(blind, robot)).proprio["min"] == []


@pytest.mark.parametrize("form", ["lerobot", "folder"])
def test_an_edit_in_the_middle_of_a_large_file_gives_new_statistics(tmp_path, form):
    """The edit keeps the size and the time of modification."""
    wide = dataclasses.replace(ROBOT, action=ActionSpace(groups=(Group(name="joints", size=100, kind="joints"),)))
    numbers = np.random.default_rng(1).normal(size=(500, 100)).astype(np.float32)
    long = [demonstration(500, seed=1, embodiment=wide, actions=numbers)]
    root = tmp_path / "data"
    if form == "lerobot":
        write_dataset(root, wide, long)
        [path] = root.glob("data/**/*.parquet")
        table = pq.read_table(path)
        pq.write_table(table, path, compression="none", use_dictionary=False)
    else:
        write_description(root, wide)
        path = root / "episode_0.npz"
        images = {f"images/{c}": np.asarray(v) for c, v in long[0].images.items()}
        np.savez(path, instruction="go", actions=long[0].actions, proprio=long[0].proprio, **images)
    first, before = statistics_of(open_dataset(root)), path.stat()
    contents = bytearray(path.read_bytes())
    value = long[0].actions[240].tobytes()
    at = contents.index(value)
    assert 1 << 16 < at < len(contents) - (1 << 16)  # neither in the head nor in the tail
    contents[at : at + 4] = np.float32(1e3).tobytes()
    if form == "folder":  # its checksum, as a program that edits it would write it
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo("actions.npy")
            old = info.CRC.to_bytes(4, "little")
            raw = bytearray(archive.read("actions.npy"))
        place = raw.index(value)
        raw[place : place + 4] = np.float32(1e3).tobytes()
        contents = contents.replace(old, zlib.crc32(bytes(raw)).to_bytes(4, "little"))
    path.write_bytes(contents)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    again = statistics_of(open_dataset(root))
    assert max(again.action["max"]) == 1e3
    assert again.fingerprint != first.fingerprint
