"""Tests of HDF5: declared and known layouts, references to other files, and promises of absent data."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from anyvla.cli.main import main
from anyvla.config import build
from anyvla.data.formats.hdf5 import file as hdf5
from anyvla.data.formats.hdf5.dataset import Hdf5Dataset
from anyvla.data.formats.hdf5.frames import Hdf5Frames, ImageStorage
from anyvla.data.formats.hdf5.layout import Hdf5Config
from anyvla.data.open import open_dataset, recognize
from anyvla.data.tools.quality import check
from anyvla.data.undeclared import UndeclaredError
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.space import ActionSpace, Group
from tests.data.demonstrations import scene

LENGTH = 6


def robot(*cameras: str, action: int = 14, proprio: int = 14) -> Embodiment:
    def space(size: int) -> ActionSpace:
        return ActionSpace(groups=(Group(name="joints", size=size, kind="joints", unit="rad"),) if size else ())

    return Embodiment(name="arms", cameras=cameras, proprio=space(proprio), action=space(action), control_hz=50)


def jpegs(images: np.ndarray) -> list[bytes]:
    out = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=95, subsampling=0)
        out.append(buffer.getvalue())
    return out


def close(a: Any, b: Any) -> bool:
    return float(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).mean()) < 4


def write_aloha(path: Path, compressed: bool) -> np.ndarray:
    """Write a file as act's record_sim_episodes.py does. `compressed`: images are rows of padded JPEG bytes."""
    images = scene(LENGTH, 32, 1)
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = False
        file["observations/qpos"] = rng.normal(size=(LENGTH, 14))
        file["observations/qvel"] = rng.normal(size=(LENGTH, 14))
        file["action"] = rng.normal(size=(LENGTH, 14))
        if compressed:
            encoded = jpegs(images)
            longest = max(map(len, encoded))
            padded = np.stack([np.frombuffer(e.ljust(longest, b"\0"), np.uint8) for e in encoded])
            file["observations/images/cam_high"] = padded
            file["compress_len"] = np.array([[len(e) for e in encoded]])
            file.attrs["compress"] = True
        else:
            file["observations/images/cam_high"] = images
    return images


@pytest.mark.parametrize("compressed", [False, True])
def test_aloha(tmp_path: Path, compressed: bool) -> None:
    images = write_aloha(tmp_path / "episode_0.hdf5", compressed)
    write_aloha(tmp_path / "episode_10.hdf5", compressed)
    write_aloha(tmp_path / "episode_9.hdf5", compressed)
    assert recognize(tmp_path) == recognize(tmp_path / "episode_0.hdf5") == "hdf5"
    dataset = open_dataset(tmp_path, embodiment=robot("cam_high"))
    assert [dataset.task(i) for i in range(3)] == ["episode_0", "episode_9", "episode_10"]
    episode = dataset[0]
    with h5py.File(tmp_path / "episode_0.hdf5") as file:
        assert np.array_equal(episode.actions, file["action"][()].astype(np.float32))
        assert np.array_equal(episode.proprio, file["observations/qpos"][()].astype(np.float32))
    assert close(episode.images["cam_high"], images)
    assert close(episode.images["cam_high"][[4, 1]], images[[4, 1]])


def test_robotwin(tmp_path: Path) -> None:
    """RoboTwin stores JPEG strings of one length with swapped colors, and joints but no actions."""
    images = scene(LENGTH, 32, 2)
    joints = np.random.default_rng(0).normal(size=(LENGTH, 14))
    with h5py.File(tmp_path / "episode0.hdf5", "w") as file:
        encoded = jpegs(images[..., ::-1])
        file["observation/head_camera/rgb"] = np.array(encoded, dtype=f"S{max(map(len, encoded))}")
        file["observation/head_camera/intrinsic_cv"] = np.zeros((LENGTH, 3, 3))
        file["observation/head_camera/depth"] = np.zeros((LENGTH, 32, 32), np.uint16)
        file["joint_action/vector"] = joints
        file["joint_action/left_arm"] = joints[:, :6]
        file["pointcloud"] = np.zeros((LENGTH, 0))
    dataset = open_dataset(tmp_path, embodiment=robot("head_camera"))
    episode = dataset[0]
    assert len(episode) == LENGTH - 1
    assert np.array_equal(episode.proprio, joints[:-1].astype(np.float32))
    assert np.array_equal(episode.actions, joints[1:].astype(np.float32))
    assert close(episode.images["head_camera"], images[:-1])


