"""Tests of CALVIN folders as calvin_env's datarenderer and calvin's annotator write them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from anyvla.config import build
from anyvla.data.formats.calvin import dataset as calvin
from anyvla.data.formats.calvin.dataset import CalvinConfig, CalvinDataset, calvin_embodiment
from anyvla.data.formats.calvin.index import annotated_segments
from anyvla.data.open import open_dataset, recognize
from anyvla.data.transforms.converted import Converted
from anyvla.robot.space import Group

FIRST = 100  # of 40 steps: two recordings, 100 .. 119 in scene A, 120 .. 139 in scene D
TASKS = [(102, 110, "open_drawer", "pull the drawer"), (121, 129, "lift_red_block_table", "lift the red block")]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYVLA_CACHE", str(tmp_path / "cache"))


def to_relative(actions: np.ndarray, robot_obs: np.ndarray) -> np.ndarray:
    """Return relative actions as calvin_env defines them: 0.02 m and 0.05 rad become 1, for each angle alone."""
    turn = (actions[3:6] - robot_obs[3:6] + np.pi) % (2 * np.pi) - np.pi
    return np.concatenate(
        [
            np.clip(actions[:3] - robot_obs[:3], -0.02, 0.02) / 0.02,
            np.clip(turn, -0.05, 0.05) / 0.05,
            actions[-1:],
        ]
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    split = tmp_path / "task_D_D" / "training"
    (split / "lang_annotations").mkdir(parents=True)
    for step in range(FIRST, FIRST + 40):
        state = rng.normal(size=15)
        state[3:6] = rng.uniform(-3, 3, 3) * (1, 0.4, 1)
        action = np.concatenate([state[:3] + rng.normal(size=3) * 0.01, state[3:6] + rng.normal(size=3) * 0.02, [1]])
        np.savez_compressed(
            split / f"episode_{step:07d}.npz",
            actions=action,
            rel_actions=to_relative(action, state),
            robot_obs=state,
            scene_obs=rng.normal(size=24),
            rgb_static=np.full((20, 20, 3), step, np.uint8),
            rgb_gripper=np.full((8, 8, 3), step + 1, np.uint8),
            rgb_tactile=np.zeros((16, 12, 6), np.uint8),
            depth_static=np.zeros((20, 20), np.float32),
        )
    np.save(split / "ep_start_end_ids.npy", [(FIRST, FIRST + 19), (FIRST + 20, FIRST + 39)])
    np.save(split / "scene_info.npy", {"calvin_scene_A": [FIRST, FIRST + 19], "calvin_scene_D": [120, 139]})  # type: ignore[arg-type]
    words = {
        "language": {"ann": [t[3] for t in TASKS], "task": [t[2] for t in TASKS], "emb": np.zeros((2, 1, 384))},
        "info": {"episodes": [], "indx": [t[:2] for t in TASKS]},
    }
    np.save(split / "lang_annotations" / "auto_lang_ann", words)  # type: ignore[arg-type]
    return split.parent


def step(folder: Path, number: int) -> dict[str, np.ndarray]:
    with np.load(folder / f"training/episode_{number:07d}.npz") as file:
        return {k: file[k] for k in file.files}


def opened(folder: Path, **options: Any) -> CalvinDataset:
    return CalvinDataset(build(CalvinConfig, options), folder)


def test_annotated_segments_exclude_their_last_step(folder: Path) -> None:
    assert recognize(folder) == "calvin" == recognize(folder / "training")
    data = open_dataset(folder)
    assert data.lengths.tolist() == [8, 8]
    assert [data.task(i) for i in range(2)] == [t[2] for t in TASKS]
    episode = data[1]
    files = [step(folder, n) for n in range(121, 129)]
    assert episode.instructions == ("lift the red block",)
    assert np.array_equal(episode.actions, np.stack([f["rel_actions"] for f in files]).astype(np.float32))
    assert np.array_equal(episode.proprio, np.stack([f["robot_obs"] for f in files]).astype(np.float32))
    assert episode.timestamps == pytest.approx(np.arange(8) / 30)
    assert episode.extra == {"task": TASKS[1][2], "scene": "D", "first_step": 121}
    assert list(episode.images) == ["static", "gripper"] == list(data.embodiment.cameras)
    assert episode.images["gripper"][[7, 0, 7]][:, 0, 0, 0].tolist() == [129, 122, 129]
    assert data.embodiment == calvin_embodiment("relative")


def test_numbers_are_read_without_images_and_cached(folder: Path) -> None:
    first = opened(folder)
    before = first[0].actions
    for number in range(102, 110):
        (folder / f"training/episode_{number:07d}.npz").write_bytes(b"PK gone")
    kept = pickle.loads(pickle.dumps(first))[0]
    assert np.array_equal(kept.actions, before)
    with pytest.raises(ValueError, match=r"episode 0, step 3: .*episode_0000105\.npz cannot be read as \.npz"):
        kept.images["static"][3]


def test_numbers_of_several_blocks_are_joined(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = [opened(folder, segments="play")[i].proprio for i in range(2)]
    monkeypatch.setattr(calvin, "_BLOCK", 7)
    monkeypatch.setenv("ANYVLA_CACHE", str(tmp_path / "other"))
    again = opened(folder, segments="play")
    assert all(np.array_equal(again[i].proprio, whole[i]) for i in (1, 0))


def test_play_data_is_whole_recordings_without_instructions(folder: Path) -> None:
    data = opened(folder / "training", segments="play")
    assert data.lengths.tolist() == [20, 20]
    assert data[1].instructions == ()
    assert data[1].images["static"][-1:][0, 0, 0, 0] == 139


def test_scenes_and_lists_select_segments(folder: Path, tmp_path: Path) -> None:
    assert opened(folder, scenes=["D"]).task(0) == TASKS[1][2]
    assert len(opened(folder, scenes=["A", "D"])) == 2
    with pytest.raises(ValueError, match=r"has no scene B; it has A, D"):
        opened(folder, scenes=["B"])
    by_task, lines = tmp_path / "few.json", tmp_path / "names.txt"
    by_task.write_text(json.dumps({"open_drawer": [[102, 110]]}))
    lines.write_text("  0 121 129 \n1 5 9 \n")
    assert opened(folder, list=str(by_task)).task(0) == "open_drawer"
    assert opened(folder, list=str(lines)).task(0) == TASKS[1][2]
    by_task.write_text(json.dumps([[102, 110], [121, 128]]))  # the second has the begin of a segment and another end
    assert len(opened(folder, list=str(by_task))) == 1
    by_task.write_text("{")
    with pytest.raises(ValueError, match=r"few\.json is not a list of segments"):
        opened(folder, list=str(by_task))


def test_world_actions_are_the_target_pose(folder: Path) -> None:
    episode = opened(folder, actions="world")[0]
    assert episode.actions[2] == pytest.approx(step(folder, 104)["actions"], abs=1e-6)
    assert episode.embodiment.action.groups[0].mode == "absolute"


def test_units_and_frames_are_as_in_calvin_env() -> None:
    """robot.py: max_rel_pos 0.02, max_rel_orn 0.05, proprio as get_observation gives it; 30 Hz of control."""
    pose = (
        Group(name="position", size=3, kind="position", unit="m", frame="base"),
        Group(name="rotation", size=3, kind="rotation", rotation="euler", unit="rad", frame="base"),
    )
    proprio = (
        *pose,
        Group(name="gripper", size=1, kind="gripper", low=0, high=0.08, open=0.08, unit="m"),
        Group(name="joints", size=7, kind="joints", unit="rad"),
        Group(name="gripper_command", size=1, kind="gripper", low=-1, high=1, open=1),
    )
    gripper = Group(name="gripper", size=1, kind="gripper", low=-1, high=1, open=1)
    move = Group(name="position", size=3, kind="position", mode="delta", low=-1, high=1, unit="0.02 m", frame="base")
    turn: dict[str, Any] = {"name": "rotation", "size": 3, "kind": "rotation", "mode": "delta", "unit": "0.05 rad"}
    actions = {
        "relative": (move, Group(**turn, low=-1, high=1), gripper),
        "motion": (move, Group(**turn, rotation="axis_angle", frame="base"), gripper),
        "world": (*pose, gripper),
    }
    for name, groups in actions.items():
        robot = calvin_embodiment(name)  # type: ignore[arg-type]
        assert robot.action.groups == groups
        assert robot.proprio.groups == proprio
        assert (robot.name, robot.control_hz, robot.cameras) == ("calvin_panda", 30, ("static", "gripper"))


def test_a_segment_belongs_to_the_scene_in_which_it_begins(folder: Path) -> None:
    rewrite_annotations(folder / "training", lambda _: [(119, 121), (120, 122)])
    assert [opened(folder)[i].extra["scene"] for i in range(2)] == ["A", "D"]
    assert [s.scene for s in opened(folder, segments="play")._segments] == ["A", "D"]


def test_the_requested_split_is_read(folder: Path) -> None:
    shutil.copytree(folder / "training", folder / "validation")
    rewrite_annotations(folder / "validation", lambda places: [(102, 105), places[1]])
    assert opened(folder).lengths.tolist() == [8, 8]
    validation = opened(folder, split="validation")
    assert validation.lengths.tolist() == [3, 8]
    assert [opened(folder).provenance["split"], validation.provenance["split"]] == ["training", "validation"]


def test_motion_is_the_rotation_that_the_robot_makes(folder: Path) -> None:
    """robot.py: the goal is the pose now plus the scaled action, angle by angle, taken as a pose."""
    episode = opened(folder, actions="motion")[0]
    for t in range(8):
        raw = step(folder, 102 + t)
        now = Rotation.from_euler("xyz", raw["robot_obs"][3:6])
        goal = Rotation.from_euler("xyz", raw["robot_obs"][3:6] + raw["rel_actions"][3:6] * 0.05)
        made = Rotation.from_rotvec(episode.actions[t, 3:6] * 0.05)
        assert ((made * now) * goal.inv()).magnitude() < 1e-6
        assert episode.actions[t, :3] == pytest.approx(raw["rel_actions"][:3], abs=1e-6)


def test_motion_converts_to_the_frame_of_the_tool(folder: Path) -> None:
    tool = Converted(opened(folder, actions="motion"), frame="tool")[0]
    raw = step(folder, 102)
    now = Rotation.from_euler("xyz", raw["robot_obs"][3:6])
    assert now.apply(tool.actions[0, :3]) == pytest.approx(raw["rel_actions"][:3], abs=1e-5)


def test_differences_of_euler_angles_are_not_declared_as_rotations(folder: Path) -> None:
    assert opened(folder).embodiment.action.groups[1].rotation is None


def test_the_fingerprint_depends_on_options_and_steps(folder: Path) -> None:
    one = opened(folder).fingerprint
    assert opened(folder).fingerprint == one
    assert opened(folder, actions="world").fingerprint != one
    assert opened(folder, scenes=["A"]).fingerprint != one
    path = folder / "training/episode_0000103.npz"
    np.savez_compressed(path, **(step(folder, 103) | {"robot_obs": np.zeros(15)}))
    assert opened(folder).fingerprint != one


def test_the_fingerprint_depends_on_the_segments(folder: Path) -> None:
    """Both read the same files here: the annotations cover the whole recordings."""
    rewrite_annotations(folder / "training", lambda _: [(FIRST, FIRST + 20), (FIRST + 20, FIRST + 40)])
    annotated, play = opened(folder), opened(folder, segments="play")
    assert [len(episode.instructions) for episode in (*annotated, *play)] == [1, 1, 0, 0]
    assert annotated.lengths.tolist() == play.lengths.tolist()
    assert annotated.fingerprint != play.fingerprint


def test_an_edited_step_is_noticed_even_with_its_old_modification_time(folder: Path) -> None:
    one, path = opened(folder), folder / "training/episode_0000104.npz"
    before, times = (one.fingerprint, one[0].actions), path.stat()
    whole = step(folder, 104)
    np.savez(path, **whole)
    as_written = opened(folder)
    assert as_written.fingerprint != before[0]  # the same arrays in other bytes
    assert np.array_equal(as_written[0].actions, before[1])
    np.savez(path, **(whole | {"rel_actions": whole["rel_actions"] * 0.5}))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    edited = opened(folder)
    assert edited.fingerprint not in (before[0], as_written.fingerprint)
    assert not np.array_equal(edited[0].actions, before[1])


def test_errors_of_damaged_steps_name_the_file(folder: Path) -> None:
    data = opened(folder)
    path = folder / "training/episode_0000104.npz"
    whole = step(folder, 104)
    np.savez(path, **{k: v for k, v in whole.items() if k != "robot_obs"})
    with pytest.raises(ValueError, match=r"episode 0: .*0000104\.npz has no key 'robot_obs'"):
        data[0]
    np.savez(path, **(whole | {"actions": np.zeros(8)}))
    with pytest.raises(ValueError, match=r"key 'actions': expected 7 numbers, found shape \(8,\)"):
        data[0]
    path.unlink()
    with pytest.raises(ValueError, match=r"episode 0: there is no .*0000104\.npz"):
        data[0]
    with pytest.raises(IndexError, match="no episode 2"):
        data[2]


def test_a_negative_index_counts_from_the_end(folder: Path) -> None:
    (folder / "training/episode_0000123.npz").unlink()
    data = opened(folder)
    assert (data[-2].extra, data.task(-1)) == (data[0].extra, TASKS[1][2])
    with pytest.raises(ValueError, match=r"^episode 1: .*0000123\.npz"):
        data[-1]
    with pytest.raises(IndexError, match="no episode -3"):
        data[-3]


def test_missing_files_and_cameras_are_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"validation has no ep_start_end_ids\.npy"):
        opened(folder, split="validation")
    with pytest.raises(ValueError, match="or read the play data without instructions"):
        opened(folder, annotations="lang_clip")
    robot = calvin_embodiment("relative", cameras=("static", "front"))
    with pytest.raises(ValueError, match=r"has no key 'rgb_front'; it has .*rgb_static"):
        CalvinDataset(CalvinConfig(), folder, robot)


@pytest.mark.parametrize("pair", [(0, 10**12), (0, 1 << 70), (-5, 3), (float("nan"), 3), ("0", "3"), None, (1, 2, 3)])
def test_impossible_step_numbers_are_refused(tmp_path: Path, pair: object) -> None:
    split = tmp_path / "training"
    (split / "lang_annotations").mkdir(parents=True)
    found = {"language": {"ann": ["open"], "task": ["open"]}, "info": {"indx": [pair]}}
    np.save(split / "lang_annotations/auto_lang_ann.npy", found)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"auto_lang_ann.npy, annotation 0: expected a first and a last step"):
        annotated_segments(split, "lang_annotations")


def rewrite_annotations(split: Path, change: Any) -> None:
    path = split / "lang_annotations" / "auto_lang_ann.npy"
    words = np.load(path, allow_pickle=True).item()
    words["info"]["indx"] = change(list(words["info"]["indx"]))
    np.save(path, words, allow_pickle=True)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((110, 102), "steps 110 to 102 are not a segment"),
        ((135, 145), r"steps 135 to 144 .*there is no .*episode_0000144\.npz"),
        ((5, 9), r"there is no .*episode_0000005\.npz"),
        ((-3, 9), "annotation 0"),
        (("a", 9), "annotation 0"),
    ],
)
def test_a_wrong_annotation_makes_one_segment_unreadable(folder: Path, place: Any, message: str) -> None:
    rewrite_annotations(folder / "training", lambda places: [place, places[1]])
    data = open_dataset(folder)
    assert list(data.unreadable) == [0]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=message):
        data[0]
    assert data[1].extra["task"] == TASKS[1][2]
    assert len(data[1].images["static"][:]) == len(data[1])
    assert data.fingerprint


def test_a_segment_without_steps_is_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    rewrite_annotations(folder / "training", lambda places: [(102, 102), places[1]])
    assert [s.task for s in open_dataset(folder)._segments] == [TASKS[1][2]]  # type: ignore[attr-defined]
    assert "without steps are left out: 102 (open_drawer)" in caplog.text


def test_a_missing_step_makes_only_its_segments_unreadable(folder: Path) -> None:
    (folder / "training/episode_0000105.npz").unlink()
    data = open_dataset(folder)
    with pytest.raises(ValueError, match=r"episode 0: .*episode_0000105\.npz"):
        data[0]
    assert len(data[1].actions) == 8
    assert data.fingerprint


def test_wrong_recordings_are_unreadable(folder: Path) -> None:
    np.save(folder / "training/ep_start_end_ids.npy", [(119, 100), (120, 139), (140, 150)])
    data = CalvinDataset(CalvinConfig(segments="play"), folder)
    assert list(data.unreadable) == [0, 2]
    assert len(data[1]) == 20


def test_complex_numbers_are_refused(folder: Path) -> None:
    path = folder / "training/episode_0000105.npz"
    with np.load(path) as file:
        values = dict(file)
    np.savez(path, **(values | {"rel_actions": values["rel_actions"].astype(complex)}))
    with pytest.raises(ValueError, match=r"0105\.npz, key 'rel_actions': expected real numbers, found complex"):
        open_dataset(folder)[0]
