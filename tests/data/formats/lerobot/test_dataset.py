from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from anyvla.data.formats.lerobot import dataset as lerobot
from anyvla.data.formats.lerobot import parquet
from anyvla.data.formats.lerobot.dataset import LeRobotDataset
from anyvla.data.formats.lerobot.info import DatasetInfo, dim_names
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.undeclared import UndeclaredError
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.space import ActionSpace, Group
from tests.data.demonstrations import ROBOT, demonstration, psnr, scene


def opened(root, embodiment=None, **options):
    return LeRobotDataset(LeRobotDataset.Config(**options), root, embodiment)


@pytest.fixture(scope="module")
def episodes():
    return [demonstration(10 + 7 * i, seed=i) for i in range(4)]


@pytest.fixture(scope="module")
def written(tmp_path_factory, episodes):
    root = tmp_path_factory.mktemp("data") / "set"
    write_dataset(root, ROBOT, episodes, {"suite": "drawers"})
    return root


@pytest.fixture
def copy(written, tmp_path):
    return shutil.copytree(written, tmp_path / "set")


def edit_info(root, **changes):
    path = root / "meta/info.json"
    info = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in info.items() if v is not None}))


def test_rows_of_two_data_sets_with_equal_file_names_are_not_confused(tmp_path):
    given = {name: demonstration(10, seed=seed) for name, seed in (("one", 1), ("other", 2))}
    for name, episode in given.items():
        write_dataset(tmp_path / name, ROBOT, [episode])
    read = {name: opened(tmp_path / name)[0] for name in given}
    for name, episode in given.items():
        assert np.array_equal(read[name].actions, episode.actions)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_rows_are_found_in_row_groups_of_any_size(copy, episodes, size):
    path = next(copy.glob("data/*/*.parquet"))
    pq.write_table(pq.read_table(path), path, row_group_size=size)
    for given, read in zip(episodes, opened(copy), strict=True):
        assert np.array_equal(given.actions, read.actions)


def test_written_episodes_are_read_back(written, episodes):
    dataset = opened(written)
    assert dataset.embodiment == ROBOT
    assert dataset.lengths.tolist() == [10, 17, 24, 31]
    assert len(dataset) == 4
    for given, read in zip(episodes, [dataset[i] for i in range(4)], strict=True):
        assert np.array_equal(given.actions, read.actions)
        assert np.array_equal(given.proprio, read.proprio)
        assert (given.instruction, given.extra) == (read.instruction, read.extra)
        assert read.timestamps.tolist() == [step / 40 for step in range(len(given))]  # the file has float32
        assert list(read.images) == ["corner", "wrist"]
        for camera in ROBOT.cameras:
            assert psnr(given.images[camera], read.images[camera]) > 33
    with pytest.raises(IndexError, match="has 4 episodes; no episode 4"):
        dataset[4]


def test_wide_images_stay_wide_and_upright(tmp_path):
    """Red at the left and blue below show that no frame is turned, mirrored or of another color order."""
    frames = np.full((6, 24, 40, 3), 100, np.uint8)
    frames[:, :, :8], frames[:, 16:, 8:] = (220, 20, 20), (20, 20, 220)
    write_dataset(tmp_path / "set", ROBOT, [demonstration(6, images=dict.fromkeys(ROBOT.cameras, frames))])
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    feature = info["features"]["observation.images.corner"]
    assert (feature["shape"], feature["names"]) == ([24, 40, 3], ["height", "width", "channels"])
    assert (feature["info"]["video.height"], feature["info"]["video.width"]) == (24, 40)
    images = opened(tmp_path / "set")[0].images["corner"]
    assert images.shape == frames.shape
    assert np.abs(images[:].astype(int) - frames).mean() < 3


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ([24, 40, 3], ["height", "width", "channels"]),
        ([3, 24, 40], ["channels", "height", "width"]),
        ([40, 24, 3], ["width", "height", "channel"]),
        ([24, 40, 3], None),
        ([3, 24, 40], None),
        ([1, 24, 40], None),
    ],
)
def test_height_and_width_are_found_in_every_declared_order(copy, shape, names):
    edit_info(copy, features={"top": {"dtype": "image", "shape": shape, "names": names}})
    assert DatasetInfo(copy).image_size("top") == (24, 40)


def test_info_of_a_video_wins_over_video_info(copy):
    facts = {"video.is_depth_map": False, "video.codec": "h264"}
    old = {"video.is_depth_map": True, "video.codec": "av1"}
    edit_info(copy, features={"top": {"dtype": "video", "shape": [24, 40, 3], "info": facts, "video_info": old}})
    info = DatasetInfo(copy)
    assert info.cameras() == {"top": "top"}
    assert info.codec("top") == "h264"
    assert info.columns() == {"top": "video 24x40x3 h264"}