def test_a_declared_layout(tmp_path: Path) -> None:
    """The layout is robomimic's with other names, channels first, split actions and an instruction per episode."""
    images = scene(LENGTH, 32, 3)
    rng = np.random.default_rng(0)
    pose, gripper, state = rng.normal(size=(LENGTH, 6)), rng.normal(size=LENGTH), rng.normal(size=(LENGTH, 7))
    with h5py.File(tmp_path / "all.hdf5", "w") as file:
        for i in (0, 2, 10):
            group = file.create_group(f"trajectories/traj_{i}")
            group["act/pose"], group["act/gripper"], group["state"] = pose + i, gripper, state
            group["views/front"] = images.transpose(0, 3, 1, 2)
            group.attrs["task"] = f"open drawer {i}"
    config = Hdf5Config(
        episodes="trajectories",
        actions=("act/pose", "act/gripper"),
        proprio=("state",),
        cameras={"front": "views/front"},
        channels="first",
        instruction_key="task",
    )
    dataset = Hdf5Dataset(config, tmp_path / "all.hdf5", robot("front", action=7, proprio=7))
    assert [dataset.task(i) for i in range(3)] == ["open drawer 0", "open drawer 2", "open drawer 10"]
    episode = dataset[1]
    assert np.array_equal(episode.actions, np.c_[pose + 2, gripper].astype(np.float32))
    assert np.array_equal(episode.proprio, state.astype(np.float32))
    assert np.array_equal(np.asarray(episode.images["front"]), images)
    assert episode.instruction == "open drawer 2"
    last = build(Hdf5Config, {**vars(config), "channels": "last"})
    with pytest.raises(ValueError, match="declare channels: first"):
        _ = Hdf5Dataset(last, tmp_path, robot("front", action=7, proprio=7))[0]


def test_declared_options_override_a_known_layout(tmp_path: Path) -> None:
    images = scene(LENGTH, 16, 4)
    joints = np.random.default_rng(0).normal(size=(LENGTH, 14))
    with h5py.File(tmp_path / "episode0.hdf5", "w") as file:
        file["joint_action/vector"], file["front/rgb"] = joints, images
    arms = robot("front")
    usual = Hdf5Dataset(Hdf5Config(), tmp_path, arms)[0]
    assert np.array_equal(
        usual.images["front"], images[:-1, ..., ::-1]
    )  # RoboTwin's images are BGR, and its actions the next joints
    plain = Hdf5Dataset(Hdf5Config(colors="rgb", ahead=0), tmp_path, arms)[0]
    assert np.array_equal(plain.images["front"], images)
    assert np.array_equal(plain.actions, joints.astype(np.float32))
    later = Hdf5Dataset(Hdf5Config(colors="bgr", ahead=2), tmp_path, arms)
    assert later.lengths.tolist() == [LENGTH - 2]
    assert np.array_equal(later[0].actions, joints[2:].astype(np.float32))
    assert np.array_equal(later[0].proprio, joints[:-2].astype(np.float32))
    assert later[0].timestamps == pytest.approx(np.arange(LENGTH - 2) / 50)
    assert np.array_equal(later[0].images["front"][[3, 0]], images[[3, 0]][..., ::-1])
    for name, expected in (("flip", images[:, ::-1]), ("turn", images[:, ::-1, ::-1])):
        turned = Hdf5Dataset(Hdf5Config(colors="rgb", ahead=0, images=name), tmp_path, arms)[0]
        assert np.array_equal(turned.images["front"], expected)


