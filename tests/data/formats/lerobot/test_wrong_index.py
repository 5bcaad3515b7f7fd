"""Tests of a LeRobot index that is wrong about one episode: it is named, and the others are read."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anyvla.data.formats.lerobot import merge as lerobot_merge
from anyvla.data.formats.lerobot.locations import find_wrong_spans
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.open import open_dataset
from anyvla.data.tools.quality import check
from anyvla.data.training.mixture import DataConfig, Source, open_mixture
from anyvla.data.transforms.repaired import RepairedDataset
from tests.data.demonstrations import ROBOT, demonstration

WRIST = "videos/observation.images.wrist"
COUNT = 7  # episodes, in two files


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "set"
    episodes = [demonstration(10 + i, seed=i) for i in range(COUNT)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lerobot_merge, "DATA_FILE_MB", 0.003)
        patch.setattr(lerobot_merge, "VIDEO_FILE_MB", 0.008)
        write_dataset(root, ROBOT, episodes)
    assert len(list(root.glob("data/*/*.parquet"))) > 1
    assert len(list(root.glob(f"{WRIST}/*/*.mp4"))) > 1
    return root


@pytest.fixture
def root(right, tmp_path):
    return shutil.copytree(right, tmp_path / "set")


def edit(root, column, number, value):
    """Change one cell of the table of episodes."""
    path = next(root.glob("meta/episodes/*/*.parquet"))
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[number] = value(values[number]) if callable(value) else value
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(values, table.schema.field(column).type)), path)


def check_only_unreadable(root, right, number):
    """Check that all other episodes are unchanged. Return the error of this one."""
    dataset, before = open_dataset(root), open_dataset(right)
    for i in set(range(COUNT)) - {number}:
        assert np.array_equal(dataset[i].actions, before[i].actions)
        assert np.array_equal(dataset[i].images["wrist"][:], before[i].images["wrist"][:])
    with pytest.raises(ValueError, match=rf"episode {number}: ") as caught:
        dataset[number]
    [finding] = [f for f in check(dataset) if f.severity == "error" and f.kind != "gripper"]
    assert (finding.kind, finding.episode) == ("damaged", number)
    assert len(RepairedDataset(dataset, [finding])) == COUNT - 1
    return str(caught.value)


@pytest.mark.parametrize("number", [0, 1, COUNT - 1])
@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("length", lambda n: n + 3, "rows"),
        ("length", lambda n: n - 2, "rows"),
        ("length", -3, "rows"),
        (f"{WRIST}/file_index", 99, "file-099.mp4 is missing"),
        (f"{WRIST}/from_timestamp", lambda t: t + 0.11, "it lasts"),
        (f"{WRIST}/from_timestamp", float("nan"), "begins at nan s"),
        (f"{WRIST}/from_timestamp", -5.0, "begins at -5 s"),
    ],
)
def test_one_wrong_cell_makes_one_episode_unreadable(root, right, column, value, said, number):
    edit(root, column, number, value)
    assert said in check_only_unreadable(root, right, number)


@pytest.mark.parametrize("number", [0, 1, COUNT - 1])
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("dataset_from_index", 0),
        ("dataset_from_index", lambda n: n + 4),
        ("dataset_from_index", 10**6),
        ("data/file_index", lambda n: 1 - min(n, 1)),
        ("data/file_index", 99),
        ("data/chunk_index", 7),
    ],
)
def test_rows_are_found_in_the_files_where_the_index_is_wrong(root, right, column, value, number):
    edit(root, column, number, value)
    dataset, before = open_dataset(root), open_dataset(right)
    lost = set(dataset.unreadable)
    assert lost <= {number}
    for i in set(range(COUNT)) - lost:
        assert np.array_equal(dataset[i].actions, before[i].actions)


def test_episodes_are_numbered_by_their_index_whatever_the_order_of_its_rows(root, right):
    path = next(root.glob("meta/episodes/*/*.parquet"))
    table = pq.read_table(path)
    pq.write_table(table.take(pa.array([3, 0, 6, 1, 5, 2, 4])), path)
    dataset = open_dataset(root)
    assert dataset.lengths.tolist() == [10, 11, 12, 13, 14, 15, 16]
    assert np.array_equal(dataset[6].actions, open_dataset(right)[6].actions)


def test_a_wrong_video_file_is_noticed(root, right):
    edit(root, f"{WRIST}/file_index", 1, 1)
    assert "within episode" in check_only_unreadable(root, right, 1)


def test_a_file_without_the_rows_of_one_episode(root, right):
    path = sorted(root.glob("data/*/*.parquet"))[0]
    table = pq.read_table(path)
    pq.write_table(table.filter(pa.compute.not_equal(table["episode_index"], 1)), path)
    assert "has none of it" in check_only_unreadable(root, right, 1)


def test_a_file_that_holds_another_episode_after_the_data_set_was_opened(root):
    dataset = open_dataset(root)
    path = sorted(root.glob("data/*/*.parquet"))[0]
    table = pq.read_table(path)
    numbers = table["episode_index"].to_numpy()
    place = table.column_names.index("episode_index")
    other = pa.array(np.where(numbers == 1, 5, numbers), table.schema.field(place).type)
    pq.write_table(table.set_column(place, "episode_index", other), path)
    assert len(dataset[0]) == 10
    with pytest.raises(ValueError, match=r"does not hold the rows of episode 1 where the index says; copy it again"):
        dataset[1]


def test_a_boundary_between_two_episodes(root, right):
    """Episode 2 has three rows more and 3 three fewer than the files say: both are named, no row is misplaced."""
    edit(root, "length", 2, lambda n: n + 3)
    edit(root, "length", 3, lambda n: n - 3)
    edit(root, "dataset_from_index", 3, lambda n: n + 3)
    dataset, before = open_dataset(root), open_dataset(right)
    for i in set(range(COUNT)) - {2, 3}:
        assert np.array_equal(dataset[i].actions, before[i].actions)
    for i in (2, 3):
        with pytest.raises(ValueError, match=rf"episode {i}"):
            dataset[i]


def test_training_needs_the_unreadable_episode_left_out(root):
    edit(root, "length", 3, lambda n: n + 3)

    def mixture(**keys):
        return open_mixture(DataConfig(sources=(Source(path=str(root), **keys),)), root)

    with pytest.raises(ValueError, match=r"1 of 7 episodes .*episode 3: .*leave_out: \[3\]"):
        mixture()
    [dataset] = mixture(leave_out=(3,)).datasets
    assert [len(dataset[i]) for i in range(len(dataset))] == [10, 11, 12, 14, 15, 16]
    with pytest.raises(ValueError, match="no episode 9"):
        mixture(leave_out=(9,))


def test_a_data_set_without_a_readable_episode_is_refused(root):
    shutil.rmtree(root / "data")
    with pytest.raises(ValueError, match=r"none of the 7 episodes.*incomplete: .*parquet is missing; copy it again"):
        open_dataset(root)


def test_episodes_without_steps_are_left_out(root, right, caplog):
    path = next(root.glob("meta/episodes/*/*.parquet"))
    table = pq.read_table(path)
    empty = table.slice(2, 1).to_pylist()[0] | {"episode_index": COUNT, "length": 0}
    pq.write_table(pa.concat_tables([table, pa.Table.from_pylist([empty], table.schema)]), path)
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"total_episodes": COUNT + 1}))
    dataset = open_dataset(root)
    assert len(dataset) == COUNT
    assert not dataset.unreadable
    assert "without steps are left out: 7" in caplog.text
    assert np.array_equal(dataset[6].actions, open_dataset(right)[6].actions)


def test_episodes_that_share_their_frames_are_no_fault(right, tmp_path):
    """Relabeled episodes may show the same part of a video."""
    root = tmp_path / "set"
    write_dataset(root, ROBOT, [demonstration(10 + i, seed=i) for i in (*range(COUNT), *range(COUNT))])
    shutil.rmtree(root / "videos")
    shutil.copytree(right / "videos", root / "videos")
    places = pq.read_table(next(right.glob("meta/episodes/*/*.parquet"))).to_pylist()
    path = next(root.glob("meta/episodes/*/*.parquet"))
    table = pq.read_table(path)
    rows = [
        row | {name: value for name, value in places[i % COUNT].items() if name.startswith("videos/")}
        for i, row in enumerate(table.to_pylist())
    ]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    dataset, before = open_dataset(root), open_dataset(right)
    assert not dataset.unreadable
    for i in range(2 * COUNT):
        assert np.array_equal(dataset[i].images["wrist"][:], before[i % COUNT].images["wrist"][:])


@pytest.mark.parametrize("wrong", [0, 1, 4, 5, 7])
def test_a_wrong_file_with_an_equally_long_episode_at_that_place_is_noticed(tmp_path, wrong):
    """Simulators record equally long episodes: only the order of places shows that one is wrong."""
    files = [tmp_path / f"file-{i:03d}.mp4" for i in range(3)]
    for path in files:
        path.write_bytes(b"")
    file, begin, seconds = np.repeat([0, 1, 2], 3)[:8], np.tile([0.0, 5.0, 10.0], 3)[:8], np.full(8, 5.0)
    assert find_wrong_spans(files, file, begin, begin + seconds, seconds, 0.1) == {}
    file[wrong] = 0 if wrong > 2 else 1
    lost = find_wrong_spans(files, file, begin, begin + seconds, seconds, 0.1)
    assert list(lost) == [wrong]
    assert "shows the frames of episode" in lost[wrong]
    again = np.append(np.repeat([0, 1, 2], 3), np.repeat([0, 1, 2], 3))  # all episodes again, with other instructions
    begin, seconds = np.tile([0.0, 5.0, 10.0], 6), np.full(18, 5.0)
    assert find_wrong_spans(files, again, begin, begin + seconds, seconds, 0.1) == {}


@pytest.mark.parametrize(
    ("begins", "lost"), [((0.0, 0.0, 0.5), [1]), ((0.0, 0.25, 0.0), [2]), ((0.0, 0.0, 0.0), [1, 2])]
)
def test_equally_long_episodes_at_one_place_are_unreadable(tmp_path, begins, lost):
    """The video is long enough for frames of each episode, so the index must be wrong."""
    write_dataset(tmp_path / "set", ROBOT, [demonstration(10, seed=i) for i in range(3)])
    for number, begin in enumerate(begins):
        edit(tmp_path / "set", "videos/observation.images.wrist/from_timestamp", number, begin)
        edit(tmp_path / "set", "videos/observation.images.wrist/to_timestamp", number, begin + 0.25)
    dataset = open_dataset(tmp_path / "set")
    assert sorted(dataset.unreadable) == lost
    assert "long enough for frames of its own" in dataset.unreadable[lost[0]]


def test_a_wrong_index_makes_as_few_episodes_unreadable_as_possible(tmp_path):
    """Removing one episode after another took hours here."""
    count, path = 20_000, tmp_path / "file-000.mp4"
    path.write_bytes(b"")
    seconds = 5 + np.arange(count) / 5000
    file, numbers = np.zeros(count, int), np.arange(count)
    assert len(find_wrong_spans([path], file, np.zeros(count), seconds, seconds, 0.1)) == count - 1
    begin = numbers * 10.0
    begin[19_000] = begin[300] + 0.05  # it overlaps 300, which is nearer to the other episodes of the file
    begin[7::1000] -= 4.0  # each overlaps its predecessor
    lost = find_wrong_spans([path], file, begin, begin + seconds, seconds, 0.1)
    kept = np.setdiff1d(numbers, list(lost))
    kept = kept[np.argsort(begin[kept])]
    assert (begin[kept][1:] >= (begin + seconds)[kept][:-1] - 0.1).all()
    assert len(lost) <= 21