def test_single_frames_equal_the_whole_episode(written):
    images = opened(written)[2].images["wrist"]
    whole = np.asarray(images)
    assert whole.shape == images.shape == (24, 32, 32, 3)
    assert np.array_equal(images[[23, 0, 5, 5]], whole[[23, 0, 5, 5]])
    assert np.array_equal(images[3:9], whole[3:9])
    with pytest.raises(IndexError, match="the episode has 24 steps; no step 24"):
        images[[24]]


def test_fingerprint_depends_on_the_data_only(tmp_path):
    # x264 sometimes encodes equal frames of 32 pixels differently
    images = {camera: scene(10, size=64) for camera in ROBOT.cameras}
    episodes = [demonstration(10, seed=i, images=images) for i in range(4)]
    write_dataset(tmp_path / "set", ROBOT, episodes, {"suite": "drawers"})
    first = opened(tmp_path / "set").fingerprint
    shutil.copytree(tmp_path / "set", tmp_path / "copy")
    assert opened(tmp_path / "copy").fingerprint == first
    write_dataset(tmp_path / "again", ROBOT, episodes, {"suite": "made elsewhere"})
    assert opened(tmp_path / "again").fingerprint == first
    changed = episodes[3].actions.copy()
    changed[5, 2] += 1e-3
    other = [*episodes[:3], demonstration(10, seed=3, images=images, actions=changed)]
    write_dataset(tmp_path / "other", ROBOT, other)
    assert opened(tmp_path / "other").fingerprint != first


def test_a_foreign_dataset_needs_its_embodiment_declared(copy):
    edit_info(copy, anyvla=None)
    with pytest.raises(UndeclaredError, match=r"does not declare the meaning(.|\n)*anyvla data info") as refused:
        opened(copy)
    declared = pickle.loads(pickle.dumps(refused.value)).plain
    assert (declared.name, declared.cameras, declared.control_hz) == ("arm", ("corner", "wrist"), 40)
    assert np.array_equal(opened(copy, declared)[1].actions, demonstration(17, seed=1).actions)
    one_camera = Embodiment(name="x", cameras=("wrist",), proprio=ROBOT.proprio, action=ROBOT.action, control_hz=40)
    assert list(opened(copy, one_camera)[0].images) == ["wrist"]
    assert opened(copy, one_camera).embodiment.action.groups[0].names == ("hand_0", "hand_1", "hand_2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": ("wirst",)}, "no camera 'wirst': did you mean 'wrist'"),
        ({"action": ActionSpace(groups=(Group(name="a", size=7),))}, r"'action' has shape \[4\].*declares 7 dims"),
        ({"control_hz": 10}, "recorded at 40 steps per second.*control_hz=10"),
        ({"control_hz": 40.5}, "recorded at 40 steps per second.*control_hz=40.5"),
    ],
)
def test_an_embodiment_that_does_not_fit_is_refused(written, changes, message):
    parts = {"name": "arm", "cameras": ROBOT.cameras, "proprio": ROBOT.proprio, "action": ROBOT.action}
    with pytest.raises(ValueError, match=message):
        opened(written, Embodiment(**({**parts, "control_hz": 40} | changes)))


def test_other_versions_are_refused(copy):
    edit_info(copy, codebase_version="v2.1")
    with pytest.raises(ValueError, match=r"version v2\.1, not v3\.0: declare format: {name: lerobot_v2}, or"):
        opened(copy)
    edit_info(copy, codebase_version="v4.0")
    with pytest.raises(ValueError, match=r"version v4\.0, not v3\.0: versions v2\.0, v2\.1, v3\.0 are read"):
        opened(copy)


def test_errors_of_partial_and_absent_data_sets_say_what_to_do(tmp_path):
    (tmp_path / "a.partial").mkdir()
    for root in (tmp_path / "a", tmp_path / "a.partial"):
        with pytest.raises(ValueError, match="run the same command to finish it"):
            opened(root)
    with pytest.raises(ValueError, match=r"no dataset at .*nothing: no such folder"):
        opened(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"it has no meta/info\.json"):
        opened(tmp_path / "empty")


@pytest.mark.parametrize(
    "missing",
    [
        "data/chunk-000/file-000.parquet",
        "videos/observation.images.wrist/chunk-000/file-000.mp4",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/tasks.parquet",
    ],
)
def test_missing_files_are_found_when_opened(copy, missing):
    (copy / missing).unlink()
    with pytest.raises(ValueError, match=r"incomplete.*copy"):
        opened(copy)


def test_damaged_json(copy):
    (copy / "meta/info.json").write_text('{"codebase_version": "v3.0", ')
    with pytest.raises(ValueError, match=r"info\.json is damaged"):
        opened(copy)


def test_fewer_episodes_than_counted_are_refused(copy):
    path = copy / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).slice(0, 3), path)
    with pytest.raises(ValueError, match=r"counts 4 episodes, meta/episodes lists 3"):
        opened(copy)