def test_a_common_instruction_overrides_the_file(tmp_path: Path) -> None:
    write_aloha(tmp_path / "episode_0.hdf5", False)
    with h5py.File(tmp_path / "episode_0.hdf5", "a") as file:
        file.attrs["task"], file["sentences"] = "open it", np.array([b" close it ", b"and more"])
    for options, expected in (
        ({"instruction_key": "task"}, ("open it",)),
        ({"instruction_key": "sentences"}, ("close it",)),
        ({"instruction_key": "sentences", "instruction": "push it"}, ("push it",)),
        ({}, ()),
    ):
        assert Hdf5Dataset(build(Hdf5Config, options), tmp_path, robot("cam_high"))[0].instructions == expected


def test_an_unknown_layout_is_refused_with_an_example_declaration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, key in (("mine.hdf5", "trajectories/a/act"), ("episode_0.hdf5", "act"), ("other.h5", "data/demo_0/act")):
        with h5py.File(tmp_path / name, "w") as file:
            file[key] = np.zeros((LENGTH, 7))
        with pytest.raises(ValueError, match=r"declare its keys, as in format: \{name: hdf5, ") as refused:
            open_dataset(tmp_path / name)
        assert f"{key} [{LENGTH}, 7]" in str(refused.value)
        assert "\n" not in str(refused.value)
    assert main(["data", "info", str(tmp_path / "mine.hdf5")])
    assert "trajectories/a/act" in capsys.readouterr().err.replace("\n", "")


def test_undeclared_data_gets_an_embodiment_without_meaning(tmp_path: Path) -> None:
    write_aloha(tmp_path / "episode_0.hdf5", True)
    with h5py.File(tmp_path / "episode_0.hdf5", "a") as file:
        file["observations/images/cam_high_depth"] = np.zeros((LENGTH, 8, 8, 1), np.uint8)  # no color
    with pytest.raises(UndeclaredError) as undeclared:
        open_dataset(tmp_path)
    plain, options = undeclared.value.plain, dict(undeclared.value.options)
    assert (plain.cameras, plain.action.size, plain.proprio.size) == (("cam_high",), 14, 14)
    assert options.pop("name") == "hdf5"
    assert len(Hdf5Dataset(build(Hdf5Config, options), tmp_path, plain)[0]) == LENGTH


def test_wrong_declarations_name_the_key(tmp_path: Path) -> None:
    write_aloha(tmp_path / "episode_0.hdf5", False)
    with h5py.File(tmp_path / "episode_0.hdf5", "a") as file:
        file["scalar"] = np.uint8(3)
    for options, wrong in (
        ({"actions": ["actoin"]}, r"has no 'actoin': did you mean .*action"),
        ({"proprio": ["observations/qpos", "compress"]}, "has no 'compress'"),
        ({"episodes": "data"}, "has no 'data'"),
        ({"cameras": {"cam_high": "observations/qpos"}}, r"is float64 \(6, 14\), expected uint8"),
        ({"actions": ["observations/images/cam_high"]}, "declares 14 dims of action"),
        ({"cameras": {"cam_high": "observations"}}, "'observations' is not an array"),
        ({"cameras": {"cam_high": "scalar"}}, "scalar has 0 frames, its actions 6 steps"),
        ({"episodes": "action"}, "group 'action': there is no episode with a step"),
    ):
        with pytest.raises(ValueError, match=wrong):
            _ = Hdf5Dataset(build(Hdf5Config, options), tmp_path, robot("cam_high"))[0]
    with pytest.raises(ValueError, match=r"has no camera 'top'; it has cam_high.*channels: first.*{top: KEY}"):
        open_dataset(tmp_path, embodiment=robot("top"))


