from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from anyvla.data.episode import Episode
from anyvla.data.formats.folder import FolderConfig, FolderDataset, write_description
from anyvla.data.open import open_dataset, recognize
from tests.data.demonstrations import ROBOT, demonstration


def arrays(episode: Episode) -> dict[str, Any]:
    images = {f"images/{c}": np.asarray(v) for c, v in episode.images.items()}
    return {"actions": episode.actions, "proprio": episode.proprio, "instruction": episode.instruction, **images}


def hdf5(path: Path, **values: Any) -> None:
    with h5py.File(path.with_suffix(".hdf5"), "w") as file:
        for key, value in values.items():
            file[key] = value


WRITERS: dict[str, Callable[..., None]] = {"savez": np.savez, "savez_compressed": np.savez_compressed, "hdf5": hdf5}


def folder(root: Path, write: Callable[..., None] = np.savez, **changes: Any) -> Path:
    write_description(root, ROBOT, about="the arm in the corner")
    for i in range(2):
        write(root / f"episode_{i}", **(arrays(demonstration(9 + i, seed=i)) | changes))
    return root


@pytest.mark.parametrize("writer", WRITERS)
def test_written_episodes_are_read_back(tmp_path: Path, writer: str) -> None:
    data = open_dataset(folder(tmp_path / "mine", WRITERS[writer]))
    assert recognize(data.root) == "folder"
    assert (data.embodiment, data.lengths.tolist()) == (ROBOT, [9, 10])
    again, expected = pickle.loads(pickle.dumps(data))[1], demonstration(10, seed=1)
    assert np.array_equal(again.actions, expected.actions)
    assert np.array_equal(again.proprio, expected.proprio)
    assert again.instructions == expected.instructions
    assert data.task(1) == expected.instruction
    for camera in ROBOT.cameras:
        assert np.array_equal(again.images[camera][[7, 2, 2]], np.asarray(expected.images[camera])[[7, 2, 2]])
    assert again.timestamps == pytest.approx(np.arange(10) / ROBOT.control_hz)


