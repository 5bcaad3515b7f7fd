"""Tests of LeRobot videos that differ from info.json: the right frame is read, or an error names the episode."""

from __future__ import annotations

import itertools
import json
import shutil

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from anyvla.data.formats import video
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.open import open_dataset
from anyvla.data.tools.quality import check
from anyvla.data.transforms.resampled import Resampled
from tests.data.demonstrations import ROBOT, demonstration
from tests.data.numbered_videos import SIZE, numbers_in, write_video

HZ = ROBOT.control_hz
LENGTHS = (30, 17, 40)  # of the episodes, in one file of each camera
STEPS = np.arange(sum(LENGTHS)) / HZ  # time of each step of the file
FILE = "videos/observation.images.corner/chunk-000/file-000.mp4"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "set"
    pictures = {name: np.zeros((40, SIZE, SIZE, 3), np.uint8) for name in ROBOT.cameras}
    episodes = [demonstration(n, seed=i, images={c: p[:n] for c, p in pictures.items()}) for i, n in enumerate(LENGTHS)]
    write_dataset(root, ROBOT, episodes)
    return root


@pytest.fixture
def root(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "set")


def shown(root):
    dataset = open_dataset(root)
    return [n for i in range(3) for n in numbers_in(dataset[i].images["corner"][:])]


def findings(root):
    return [(f.severity, f.episode, f.text) for f in check(open_dataset(root)) if f.kind == "video"]


RATES = [80, 20, 39.96, 40.04, 120, 10, 60, 40]


@pytest.mark.parametrize("rate", RATES)
def test_videos_of_any_rate(root, rate):
    times = np.arange(int(np.ceil(STEPS[-1] * rate)) + 1) / rate
    write_video(root / FILE, times)
    half = min(1 / rate, 1 / HZ) / 2
    expected = [int(np.flatnonzero(times < t + half - 1e-6)[-1]) for t in STEPS]
    bounds = np.cumsum((0, *LENGTHS)) / HZ
    first = [int(np.flatnonzero(times < b + half - 1e-6)[-1]) for b in bounds]
    found = shown(root)
    assert found == expected
    if rate >= HZ - 1:  # no episode shows a frame of the next one
        for i, n in enumerate(np.cumsum(LENGTHS)[:-1]):
            assert found[n - 1] < first[i + 1]
    said = [text for severity, episode, text in findings(root) if severity == "warning" and episode == 2]
    assert any(f"{rate:.5g} frames per second, info.json says 40" in text for text in said) == (rate != 40)


@pytest.mark.parametrize(
    ("name", "late", "container"),
    [
        ("edit list", 0.0, {}),
        ("no edit list: the first pts is late by the B-frames", 0.0, {"use_editlist": "0"}),
        ("late by less than half a frame", 0.01, {}),
        ("late by many frames", 0.5, {}),
        ("fragments, which have no index", 0.0, {"movflags": "frag_keyframe+empty_moov"}),
    ],
)
def test_the_first_timestamp_of_a_video_may_be_late(root, name, late, container):
    write_video(root / FILE, STEPS + late, options={"g": "12", "bf": "3"}, container=container)
    assert shown(root) == list(range(sum(LENGTHS)))


def test_a_video_with_a_slightly_fast_clock_is_read_to_its_end(tmp_path):
    """The video has a frame for each step, but is 0.15 % faster: the last step is after its end."""
    rate, count = HZ * 1.0015, 700
    images = dict.fromkeys(ROBOT.cameras, np.zeros((count, SIZE, SIZE, 3), np.uint8))
    write_dataset(tmp_path / "set", ROBOT, [demonstration(count, images=images)])
    write_video(tmp_path / "set" / FILE, np.arange(count) / rate)
    assert numbers_in(open_dataset(tmp_path / "set")[0].images["corner"][[0, 400, 650, 699]]) == [0, 401, 651, 699]
    assert [severity for severity, _, _ in findings(tmp_path / "set")] == ["warning"]


def test_an_index_on_the_clock_of_a_late_video(root):
    late = 0.5
    write_video(root / FILE, STEPS + late)
    path = next(root.glob("meta/episodes/*/*.parquet"))
    table = pq.read_table(path)
    for name in [n for n in table.column_names if n.endswith(("corner/from_timestamp", "corner/to_timestamp"))]:
        table = table.set_column(table.column_names.index(name), name, [table[name].to_numpy() + late])
    pq.write_table(table, path)
    assert shown(root) == list(range(sum(LENGTHS)))
    assert findings(root) == []


@pytest.mark.parametrize("codec", ["libx265", "libsvtav1"])
def test_other_codecs_at_another_rate(root, codec):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV cannot write {codec}")
    write_video(root / FILE, np.arange(200) / 80, codec, options={"g": "30"})
    assert shown(root) == list(range(0, 2 * sum(LENGTHS), 2))
    assert any("has codec" in text and "info.json says h264" in text for _, _, text in findings(root))