def test_undecodable_names_and_huge_numbers_are_tolerated(tmp_path: Path) -> None:
    write_aloha(tmp_path / "episode_0.hdf5", False)
    with h5py.File(tmp_path / "episode_0.hdf5", "a") as file:
        file.create_group("notes")[b"\xff\xfe"] = np.zeros(3)
        file["action"][2, 3] = 1e300
    dataset = open_dataset(tmp_path, embodiment=robot("cam_high"))
    assert dataset[0].actions[2, 3] == np.inf
    assert any("is inf" in finding.text for finding in check(dataset))


DEPTH = np.full((LENGTH, 8, 8, 1), 900, np.uint16)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (DEPTH, "not uint8.*leave a camera of depth out"),
        (np.repeat(DEPTH, 3, -1), "uint16"),
        (np.zeros((LENGTH, 8, 8, 3), np.float32), "float32"),
        (np.zeros((LENGTH, 8, 8, 2), np.uint8), "shape"),
        (np.zeros((LENGTH, 3, 8, 8), np.uint8), "channels: first"),
        (np.zeros((LENGTH, 8, 8, 4), np.uint8), "transparent"),
        (np.array([b"no image"] * LENGTH), "damaged"),
    ],
)
def test_images_without_certain_colors_are_refused(tmp_path: Path, images: np.ndarray, reason: str) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = images
    with pytest.raises(ValueError, match=f"here.*images.*{reason}"):
        _ = Hdf5Frames(tmp_path / "a.h5", "images", "here")[0]


def test_ragged_gray_and_bgr_images(tmp_path: Path) -> None:
    images = scene(LENGTH, 32, 0)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        ragged = file.create_dataset("ragged", (LENGTH,), h5py.vlen_dtype(np.uint8))
        for i, data in enumerate(jpegs(images)):
            ragged[i] = np.frombuffer(data, np.uint8)
        file["gray"], file["bgr"] = images[..., :1], images[..., ::-1]
    path = tmp_path / "a.h5"
    assert close(Hdf5Frames(path, "ragged", ""), images)
    assert np.array_equal(Hdf5Frames(path, "gray", "")[:], np.repeat(images[..., :1], 3, -1))
    assert np.array_equal(Hdf5Frames(path, "bgr", "", ImageStorage(colors="bgr"))[:], images)
    assert np.array_equal(Hdf5Frames(path, "bgr", "", ImageStorage(upright="turn"))[:], images[:, ::-1, ::-1, ::-1])


def hostile(folder: Path) -> Path:
    """Write a file that refers to other files in every way that HDF5 has."""
    (folder / "secret.txt").write_bytes(b"A" * 800)
    with h5py.File(folder / "other.h5", "w") as file:
        file["numbers"] = np.ones((10, 10))
    path = folder / "a.h5"
    with h5py.File(path, "w") as file:
        file["here"] = np.arange(6)
        file["soft"] = h5py.SoftLink("/here")
        file["group/soft"] = h5py.SoftLink("../here")
        file["link"] = h5py.ExternalLink("other.h5", "/numbers")
        file["absolute"] = h5py.ExternalLink(str(folder / "other.h5"), "/")
        file["soft_out"] = h5py.SoftLink("/link")
        file["circle"] = h5py.SoftLink("/circle")
        file["gone"] = h5py.SoftLink("/nowhere")
        raw = [(str(folder / "secret.txt"), 0, 800)]
        file.create_dataset("raw", (100,), np.float64, external=raw)
        layout = h5py.VirtualLayout((10, 10), np.float64)
        layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "numbers", (10, 10))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("huge", (1 << 30, 7), np.float32, chunks=(1 << 10, 7))
        file.create_dataset("chunk", (1 << 20, 1 << 10), np.float32, chunks=(1 << 20, 1 << 9))
        references = file.create_dataset("references", (2,), h5py.ref_dtype)
        references[0] = file["here"].ref
        file["complex"], file["text"] = np.ones(3, complex), np.array([b"a", b"b"])
        file.create_dataset("nothing", data=h5py.Empty("f"))
    return path


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("link", "'link' .* is a link to the file 'other.h5'"),
        ("absolute/numbers", "is a link to the file '.*other.h5'"),
        ("soft_out", "is a link to the file 'other.h5'"),
        ("circle", "cycle of links"),
        ("gone", "has no 'gone'"),
        ("raw", "in another file"),
        ("virtual", "in another file"),
        ("huge", "promises 30064771072 bytes .*, 0 are stored"),
        ("chunk", "promises"),
        ("references", "references"),
        ("complex", "expected real numbers, found complex"),
        ("text", "expected real numbers"),
        ("nothing", "not an array"),
        ("group", "not an array"),
        ("none", "has no 'none'; / holds: absolute"),
        ("here/below", "has no 'here/below'"),
    ],
)
def test_no_other_file_is_read(tmp_path: Path, key: str, reason: str) -> None:
    path = hostile(tmp_path)
    with pytest.raises(ValueError, match=rf"a\.h5.*{reason}"):
        hdf5.read_numbers(path, key)


