from __future__ import annotations

import errno
import json
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from anyvla.data.formats.lerobot import merge as lerobot_merge
from anyvla.data.formats.lerobot import writer as lerobot_writer
from anyvla.data.formats.lerobot.dataset import LeRobotDataset
from anyvla.data.formats.lerobot.writer import LeRobotWriter, is_complete, stage_episode, write_dataset
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.space import ActionSpace, Group
from tests.data.demonstrations import ROBOT, demonstration, scene


def opened(root):
    return LeRobotDataset(LeRobotDataset.Config(), root)


def begin(root, **provenance):
    return LeRobotWriter(root, ROBOT, provenance={"suite": "drawers", **provenance})


def test_layout_is_lerobot_v3(tmp_path):
    root = tmp_path / "set"
    write_dataset(root, ROBOT, [demonstration(n, seed=n) for n in (9, 12, 15)])
    assert sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()) == [
        "data/chunk-000/file-000.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        "videos/observation.images.corner/chunk-000/file-000.mp4",
        "videos/observation.images.wrist/chunk-000/file-000.mp4",
    ]
    info = json.loads((root / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 36, 2)
    assert (info["fps"], info["robot_type"], info["splits"]) == (40, "arm", {"train": "0:3"})
    assert info["data_path"] == "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    assert info["video_path"] == "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    assert info["features"]["action"] == {
        "dtype": "float32",
        "shape": [4],
        "names": ["hand_0", "hand_1", "hand_2", "gripper"],
    }
    assert info["features"]["observation.state"]["names"] == ["hand_0", "hand_1", "hand_2", "opening"]
    assert info["features"]["observation.images.wrist"]["shape"] == [32, 32, 3]
    rows = pq.read_table(root / "data/chunk-000/file-000.parquet")
    assert set(rows.column_names) == {k for k, f in info["features"].items() if f["dtype"] != "video"}
    assert rows["index"].to_pylist() == list(range(36))
    assert rows["frame_index"].to_pylist() == [*range(9), *range(12), *range(15)]
    assert np.allclose(rows["timestamp"].to_numpy(), np.array(rows["frame_index"]) / 40)
    tasks = pq.read_table(root / "meta/tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]
    assert dict(zip(*[tasks[c].to_pylist() for c in ("task", "task_index")], strict=True)) == {
        "close the drawer": 0,
        "open the drawer": 1,
    }


def test_episode_table_points_to_rows_and_frames(tmp_path):
    root = tmp_path / "set"
    write_dataset(root, ROBOT, [demonstration(n, seed=n) for n in (9, 12, 15)])
    table = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(r["dataset_from_index"], r["dataset_to_index"]) for r in table] == [(0, 9), (9, 21), (21, 36)]
    assert [r["tasks"] for r in table] == [["close the drawer"], ["open the drawer"], ["close the drawer"]]
    for row in table:
        assert row["length"] == round(
            40
            * (
                row["videos/observation.images.wrist/to_timestamp"]
                - row["videos/observation.images.wrist/from_timestamp"]
            )
        )
        assert row["stats/action/count"] == [row["length"]]
        assert np.shape(row["stats/observation.images.wrist/mean"]) == (3, 1, 1)
    with av.open(str(root / "videos/observation.images.wrist/chunk-000/file-000.mp4")) as container:
        times = [frame.time for frame in container.decode(video=0)]
    expected = [r["videos/observation.images.wrist/from_timestamp"] + i / 40 for r in table for i in range(r["length"])]
    assert np.allclose(times, expected, atol=1e-4)


def test_image_statistics_scale_pixels_to_0_to_1(tmp_path):
    episodes = [demonstration(20, seed=i) for i in range(2)]
    write_dataset(tmp_path / "set", ROBOT, episodes)
    stats = json.loads((tmp_path / "set/meta/stats.json").read_text())["observation.images.corner"]
    pixels = np.concatenate([e.images["corner"] for e in episodes]).reshape(-1, 3) / 255
    for name, value in (
        ("mean", pixels.mean(0)),
        ("std", pixels.std(0)),
        ("min", pixels.min(0)),
        ("max", pixels.max(0)),
    ):
        assert np.allclose(np.ravel(stats[name]), value)
    assert np.allclose(np.ravel(stats["q90"]), np.quantile(pixels, 0.9, axis=0, method="inverted_cdf"))
    assert stats["count"] == [40]


def described(values):
    """Return the statistics that LeRobot stores for rows of numbers."""
    quantiles = {f"q{percent:02}": np.quantile(values, percent / 100, axis=0) for percent in (1, 10, 50, 90, 99)}
    whole = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    return whole | quantiles | {"count": [len(values)]}


def test_statistics_are_written_for_the_data_set_and_for_each_episode(tmp_path):
    episodes = [demonstration(n, seed=i) for i, n in enumerate((9, 12, 15))]
    write_dataset(tmp_path / "set", ROBOT, episodes)
    stats = json.loads((tmp_path / "set/meta/stats.json").read_text())
    rows = pq.read_table(tmp_path / "set/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    firsts = [0, 9, 21]
    of_each = [
        {
            "action": e.actions.astype(float),
            "observation.state": e.proprio.astype(float),
            "timestamp": (np.arange(len(e)) / 40).astype(np.float32).astype(float)[:, None],
            "frame_index": np.arange(len(e))[:, None],
            "episode_index": np.full((len(e), 1), i),
            "index": np.arange(first, first + len(e))[:, None],
            "task_index": np.full((len(e), 1), (0, 1, 0)[i]),
        }
        for i, (e, first) in enumerate(zip(episodes, firsts, strict=True))
    ]
    for key in of_each[0]:
        parts = [values[key] for values in of_each]
        for name, expected in described(np.concatenate(parts)).items():
            np.testing.assert_allclose(stats[key][name], expected, rtol=1e-9, err_msg=f"{key} {name}")
        for row, part in zip(rows, parts, strict=True):
            for name, expected in described(part).items():
                np.testing.assert_allclose(row[f"stats/{key}/{name}"], expected, rtol=1e-9, err_msg=f"{key} {name}")
    for row, episode in zip(rows, episodes, strict=True):
        for camera in ROBOT.cameras:
            pixels = episode.images[camera].reshape(-1, 3) / 255
            mean = np.ravel(row[f"stats/observation.images.{camera}/mean"])
            np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-9)
            assert row[f"stats/observation.images.{camera}/count"] == [len(episode)]


def test_every_frame_of_a_long_episode_is_written_at_its_step(tmp_path):
    """Frames are encoded in blocks, and statistics use 100 evenly spaced frames."""
    length = 150
    shades = np.arange(length)
    frames = np.broadcast_to(shades.astype(np.uint8)[:, None, None, None], (length, 16, 16, 3)).copy()
    write_dataset(tmp_path / "set", ROBOT, [demonstration(length, images=dict.fromkeys(ROBOT.cameras, frames))])
    shown = opened(tmp_path / "set")[0].images["corner"][:].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(shown, shades, atol=1.5)
    counted = np.linspace(0, length - 1, 100).round() / 255
    stats = json.loads((tmp_path / "set/meta/stats.json").read_text())["observation.images.corner"]
    np.testing.assert_allclose(np.ravel(stats["mean"]), counted.mean())
    np.testing.assert_allclose(np.ravel(stats["max"]), counted.max())


def test_each_video_file_begins_at_time_0(tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot_merge, "VIDEO_FILE_MB", 1e-2)
    episodes = [demonstration(n, seed=i) for i, n in enumerate((10, 14, 18, 22, 26))]
    write_dataset(tmp_path / "set", ROBOT, episodes)
    rows = pq.read_table(tmp_path / "set/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    place = "videos/observation.images.wrist"
    ends: dict[int, float] = {}
    for row in rows:
        file = row[f"{place}/file_index"]
        assert row[f"{place}/from_timestamp"] == pytest.approx(ends.get(file, 0.0))
        ends[file] = row[f"{place}/from_timestamp"] + row["length"] / 40
        assert row[f"{place}/to_timestamp"] == pytest.approx(ends[file])
    assert len(ends) > 1


def test_episodes_are_staged_out_of_order_in_processes_and_resumed(tmp_path):
    root = tmp_path / "set"
    writer = begin(root)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(stage_episode, writer.partial_root, ROBOT, i, demonstration(10 + i, seed=i)) for i in (12, 2)
        ]
        [job.result() for job in jobs]
    writer.note("failures", 2)
    writer.note("tries", 5)
    writer.note("failures", 3)
    again = begin(root)  # a new process of the same command
    assert again.done == {2, 12}
    assert again.notes == {"failures": 3, "tries": 5}
    again.stage(0, demonstration(5, seed=0))
    again.finalize()
    dataset = opened(root)
    assert dataset.lengths.tolist() == [5, 12, 22]  # in the order of their indices
    assert [dataset[i].extra["seed"] for i in range(3)] == [0, 2, 12]
    assert dataset.notes == {"failures": 3, "tries": 5}
    assert dataset.provenance == {"suite": "drawers", "format": "lerobot", "version": "v3.0"}
    assert is_complete(root)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    with pytest.raises(ValueError, match="holds a complete dataset: remove it or choose another"):
        begin(root)


def test_staging_an_episode_again_replaces_it(tmp_path):
    writer = begin(tmp_path / "set")
    writer.stage(0, demonstration(5))
    writer.stage(0, demonstration(8))
    writer.finalize()
    assert opened(tmp_path / "set").lengths.tolist() == [8]


def test_a_run_with_other_settings_is_refused(tmp_path):
    begin(tmp_path / "set", seed=1)
    with pytest.raises(ValueError, match=r"other settings \(provenance.seed: 1 then, 2 now\).*finish it, or remove"):
        begin(tmp_path / "set", seed=2)
    faster = Embodiment(name="arm", cameras=ROBOT.cameras, proprio=ROBOT.proprio, action=ROBOT.action, control_hz=80)
    with pytest.raises(ValueError, match=r"embodiment.control_hz: 40\.0 then, 80\.0 now"):
        LeRobotWriter(tmp_path / "set", faster, provenance={"suite": "drawers", "seed": 1})


def test_a_moved_source_is_recognized_by_its_fingerprint(tmp_path):
    begin(tmp_path / "set", source={"path": "/here", "fingerprint": "f"})
    begin(tmp_path / "set", source={"path": "/there", "fingerprint": "f"})
    with pytest.raises(ValueError, match=r"provenance.source.fingerprint: 'f' then, 'g' now"):
        begin(tmp_path / "set", source={"path": "/here", "fingerprint": "g"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": {"corner": scene(20)}}, "camera 'wrist' is missing; known: corner"),
        (
            {"images": {"corner": scene(20), "wrist": scene(19)}},
            r"'wrist' must be uint8 \(20, H, W, 3\), got uint8 \(19",
        ),
        ({"images": {"corner": scene(20), "wrist": scene(20) / 255}}, r"'wrist' must be uint8 .* got float64"),
        ({"proprio": np.zeros((20, 5), np.float32)}, r"proprio must be float32 \(20, 4\), got float32 \(20, 5\)"),
        ({"proprio": np.zeros((18, 4), np.float32)}, r"proprio must be float32 \(20, 4\), got float32 \(18, 4\)"),
        ({"actions": np.zeros((20, 4))}, r"actions must be float32 \(20, 4\), got float64"),
        ({"actions": np.zeros((0, 4), np.float32)}, "has no steps"),
        ({"instructions": ("open it", " ")}, "an instruction is empty; leave it out"),
        ({"timestamps": np.zeros(20)}, "timestamps must be 20 increasing seconds from 0 on"),
        ({"timestamps": np.arange(19.0)}, "timestamps must be 20 increasing seconds"),
        ({"extra": {"seed": np.int64(3)}}, "extra must be plain JSON data"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match="episode 4.*" + message):
        stage_episode(tmp_path, ROBOT, 4, demonstration(20, **changes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["actions", "proprio"])
def test_the_step_of_a_nan_is_named(tmp_path, name):
    values = np.zeros((20, 4), np.float32)
    values[13, 2] = np.nan
    with pytest.raises(ValueError, match=f"episode 4: {name} at step 13, group .*, is nan"):
        stage_episode(tmp_path, ROBOT, 4, demonstration(20, **{name: values}))


def test_camera_names_become_file_names(tmp_path):
    robot = Embodiment(name="x", cameras=("a/b",), proprio=ROBOT.proprio, action=ROBOT.action, control_hz=40)
    with pytest.raises(ValueError, match="camera name 'a/b': it becomes a file name"):
        LeRobotWriter(tmp_path / "set", robot, provenance={})


def test_a_full_disk_while_staging_leaves_no_partial_episode(tmp_path, monkeypatch):
    writer = begin(tmp_path / "set")
    writer.stage(0, demonstration(5))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lerobot_writer.pq, "write_table", full)
    with pytest.raises(
        OSError, match=r"disk is full while writing .*free some space and run the same command"
    ) as error:
        writer.stage(1, demonstration(5))
    assert error.value.errno == errno.ENOSPC
    assert writer.done == {0}
    assert not list(writer.partial_root.glob(".building*"))


def test_a_full_disk_while_merging_keeps_the_staged_episodes(tmp_path, monkeypatch):
    writer = begin(tmp_path / "set")
    writer.stage(0, demonstration(5))

    def full(*_):
        raise av.error.FFmpegError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(lerobot_merge.video, "join", full)
        with pytest.raises(OSError, match="disk is full"):
            writer.finalize()
    assert [p.name for p in tmp_path.iterdir()] == ["set.partial"]
    begin(tmp_path / "set").finalize()
    assert opened(tmp_path / "set").lengths.tolist() == [5]


def test_an_interrupted_merge_is_not_a_dataset(tmp_path, monkeypatch):
    writer = begin(tmp_path / "set")
    writer.stage(0, demonstration(5))

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lerobot_merge, "_write_tasks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            writer.finalize()
    assert not is_complete(tmp_path / "set")
    assert begin(tmp_path / "set").done == {0}


def test_merging_without_episodes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no episode"):
        begin(tmp_path / "set").finalize()


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="exists and is not a dataset"):
        begin(tmp_path / "set")


def test_files_grow_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(lerobot_merge, "DATA_FILE_MB", 3e-3)
    monkeypatch.setattr(lerobot_merge, "VIDEO_FILE_MB", 1e-2)
    monkeypatch.setattr(lerobot_merge, "CHUNK_FILES", 2)
    episodes = [demonstration(30, seed=i) for i in range(7)]
    write_dataset(tmp_path / "set", ROBOT, episodes)
    assert len(list((tmp_path / "set/data").glob("chunk-00[01]/*.parquet"))) > 2
    assert len(list((tmp_path / "set/videos/observation.images.wrist").glob("chunk-*/*.mp4"))) > 2
    dataset = opened(tmp_path / "set")
    for i, episode in enumerate(episodes):
        assert np.array_equal(dataset[i].actions, episode.actions)
        assert np.abs(dataset[i].images["wrist"][:].astype(float) - episode.images["wrist"]).mean() < 3


def test_images_of_two_sizes_are_refused(tmp_path):
    writer = begin(tmp_path / "set")
    writer.stage(0, demonstration(5))
    writer.stage(3, demonstration(5, images={"corner": scene(5), "wrist": scene(5, 48)}))
    with pytest.raises(ValueError, match=r"'wrist' has 32x32 images in episode-000000 but 48x48 in episode-000003"):
        writer.finalize()
    assert writer.done == {0, 3}


def test_one_dim_features_are_plain_numbers_as_lerobot_expects(tmp_path):
    robot = Embodiment(
        name="x",
        cameras=("wrist",),
        proprio=ActionSpace(groups=(Group(name="height", size=1),)),
        action=ActionSpace(groups=(Group(name="speed", size=1),)),
        control_hz=12.5,
    )
    values = np.linspace(0, 1, 6, dtype=np.float32)[:, None]
    write_dataset(tmp_path / "set", robot, [demonstration(6, actions=values, proprio=values)])
    rows = pq.read_table(tmp_path / "set/data/chunk-000/file-000.parquet")
    assert str(rows.schema.field("action").type) == "float"
    dataset = opened(tmp_path / "set")
    assert np.array_equal(dataset[0].actions, values)
    assert json.loads((tmp_path / "set/meta/stats.json").read_text())["action"]["max"] == [1.0]


def test_staging_imports_no_torch():
    code = "import sys, anyvla.data.formats.lerobot.writer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