def test_dropped_frames_repeat_the_previous_frame(root):
    kept = np.delete(np.arange(len(STEPS)), [3, 4, 10, 50])
    write_video(root / FILE, STEPS[kept])
    assert shown(root) == (np.searchsorted(kept, np.arange(len(STEPS)), side="right") - 1).tolist()
    assert any("an uneven rate" in text for _, _, text in findings(root))


def test_a_float32_begin_just_below_a_frame_finds_that_frame(root):
    write_video(root / FILE, STEPS)
    path = next(root.glob("meta/episodes/*/*.parquet"))
    table = pq.read_table(path)
    key = "videos/observation.images.corner/from_timestamp"
    begins = np.nextafter(table[key].to_numpy().astype(np.float32), np.float32(-1)).astype(np.float64) - 1e-6
    pq.write_table(table.set_column(table.column_names.index(key), key, [begins.clip(0)]), path)
    assert shown(root) == list(range(sum(LENGTHS)))


@pytest.mark.parametrize("lacking", [1, 2, 10])
def test_a_short_video_makes_only_its_last_episode_unreadable(root, lacking):
    write_video(root / FILE, STEPS[: len(STEPS) - lacking])
    dataset = open_dataset(root)
    assert numbers_in(dataset[1].images["corner"][:]) == list(range(30, 47))
    last = dataset[2].images["corner"]
    assert numbers_in(last[: 40 - lacking]) == list(range(47, 87 - lacking))
    with pytest.raises(ValueError, match=rf"episode 2: .*-000\.mp4: frame 86 is missing.*has {87 - lacking} frames"):
        last[39]
    [(severity, episode, text)] = [f for f in findings(root) if "ends at" in f[2]]
    assert (severity, episode) == ("error", 2)
    assert f"({87 - lacking} frames)" in text
    assert FILE in text


def test_a_video_that_is_longer_than_its_index_is_reported(root):
    write_video(root / FILE, np.arange(100) / HZ)
    assert shown(root) == list(range(87))
    assert ("warning", 2, f"camera 'corner': {root / FILE} lasts 2.500 s, the index says 2.175 s") in findings(root)


def test_a_plain_data_set_has_no_finding(plain):
    assert findings(plain) == []


def test_a_video_of_another_size_is_reported(root):
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["observation.images.corner"]["shape"] = [64, 64, 3]
    (root / "meta/info.json").write_text(json.dumps(info))
    assert any("has frames of 96x96, info.json says 64x64" in text for _, _, text in findings(root))


def test_resampled_frames_follow_the_same_times(root):
    write_video(root / FILE, np.arange(180) / 80)
    slower = Resampled(open_dataset(root), 20)
    assert numbers_in(slower[1].images["corner"][:]) == list(range(60, 94, 4))


def test_times_recorded_at_an_uneven_rate_find_frames_of_an_uneven_video(root):
    rng = np.random.default_rng(0)
    uneven = np.concatenate([[0.0], np.cumsum(rng.uniform(0.015, 0.04, sum(LENGTHS) - 1))])
    path = next(root.glob("data/*/*.parquet"))
    table = pq.read_table(path)
    begins = np.cumsum((0, *LENGTHS))
    times = np.concatenate([uneven[a:b] - uneven[a] for a, b in itertools.pairwise(begins)])
    place = table.column_names.index("timestamp")
    pq.write_table(table.set_column(place, "timestamp", [times.astype(np.float32)]), path, row_group_size=30)
    index = next(root.glob("meta/episodes/*/*.parquet"))
    table = pq.read_table(index)
    key = "videos/observation.images.corner/from_timestamp"
    table = table.set_column(table.column_names.index(key), key, [uneven[begins[:-1]]])
    key, ends = key.replace("from", "to"), np.append(uneven[begins[1:-1]], uneven[-1] + 0.025)
    pq.write_table(table.set_column(table.column_names.index(key), key, [ends]), index)
    write_video(root / FILE, uneven)
    assert shown(root) == list(range(sum(LENGTHS)))


def test_recorded_times_are_ignored_if_each_step_has_a_frame(root):
    path = next(root.glob("data/*/*.parquet"))
    table = pq.read_table(path)
    times = np.concatenate([np.cumsum(np.r_[0, np.linspace(0.01, 0.05, n - 1)]) for n in LENGTHS])
    place = table.column_names.index("timestamp")
    pq.write_table(table.set_column(place, "timestamp", [times.astype(np.float32)]), path, row_group_size=30)
    write_video(root / FILE, STEPS)
    assert shown(root) == list(range(sum(LENGTHS)))


def test_an_even_video_is_indexed_without_reading_it(root, monkeypatch):
    opened = video._Video(root / FILE)
    monkeypatch.setattr(opened, "_container", None)  # reading packets would fail
    entries = [(e.timestamp, e.is_keyframe, e.is_discard) for e in opened._stream.index_entries]
    assert opened._timestamps(np.array(entries, np.int64))[1]