def test_uneven_times_and_several_instructions(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    times = 5 + np.cumsum(np.linspace(0.01, 0.05, 9))
    texts = np.array(["open the drawer", "pull it open"])
    np.savez(root / "episode_0", **(arrays(demonstration(9)) | {"timestamps": times, "instruction": texts}))
    episode = open_dataset(root)[0]
    assert episode.timestamps == pytest.approx(times - times[0])
    assert episode.instructions == ("open the drawer", "pull it open")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_arrays_in_fortran_order_are_read(tmp_path: Path, write: Callable[..., None]) -> None:
    root, expected = folder(tmp_path / "mine"), demonstration(9)
    values = arrays(expected)
    write(
        root / "episode_0", **{k: np.asfortranarray(v) if isinstance(v, np.ndarray) else v for k, v in values.items()}
    )
    episode = open_dataset(root)[0]
    assert np.array_equal(episode.actions, expected.actions)
    assert np.array_equal(episode.images["wrist"][[5, 1]], np.asarray(expected.images["wrist"])[[5, 1]])


def test_a_given_embodiment_replaces_the_declared_one(tmp_path: Path) -> None:
    other = dataclasses.replace(ROBOT, name="other", cameras=("wrist",), control_hz=10)
    data = FolderDataset(FolderConfig(), folder(tmp_path / "mine"), other)
    assert data.embodiment == other
    assert list(data[0].images) == ["wrist"]
    assert data[0].timestamps == pytest.approx(np.arange(9) / 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": np.zeros((9, 5))}, r"episode_0\.npz: actions has shape \(9, 5\); 'arm' expects \(T, 4\)"),
        ({"proprio": np.zeros((8, 4))}, r"episode_0\.npz: proprio has shape \(8, 4\), expected \(9, 4\)"),
        ({"proprio": np.full((9, 4), np.nan)}, r"episode_0\.npz: proprio has NaN or infinity at step 0"),
        ({"images/wrist": np.zeros((4, 8, 8, 3), np.uint8)}, r"images/wrist has 4 frames, its actions 9 steps"),
        (
            {"images/wrist": np.zeros((9, 8, 8), np.uint8)},
            r"images/wrist has shape \(9, 8, 8\), expected \(T, H, W, 3\)",
        ),
        ({"images/wrist": np.zeros((9, 8, 8, 3))}, r"images/wrist is float64, expected uint8"),
        ({"timestamps": np.zeros(9)}, r"the timestamp of step 1 is not after"),
        ({"instruction": 7}, r"instruction holds 7, expected text"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        np.asarray(open_dataset(folder(tmp_path / "mine", **changes))[0].images["wrist"])


def test_a_missing_key_and_a_truncated_file_are_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    whole = (root / "episode_0.npz").read_bytes()
    values = arrays(demonstration(9))
    del values["images/corner"]
    np.savez(root / "episode_0", **values)
    with pytest.raises(ValueError, match=r"episode_0\.npz has no key 'images/corner'; it has actions, proprio"):
        open_dataset(root)[0]
    (root / "episode_0.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"episode_0\.npz cannot be read as \.npz"):
        open_dataset(root)[0]
    assert len(open_dataset(root)[1]) > 0


def test_a_wrong_description_is_refused(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    text = (root / "dataset.yaml").read_text()
    (root / "dataset.yaml").write_text(text.replace("control_hz", "control_herz"))
    with pytest.raises(ValueError, match=r"dataset\.yaml: [\s\S]*embodiment.*control_herz"):
        open_dataset(root)
    for file in root.glob("*.npz"):
        file.unlink()
    (root / "dataset.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"has no episode: expected files \*\.npz or \*\.hdf5 beside dataset\.yaml"):
        open_dataset(root)


def test_the_fingerprint_depends_on_the_numbers_and_their_meaning(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    one = open_dataset(root).fingerprint
    write_description(root, ROBOT, about="another description")
    assert open_dataset(root).fingerprint == one
    assert FolderDataset(FolderConfig(times="steady"), root).fingerprint != one  # steps are at other times
    write_description(root, dataclasses.replace(ROBOT, control_hz=10))
    assert open_dataset(root).fingerprint != one
    write_description(root, ROBOT)
    np.savez(root / "episode_0", **arrays(demonstration(9, seed=5)))
    assert open_dataset(root).fingerprint != one


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": np.zeros((9, 3), np.float32)}, r"actions has shape \(9, 3\)"),
        ({"actions": np.zeros(9, np.float32)}, r"actions has shape \(9,\)"),
        ({"actions": np.zeros((9, 4), np.complex64)}, "actions: expected real numbers, found complex"),
        ({"actions": np.zeros((9, 4), bool)}, "actions: expected real numbers, found truth values"),
        ({"actions": np.full((9, 4), b"1.5")}, "actions: expected real numbers, found text"),
        ({"proprio": np.zeros((9, 4), np.complex128)}, "proprio: expected real numbers, found complex"),
        ({"proprio": np.zeros((8, 4))}, r"proprio has shape \(8, 4\), expected \(9, 4\)"),
        ({"timestamps": (1.7e9 + np.arange(9) / 40).astype(np.float32)}, "kept as float32.*times: steady"),
        ({"timestamps": np.arange(9) * 25}, "milliseconds"),
    ],
)
def test_one_wrong_file_is_named_and_the_others_are_read(
    tmp_path: Path, writer: str, changes: dict[str, Any], message: str
) -> None:
    root = folder(tmp_path / "mine", WRITERS[writer])
    for path in root.glob("episode_0.*"):
        path.unlink()
    WRITERS[writer](root / "episode_0", **(arrays(demonstration(9)) | changes))
    data = open_dataset(root)
    with pytest.raises(ValueError, match=rf"episode_0\..*{message}"):
        data[0]
    assert len(data[1].actions) == 10
    if "timestamps" in changes:
        steady = FolderDataset(FolderConfig(times="steady"), root)[0]
        assert steady.timestamps == pytest.approx(np.arange(9) / ROBOT.control_hz)


def test_episodes_without_steps_and_files_of_other_programs_are_left_out(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    np.savez(root / "episode_5", **{k: v[:0] for k, v in arrays(demonstration(9)).items() if k != "instruction"})
    for name in ("._episode_0.npz", ".DS_Store", "Thumbs.db", "notes.txt"):
        (root / name).write_bytes(b"\0\5\26\7")
    (root / "more.npz").mkdir()
    assert open_dataset(root).lengths.tolist() == [9, 10]
