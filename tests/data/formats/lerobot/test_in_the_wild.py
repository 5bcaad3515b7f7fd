"""Tests of LeRobot data sets that people, editors and other programs changed: read, or refused with a remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anyvla.config import Part, build
from anyvla.data.formats.lerobot import reader as lerobot_reader
from anyvla.data.open import open_dataset
from anyvla.data.undeclared import UndeclaredError
from anyvla.registry import formats
from tests.data.formats.lerobot.test_package import FIXTURES, SO101

V2, V3 = FIXTURES / "v2_video", FIXTURES / "v3_video"


@pytest.fixture(params=["v2_video", "v3_video"])
def copy(request, tmp_path):
    return shutil.copytree(FIXTURES / request.param, tmp_path / request.param)


@pytest.fixture
def v2(tmp_path):
    return shutil.copytree(V2, tmp_path / "v2")


@pytest.fixture
def v3(tmp_path):
    return shutil.copytree(V3, tmp_path / "v3")


def opened(root, **options):
    name = "lerobot" if "v3" in root.name else "lerobot_v2"
    config = build(formats[name].Config, options, where="test")
    return open_dataset(root, Part("formats", name, config), embodiment=SO101)


def check_unchanged(root, tasks=True):
    dataset = open_dataset(root, embodiment=SO101)
    before = opened(FIXTURES / ("v3_video" if "v3" in root.name else "v2_video"))
    assert dataset.lengths.tolist() == before.lengths.tolist()
    for i in range(len(before)):
        assert np.array_equal(dataset[i].actions, before[i].actions)
        if tasks:
            assert dataset[i].instructions == before[i].instructions
    assert np.array_equal(dataset[1].images["top"][[0, 2]], before[1].images["top"][[0, 2]])


def records(path: Path):
    return [json.loads(line) for line in path.read_text().splitlines()]


SPELLINGS = {
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "blank lines": lambda text: text.replace("\n", "\n\n\n").encode() + b"\n \n",
    "no last line break": lambda text: text.rstrip("\n").encode(),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("name", ["info.json", "tasks.jsonl", "episodes.jsonl"])
def test_spellings_of_json(v2, name, spelling):
    path = v2 / "meta" / name
    path.write_bytes(SPELLINGS[spelling](path.read_text()))
    check_unchanged(v2)


@pytest.mark.parametrize("name", ["tasks.jsonl", "episodes.jsonl"])
@pytest.mark.parametrize(
    "write",
    [
        lambda rows: "\n".join(json.dumps(row, indent=2) for row in rows),
        lambda rows: json.dumps(rows, indent=2),
        lambda rows: json.dumps(rows),
        lambda rows: ",\n".join(json.dumps(row) for row in rows) + ",\n",
        lambda rows: "".join(json.dumps(row) for row in rows),
        lambda rows: "\n".join(json.dumps(row) for row in reversed(rows)),
    ],
)
def test_records_over_several_lines_or_in_a_list(v2, name, write):
    path = v2 / "meta" / name
    path.write_text(write(records(path)))
    check_unchanged(v2)


def test_the_line_of_a_damaged_record_is_named(v2):
    path = v2 / "meta/episodes.jsonl"
    rows = [json.dumps(row, indent=1) for row in records(path)]
    for broken, message in (
        ([rows[0], rows[1][:-8], rows[2]], r"episodes\.jsonl, line \d+, is damaged"),
        ([rows[0], '{"episode_index": 1}', rows[2]], r"episodes\.jsonl, line \d+, has no 'length'"),
        ([rows[0], "7", rows[2]], r"episodes\.jsonl, line \d+: expected an object in braces, found '7'"),
        ([*rows[:2], rows[2].replace('"length": 18', '"length": "many"')], "expected a whole number, found 'many'"),
        ([*rows[:2], rows[2].replace('"length": 18', '"length": null')], "expected a whole number, found None"),
    ):
        path.write_text("\n".join(broken))
        with pytest.raises(ValueError, match=message):
            open_dataset(v2, embodiment=SO101)


@pytest.mark.parametrize("version", ["2.1", 2.1, "V2.1", "v2.1.0", " v2.1 "])
def test_versions_in_other_spellings(v2, version):
    info = json.loads((v2 / "meta/info.json").read_text())
    (v2 / "meta/info.json").write_text(json.dumps(info | {"codebase_version": version}))
    check_unchanged(v2)


def test_chunks_of_v2_hold_the_declared_number_of_episodes(v2):
    for path in [*v2.glob("data/chunk-000/*_000002.parquet"), *v2.glob("videos/chunk-000/*/*_000002.mp4")]:
        moved = Path(str(path).replace("chunk-000", "chunk-001"))
        moved.parent.mkdir(parents=True, exist_ok=True)
        path.rename(moved)
    info = json.loads((v2 / "meta/info.json").read_text())
    (v2 / "meta/info.json").write_text(json.dumps(info | {"chunks_size": 2}))
    check_unchanged(v2)
    assert np.array_equal(opened(v2)[3].images["top"][[4]], opened(V2)[3].images["top"][[4]])


def test_depth_is_no_camera(copy):
    info = json.loads((copy / "meta/info.json").read_text())
    key = next(key for key in info["features"] if key.endswith(("images.top", "top")))
    for part in ("info", "video_info"):
        changed = {**info["features"][key], "info": None, "video_info": None, part: {"video.is_depth_map": True}}
        features = info["features"] | {key: changed}
        (copy / "meta/info.json").write_text(json.dumps(info | {"features": features}))
        with pytest.raises(UndeclaredError) as refused:
            open_dataset(copy)
        assert refused.value.plain.cameras == ("image",)


def test_files_of_other_programs_are_ignored(copy):
    before = open_dataset(copy, embodiment=SO101).fingerprint
    for path in [p for p in copy.rglob("*") if p.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7 resource fork")
    for folder in [copy, *(p for p in copy.rglob("*") if p.is_dir())]:
        (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    checkpoints = copy / "meta/.ipynb_checkpoints"
    checkpoints.mkdir()
    (checkpoints / "file-000.parquet").write_bytes(b"no parquet")
    check_unchanged(copy)
    assert open_dataset(copy, embodiment=SO101).fingerprint == before


@pytest.mark.parametrize("how", ["absent", "null", "text"])
def test_tasks_missing_in_the_index_of_v2_come_from_the_rows(v2, how):
    path = v2 / "meta/episodes.jsonl"
    rows = records(path)
    for row in rows:
        if how == "text" and len(row["tasks"]) == 1:
            row["tasks"] = row["tasks"][0]
        elif how == "null":
            row["tasks"] = None
        elif how == "absent":
            del row["tasks"]
    path.write_text("\n".join(map(json.dumps, rows)))
    check_unchanged(v2)


def test_tasks_missing_in_the_index_of_v3_come_from_the_rows(v3):
    path = next(v3.glob("meta/episodes/*/*.parquet"))
    pq.write_table(pq.read_table(path).drop_columns("tasks"), path)
    check_unchanged(v3)


def test_a_table_of_tasks_without_text(v3):
    path = v3 / "meta/tasks.parquet"
    pq.write_table(pq.read_table(path).select(["task_index"]), path)
    with pytest.raises(ValueError, match=r"tasks\.parquet has the columns task_index; expected .*task"):
        open_dataset(v3, embodiment=SO101)


def test_gaps_in_the_numbers_of_episodes(v2):
    rows = records(v2 / "meta/episodes.jsonl")
    (v2 / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, [rows[0], rows[2]])))
    info = json.loads((v2 / "meta/info.json").read_text())
    (v2 / "meta/info.json").write_text(json.dumps(info | {"total_episodes": 2}))
    dataset, before = open_dataset(v2, embodiment=SO101), opened(V2)
    assert dataset.lengths.tolist() == [12, 18]
    assert np.array_equal(dataset[1].actions, before[3].actions)


def test_an_episode_of_v2_without_steps_is_left_out(v2, caplog):
    with (v2 / "meta/episodes.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"episode_index": 3, "tasks": ["nothing"], "length": 0}) + "\n")
    info = json.loads((v2 / "meta/info.json").read_text())
    (v2 / "meta/info.json").write_text(json.dumps(info | {"total_episodes": 4}))
    check_unchanged(v2)
    assert "episodes without steps are left out: 3" in caplog.text


def change(root, column, values):
    """Replace a column of the first data file by `values` of its numbers."""
    path = sorted(root.glob("data/*/*.parquet"))[0]
    table = pq.read_table(path)
    new = values(table[column].to_pylist())
    new = new if isinstance(new, pa.Array) else pa.array(new)
    pq.write_table(table.set_column(table.column_names.index(column), column, new), path)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (
            lambda t: np.float32(1.7e9) + np.array(t, np.float32),
            "kept as float32, .* 1.7e.09 s has steps of 128 s",
        ),
        (lambda t: np.zeros(len(t), np.float32), "step 1 is not after the one before it, all"),
        (lambda t: np.array(t) * 1000, "milliseconds"),
        (lambda t: np.array([*t[:3], t[2], *t[4:]]), "step 3 is not after"),
        (lambda t: np.array([*t[:3], np.nan, *t[4:]]), "step 3 is nan"),
        (lambda t: pa.array(np.arange(len(t)), pa.timestamp("ms")), "expected real numbers, found timestamp"),
        (lambda t: [str(x) for x in t], "expected real numbers, found string"),
        (lambda t: pa.array([*t[:3], None, *t[4:]], pa.float32()), "row 3: expected numbers, found no value"),
    ],
)
def test_impossible_timestamps_are_refused_with_a_remedy(copy, times, message):
    change(copy, "timestamp", times)
    dataset = open_dataset(copy, embodiment=SO101)
    with pytest.raises(ValueError, match=rf"{message}.*times: steady") as caught:
        dataset[0]
    assert "episode 0" in str(caught.value)
    steady = opened(copy, times="steady")[0]
    assert np.allclose(steady.timestamps, np.arange(12) / 10)
    assert steady.images["top"][[0, 11]].shape[0] == 2


def test_times_since_1970_in_float64_are_read(copy):
    change(copy, "timestamp", lambda t: 1.7e9 + np.array(t, np.float64))
    assert np.allclose(open_dataset(copy, embodiment=SO101)[0].timestamps, np.arange(12) / 10, atol=1e-6)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (lambda a: [a[0][:5], [*a[1], 0.0], *a[2:]], "column 'action', row 0: expected 6 numbers, found 5"),
        (lambda a: [*a[:2], a[2][:3], [*a[3], 0.0, 0.0, 0.0], *a[4:]], "row 2: expected 6 numbers, found 3"),
        (lambda a: [x[:5] for x in a], "row 0: expected 6 numbers, found 5"),
        (lambda a: [[str(v) for v in x] for x in a], "expected real numbers, found list"),
        (lambda a: [[v > 0 for v in x] for x in a], "expected real numbers, found list.*bool"),
        (lambda a: [[x] for x in a], "expected real numbers, found list"),
        (lambda a: [*a[:4], None, *a[5:]], "row 4: expected numbers, found no value"),
        (lambda a: [*a[:4], [None, *a[4][1:]], *a[5:]], "row 4: a number has no value"),
        (lambda a: [x[0] for x in a], "expected 6 numbers, found one"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(copy, actions, message):
    change(copy, "action", actions)
    with pytest.raises(ValueError, match=message) as caught:
        open_dataset(copy, embodiment=SO101)[0]
    assert ".parquet" in str(caught.value)


@pytest.mark.parametrize("number", [77, None])
def test_an_unknown_task_makes_one_episode_unreadable(v2, number, tmp_path, monkeypatch):
    monkeypatch.setenv("ANYVLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lerobot_reader, "_CACHED_FROM", 0)  # the runs of tasks are cached
    path = v2 / "data/chunk-000/episode_000001.parquet"  # the episode of two tasks
    table = pq.read_table(path)
    numbers = pa.array([number, *table["task_index"].to_pylist()[1:]], pa.int64())
    pq.write_table(table.set_column(table.column_names.index("task_index"), "task_index", numbers), path)
    for message in (r"no number 77|found no value", "lack its tasks"):
        dataset, before = open_dataset(v2, embodiment=SO101), opened(V2)
        assert list(dataset.unreadable) == [1]
        with pytest.raises(ValueError, match=message):
            dataset[1]
        assert np.array_equal(dataset[2].actions, before[3].actions)