def test_links_within_a_file_are_followed(tmp_path: Path) -> None:
    path = hostile(tmp_path)
    assert hdf5.read_numbers(path, "soft").tolist() == hdf5.read_numbers(path, "/here").tolist() == list(range(6))
    assert not hdf5.has_key(path, "gone")


def test_listing_arrays_follows_no_link(tmp_path: Path) -> None:
    assert not {"link", "absolute/numbers", "soft_out"} & set(hdf5.find_arrays(hostile(tmp_path), ""))


def test_errors_of_truncated_files_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "episode_0.hdf5"
    write_aloha(path, True)
    whole = path.read_bytes()
    for cut in (0, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"episode_0\.hdf5"):
            _ = np.asarray(open_dataset(path, embodiment=robot("cam_high"))[0].images["cam_high"])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:500])


def without_action(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["action"]


def complex_action(path: Path) -> None:
    without_action(path)
    with h5py.File(path, "a") as file:
        file["action"] = np.zeros((LENGTH, 14), complex)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "cannot be read as HDF5|damaged"),
        (without_action, "has no 'action'"),
        (complex_action, "found complex"),
    ],
)
def test_one_damaged_file_is_named_and_the_others_are_read(
    tmp_path: Path, damage: Any, message: str, number: int
) -> None:
    for i in range(3):
        write_aloha(tmp_path / f"episode_{i}.hdf5", compressed=False)
    damage(tmp_path / f"episode_{number}.hdf5")
    dataset = open_dataset(tmp_path, "hdf5", robot("cam_high"))
    with pytest.raises(ValueError, match=message) as caught:
        dataset[number]
    assert f"episode_{number}.hdf5" in str(caught.value)
    for i in {0, 1, 2} - {number}:
        assert dataset[i].actions.shape == (LENGTH, 14)


def test_an_episode_without_steps_is_left_out(tmp_path: Path) -> None:
    for i in range(2):
        write_aloha(tmp_path / f"episode_{i}.hdf5", compressed=False)
    with h5py.File(tmp_path / "episode_0.hdf5", "a") as file:
        del file["action"]
        file["action"] = np.zeros((0, 14))
    assert open_dataset(tmp_path, "hdf5", robot("cam_high")).lengths.tolist() == [LENGTH]
    with pytest.raises(ValueError, match=r"episode_0\.hdf5: there is no episode with a step"):
        open_dataset(tmp_path / "episode_0.hdf5", "hdf5", robot("cam_high"))


def test_a_file_with_another_number_of_dims_is_named(tmp_path: Path) -> None:
    for i in range(2):
        write_aloha(tmp_path / f"episode_{i}.hdf5", compressed=False)
    with h5py.File(tmp_path / "episode_1.hdf5", "a") as file:
        del file["observations/qpos"]
        file["observations/qpos"] = np.zeros((LENGTH, 15))
    dataset = open_dataset(tmp_path, "hdf5", robot("cam_high"))
    with pytest.raises(ValueError, match=r"_1\.hdf5: .*qpos has shape \(6, 15\); expected 6 steps of 14 numbers"):
        dataset[1]
    assert len(dataset[0]) == LENGTH