def test_reading_numbers_does_not_decode(copy):
    dataset = opened(copy)
    for path in copy.glob("videos/**/*.mp4"):
        path.write_bytes(b"not a video")
    assert len(dataset[1].actions) == 17
    assert "wrist" in dataset[1].images
    with pytest.raises(ValueError, match=r"episode 1: .*wrist.*file-000\.mp4 is damaged .*copy the dataset"):
        np.asarray(dataset[1].images["wrist"])


def test_instructions_and_timestamps_are_written_and_read(tmp_path):
    uneven = np.cumsum(np.r_[0, np.linspace(0.02, 0.03, 11)])
    given = [
        demonstration(12, instructions=("open it", "pull the drawer"), timestamps=uneven),
        demonstration(9, instructions=()),
        demonstration(9, instructions=("open it",)),
    ]
    write_dataset(tmp_path / "set", ROBOT, given)
    read = opened(tmp_path / "set")
    assert [read[i].instructions for i in range(3)] == [e.instructions for e in given]
    for i, episode in enumerate(given):
        assert np.array_equal(read[i].timestamps, episode.timestamps)
    assert [read.task(i) for i in range(3)] == ["drawer"] * 3
    write_dataset(tmp_path / "untold", ROBOT, [demonstration(9, instructions=(), extra={})])
    assert opened(tmp_path / "untold").task(0) == ""


def test_a_read_data_set_can_be_written_again(written, tmp_path):
    dataset = opened(written)
    write_dataset(tmp_path / "again", ROBOT, (dataset[i] for i in range(4)))
    again = opened(tmp_path / "again")
    for i in range(4):
        assert np.array_equal(again[i].actions, dataset[i].actions)
        assert (
            psnr(again[i].images["wrist"][:], dataset[i].images["wrist"][:]) > 34
        )  # x264 sometimes encodes equal frames of 32 pixels differently


def test_cached_rows_are_bounded(written, monkeypatch):
    whole = opened(written)
    sizes = [whole[i].actions.nbytes + whole[i].proprio.nbytes for i in range(4)]
    kept = parquet._TableCache(limit=4 * sizes[1])
    monkeypatch.setattr(parquet, "_cache", kept)
    for i in (0, 1, 2, 3, 3, 1):
        assert np.array_equal(whole[i].actions, demonstration(10 + 7 * i, seed=i).actions)
        assert kept.bytes == sum(table.nbytes for table in kept.tables.values())
        assert kept.bytes <= kept.limit or len(kept.tables) == 1
    assert 1 <= len(kept.tables) < 4


def test_a_large_index_is_cached_until_it_changes(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("ANYVLA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lerobot, "_CACHED_FROM_BYTES", 0)
    assert opened(copy).lengths.tolist() == [10, 17, 24, 31]
    with monkeypatch.context() as patch:
        patch.setattr(lerobot, "_read_tables", None)
        kept = opened(copy)
        assert (kept.lengths.tolist(), kept[3].extra["seed"]) == ([10, 17, 24, 31], 3)
    path = copy / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).slice(0, 3), path)
    edit_info(copy, total_episodes=3)
    assert opened(copy).lengths.tolist() == [10, 17, 24]
    (tmp_path / "no_folder").touch()
    monkeypatch.setenv("ANYVLA_CACHE", str(tmp_path / "no_folder"))
    assert opened(copy).lengths.tolist() == [10, 17, 24]


def test_a_damaged_index_is_named(copy):
    path = copy / "meta/episodes/chunk-000/file-000.parquet"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"meta/episodes/chunk-000/file-000\.parquet is damaged"):
        opened(copy)


def test_frames_of_another_size_than_declared_are_refused(copy):
    info = json.loads((copy / "meta/info.json").read_text())
    info["features"]["observation.images.wrist"]["shape"] = [64, 32, 3]
    edit_info(copy, features=info["features"])
    with pytest.raises(ValueError, match=r"episode 0: .*the frames are 32x32, info\.json says 64x32"):
        opened(copy)[0].images["wrist"][[0]]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a", "b"], ("a", "b")),
        ([["a", "b"]], ("a", "b")),
        ({"motors": ["a", "b"]}, ("a", "b")),
        ({"left": ["a"], "right": ["b"]}, ("a", "b")),
        ({"b": 1, "a": 0}, ("a", "b")),
        (None, ()),
        (["a"], ()),
        (["a", "b", "c"], ()),
        (["a", None], ()),
        (["a", " "], ()),
        (["a", 3], ()),
        ("ab", ()),
        (5, ()),
        ({"motors": None}, ()),
        ({}, ()),
    ],
)
def test_names_of_dims_in_every_notation(names, found):
    assert dim_names({"shape": [2], "names": names}) == found
