"""Tests against the real lerobot package: its data sets (in `fixtures`) are read, and it reads written ones."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from anyvla.data.formats.lerobot import reader as lerobot_reader
from anyvla.data.formats.lerobot.dataset import LeRobotDataset
from anyvla.data.formats.lerobot.v2 import LeRobotV2Dataset
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.undeclared import UndeclaredError
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.space import ActionSpace, Group
from tests.data.demonstrations import ROBOT, demonstration, psnr

FIXTURES = Path(__file__).parent / "fixtures"
specification = importlib.util.spec_from_file_location("make_lerobot", FIXTURES / "make_lerobot.py")
made = importlib.util.module_from_spec(specification)
specification.loader.exec_module(made)

JOINTS = ActionSpace(
    groups=(
        Group(name="joints", size=5, kind="joints", unit="rad"),
        Group(name="gripper", size=1, kind="gripper", low=-4, high=4, open=4),
    )
)
SO101 = Embodiment(name="so101", cameras=("image", "top"), proprio=JOINTS, action=JOINTS, control_hz=10)
SIZES = {"video": 48, "image": 24}
READERS = {"v3": LeRobotDataset, "v2": LeRobotV2Dataset}
# (lerobot's episode, first step, end): episode 1 changes its task at step 6
PIECES = [(0, 0, 12), (1, 0, 6), (1, 6, 15), (2, 0, 18)]


def opened(root, embodiment=SO101):
    reader = READERS[root.name[:2]]
    return reader(reader.Config(), root, embodiment)


@pytest.fixture(params=["v3_video", "v3_image", "v2_video", "v2_image"])
def given(request):
    return FIXTURES / request.param


@pytest.fixture
def copy(given, tmp_path):
    return shutil.copytree(given, tmp_path / given.name)


def test_data_sets_of_lerobot_are_read(given):
    dataset = opened(given)
    size = SIZES[given.name[3:]]
    assert dataset.lengths.tolist() == [end - first for _, first, end in PIECES]
    for i, (number, first, end) in enumerate(PIECES):
        episode = dataset[i]
        state, action = zip(*[made.numbers(number, t) for t in range(first, end)], strict=True)
        assert np.array_equal(episode.proprio, state)
        assert np.array_equal(episode.actions, action)
        assert episode.instructions == (made.task(number, first, 12),)
        assert dataset.task(i) == episode.instruction
        assert np.allclose(episode.timestamps, np.arange(end - first) / 10)
        assert f"episode {number}" in episode.provenance
        for c, camera in enumerate(("top", "image")):
            pictures = np.stack([made.picture(number, t, c, size) for t in range(first, end)])
            decoded = np.asarray(episode.images[camera])
            if given.name.endswith("image"):
                assert np.array_equal(decoded, pictures)
            else:
                assert psnr(pictures, decoded) > 20  # crf 30 with halved color, hard edges
                errors = [[np.abs(a.astype(float) - b).mean() for b in decoded] for a in pictures]
                assert np.argmin(errors, axis=1).tolist() == list(range(end - first))  # no two frames are confused


def test_tasks_may_have_any_numbers(copy):
    """Each number n becomes 9 - n, in the table and in the rows; the index names tasks by their text."""
    for path in copy.glob("data/**/*.parquet"):
        table = pq.read_table(path)
        place = table.column_names.index("task_index")
        pq.write_table(table.set_column(place, "task_index", [9 - table["task_index"].to_numpy()]), path)
    if copy.name[:2] == "v2":
        rows = [json.loads(line) for line in (copy / "meta/tasks.jsonl").read_text().splitlines()]
        lines = [json.dumps(row | {"task_index": 9 - row["task_index"]}) for row in rows]
        (copy / "meta/tasks.jsonl").write_text("\n".join(lines))
    else:
        table = pq.read_table(copy / "meta/tasks.parquet")
        place = table.column_names.index("task_index")
        table = table.set_column(place, "task_index", [9 - table["task_index"].to_numpy()])
        pq.write_table(table, copy / "meta/tasks.parquet")
    dataset = opened(copy)
    assert [dataset.task(i) for i in range(4)] == [made.task(number, begin, 12) for number, begin, _ in PIECES]


def test_changes_of_task_are_cached_if_finding_them_takes_long(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("ANYVLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lerobot_reader, "_CACHED_FROM", 0)
    first = opened(copy)
    monkeypatch.setattr(lerobot_reader.LeRobotReader, "_find_task_runs", None)
    again = opened(copy)
    assert again.lengths.tolist() == first.lengths.tolist() == [end - begin for _, begin, end in PIECES]
    assert [again.task(i) for i in range(4)] == [made.task(number, begin, 12) for number, begin, _ in PIECES]


def test_any_selection_of_frames_equals_the_whole(given):
    images = opened(given)[2].images["top"]
    whole = images[:]
    assert np.array_equal(images[[8, 0, 3, 3, 7]], whole[[8, 0, 3, 3, 7]])


@pytest.mark.parametrize("reader", READERS.values())
def test_each_data_set_is_recognized_by_one_reader(given, reader):
    assert reader.recognizes(given) == (reader is READERS[given.name[:2]])


def test_pickled_and_read_by_threads(given):
    dataset = pickle.loads(pickle.dumps(opened(given)))
    wanted = [(i, t) for t in range(6) for i in range(4)] * 3
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda at: dataset[at[0]].images["top"][[at[1]]][0], wanted))
    for (i, t), frame in zip(wanted, found, strict=True):
        assert np.array_equal(frame, dataset[i].images["top"][[t]][0])
    assert opened(given).fingerprint == dataset.fingerprint


def test_a_process_forked_after_reading_can_read():
    code = (
        "import os, sys\n"
        f"from {__name__} import FIXTURES, opened\n"
        "sets = [opened(FIXTURES / n) for n in ('v3_video', 'v3_image', 'v2_video', 'v2_image')]\n"
        "def look(): return [s[0].images['top'][[5]].tobytes() for s in sets]\n"
        "first = look(); child = os.fork()\n"
        "again = all(look() == first for _ in range(20))\n"
        "if not child: os._exit(not again)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or not again)"
    )
    path = os.pathsep.join((str(Path(__file__).parents[4]), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=False, timeout=60)
    assert done.returncode == 0


def test_the_error_shows_what_to_declare(given):
    with pytest.raises(UndeclaredError) as caught:
        opened(given, None)
    assert caught.value.plain.cameras == ("top", "image")
    assert caught.value.plain.action.groups[0].names[0] == "joint_0.pos"


def test_other_features_can_be_the_action(given):
    reader = READERS[given.name[:2]]
    one = ActionSpace(groups=(Group(name="reward", size=1),))
    robot = Embodiment(name="x", cameras=(), proprio=ActionSpace(groups=()), action=one, control_hz=10)
    episode = reader(reader.Config(action="next.reward"), given, robot)[2]
    assert episode.actions[:, 0].tolist() == list(range(6, 15))
    assert episode.proprio.shape == (9, 0)
    with pytest.raises(ValueError, match=r"no feature 'actions': did you mean 'action'"):
        reader(reader.Config(action="actions"), given, robot)


def test_a_truncated_data_file_is_named(copy):
    path = sorted(copy.glob("data/**/*.parquet"))[0]
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=rf"episode [01]: .*{path.name} is damaged .*copy the dataset again"):
        _ = opened(copy, Embodiment(**{**vars_of(SO101), "cameras": ("top",)}))[0]


def vars_of(robot):
    return {k: getattr(robot, k) for k in ("name", "cameras", "proprio", "action", "control_hz")}


def test_a_truncated_video_is_named(copy):
    if not copy.name.endswith("video"):
        pytest.skip("its images are in the rows")
    path = sorted(copy.glob("videos/**/*.mp4"))[-1]
    whole = path.read_bytes()
    camera = "top" if "top" in str(path) else "image"
    for share in (0.2, 0.7):
        path.write_bytes(whole[: int(len(whole) * share)])
        episode = opened(copy)[3]
        assert len(episode.actions) == 18
        with pytest.raises(ValueError, match=rf"episode 2: .*{path.name}.*copy the dataset again"):
            episode.images[camera][[17]]


def test_damaged_images_are_named(copy):
    if copy.name.endswith("video"):
        pytest.skip("its images are in videos")
    path = sorted(copy.glob("data/**/*.parquet"))[-1]
    table = pq.read_table(path)
    rows = table["observation.image"].to_pylist()
    rows[-1]["bytes"] = rows[-1]["bytes"][:-100]
    place = table.column_names.index("observation.image")
    pq.write_table(table.set_column(place, table.schema.field(place), [rows]), path)
    images = opened(copy)[3].images
    assert images["image"][[16]].shape == (1, 24, 24, 3)
    with pytest.raises(ValueError, match=r"episode 2, the image of step 17: the image is damaged"):
        images["image"][[17]]


def test_one_row_group_for_many_episodes(copy):
    if copy.name[:2] == "v2":
        pytest.skip("a file of v2 holds one episode")
    path = copy / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path), path)
    assert pq.ParquetFile(path).metadata.num_row_groups == 1
    for i in range(4):
        assert np.array_equal(opened(copy)[i].actions, opened(FIXTURES / copy.name)[i].actions)


def test_rows_at_a_wrong_place_in_the_index_are_refused(copy):
    if copy.name[:2] == "v2":
        path = copy / "data/chunk-000/episode_000000.parquet"
        shutil.copy(copy / "data/chunk-000/episode_000002.parquet", path)
    else:
        path = copy / "data/chunk-000/file-000.parquet"
        pq.write_table(pq.read_table(path).slice(2), path)
    with pytest.raises(ValueError, match=r"episode [01]( |:)"):
        opened(copy)[0]


def test_damaged_lines_and_missing_files_of_v2_are_named(tmp_path):
    root = shutil.copytree(FIXTURES / "v2_video", tmp_path / "v2")
    lines = (root / "meta/episodes.jsonl").read_text().splitlines()
    for broken, message in (
        (lines[1][:20], "line 2, is damaged"),
        ('{"episode_index": 1}', "line 2, has no 'length'"),
        ("", r"counts 3 episodes, meta/episodes\.jsonl lists 2"),
    ):
        (root / "meta/episodes.jsonl").write_text("\n".join([lines[0], broken, lines[2]]))
        with pytest.raises(ValueError, match=message):
            opened(root)
    (root / "meta/episodes.jsonl").write_text("\n".join(lines))
    video = root / "videos/chunk-000/observation.images.top/episode_000001.mp4"
    video.unlink()
    dataset = opened(root)
    assert list(dataset.unreadable) == [1]
    with pytest.raises(ValueError, match=r"episode 1: .*incomplete: .*top/episode_000001\.mp4 is missing"):
        dataset[1]
    assert len(opened(root, Embodiment(**{**vars_of(SO101), "cameras": ("image",)}))) == 4


def test_older_and_unknown_versions(tmp_path):
    root = shutil.copytree(FIXTURES / "v2_video", tmp_path / "v2")
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v2.0"}))
    assert len(opened(root)) == 4
    (root / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v1.6"}))
    with pytest.raises(ValueError, match=r"version v1\.6, not v2\.1: versions v2\.0, v2\.1, v3\.0 are read"):
        opened(root)


@pytest.mark.slow
@pytest.mark.skipif("LEROBOT_PYTHON" not in os.environ, reason="LEROBOT_PYTHON: a Python that has lerobot 0.4")
def test_lerobot_reads_written_data_sets(tmp_path):
    episodes = [demonstration(n, seed=i) for i, n in enumerate((9, 14, 20))]
    episodes[1] = demonstration(14, seed=1, timestamps=np.arange(14) ** 1.1 / 40, instructions=("pull it", "open it"))
    write_dataset(tmp_path / "set", ROBOT, episodes)
    cameras = [f"observation.images.{c}" for c in ROBOT.cameras]
    script = [os.environ["LEROBOT_PYTHON"], FIXTURES / "read_lerobot.py", tmp_path / "set", tmp_path / "seen.npz"]
    subprocess.run([*script, *cameras], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    seen = np.load(tmp_path / "seen.npz")
    assert np.array_equal(seen["action"], np.concatenate([e.actions for e in episodes]))
    assert np.array_equal(seen["observation.state"], np.concatenate([e.proprio for e in episodes]))
    assert seen["episode_index"].tolist() == [0] * 9 + [1] * 14 + [2] * 20
    assert seen["task"].tolist() == [e.instruction for e in episodes for _ in range(len(e))]
    ours = [LeRobotDataset(LeRobotDataset.Config(), tmp_path / "set")[i] for i in range(3)]
    for camera, key in zip(ROBOT.cameras, cameras, strict=True):
        theirs = (seen[key].transpose(0, 2, 3, 1) * 255).round()
        decoded = np.concatenate([e.images[camera][:] for e in ours])
        assert np.abs(theirs - decoded).mean() < 0.6  # the same bytes, another conversion to RGB
        assert psnr(theirs, decoded) > 40
    assert np.allclose(ours[1].timestamps, episodes[1].timestamps, atol=0, rtol=0)
    assert ours[1].instructions == ("pull it", "open it")
    begins = np.repeat([0, 9, 23], [9, 14, 20])
    ends = np.repeat([9, 23, 43], [9, 14, 20])
    everything = np.concatenate([e.actions for e in episodes])
    frames = np.concatenate([e.images["corner"][:] for e in ours])
    for k, i in enumerate(seen["windows"]):
        at = np.arange(i, i + 3)
        assert seen["window_padding"][k].tolist() == (at >= ends[i]).tolist()
        assert np.array_equal(seen["window_actions"][k], everything[np.minimum(at, ends[i] - 1)])
        shown = frames[[max(begins[i], i - 2), i]]
        assert np.abs((seen["window_images"][k].transpose(0, 2, 3, 1) * 255) - shown).mean() < 0.6
