from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anyvla.actions.space import ActionSpace, Group
from anyvla.data.episode import Embodiment
from anyvla.data.formats import rlds_index, tf_example, tfrecord
from anyvla.data.formats.rlds import RLDSConfig, RLDSDataset
from anyvla.data.formats.rlds_features import Leaf
from anyvla.data.formats.rlds_frames import numbers_of
from anyvla.data.mixture import DataConfig, open_mixture
from anyvla.data.open import open_dataset, recognise

FIXTURES = Path(__file__).parent / "fixtures/rlds"
BRIDGE, FRACTAL, MINE = (FIXTURES / n for n in ("bridge_orig", "fractal20220817_data", "my_arm"))
MY_ARM = Embodiment(
    name="my_arm",
    cameras=("front",),
    proprio=ActionSpace(groups=(Group(name="joints", size=3, kind="joints"), Group(name="packed", size=4))),
    action=ActionSpace(groups=(Group(name="joints", size=3, kind="joints"),)),
    control_hz=5,
)
MY_CONFIG = RLDSConfig(proprio=("observation/joints", "observation/packed"), instruction=("told",))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYVLA_CACHE", str(tmp_path / "cache"))


def golden(folder: Path, episode: int, key: str) -> np.ndarray:
    return np.load(folder / "golden.npz")[f"train/{episode}/{key}"]


def test_bridge_is_what_tensorflow_reads():
    data = open_dataset(BRIDGE)
    assert data.embodiment.name == "widowx_bridge"
    assert data.provenance == {"format": "rlds", "name": "bridge_orig", "version": "1.0.0", "split": "train"}
    assert len(data) == 4
    for i in range(4):
        episode = data[i]
        told = golden(BRIDGE, i, "language_instruction")[0]
        assert episode.instructions == ((told,) if told else ())
        assert data.task(i) == told
        assert data.lengths[i] == len(episode) == len(golden(BRIDGE, i, "action")) - 2  # the first and the last go
        state = golden(BRIDGE, i, "observation/state")
        np.testing.assert_allclose(episode.actions[:, :6], state[2:, :6] - state[1:-1, :6], atol=1e-6)
        assert np.array_equal(episode.actions[:, 6], golden(BRIDGE, i, "action")[1:-1, 6])
        frames = np.asarray(episode.images["primary"])
        error = np.abs(frames.astype(int) - golden(BRIDGE, i, "observation/image_0")[1:-1])
        assert error.mean() < 1.5  # TensorFlow decodes JPEG by a faster and coarser transform
        assert error.max() <= 8


def test_rt1_is_what_tensorflow_reads():
    data = open_dataset(FRACTAL)
    for i in range(3):
        episode = data[i]
        assert episode.instruction == golden(FRACTAL, i, "observation/natural_language_instruction")[0]
        assert np.array_equal(episode.actions[:, :3], golden(FRACTAL, i, "action/world_vector"))
        assert np.array_equal(episode.actions[:, 3:6], golden(FRACTAL, i, "action/rotation_delta"))
        pose = golden(FRACTAL, i, "observation/base_pose_tool_reached")
        assert np.array_equal(episode.proprio[:, :7], pose)
        assert episode.images["primary"].shape == (5 + i, 32, 40, 3)


def test_any_data_set_whose_numbers_are_declared():
    data = RLDSDataset(MY_CONFIG, MINE, MY_ARM)
    for i in range(2):
        episode = data[i]
        assert episode.instructions == (f"stack {i}",)
        assert np.array_equal(episode.actions, golden(MINE, i, "action"))
        joints, packed = (golden(MINE, i, f"observation/{k}") for k in ("joints", "packed"))
        assert np.array_equal(episode.proprio[:, :3], joints.astype(np.float32))
        assert np.array_equal(episode.proprio[:, 3:], packed.reshape(-1, 4))
        frames = golden(MINE, i, "observation/front")
        assert np.array_equal(np.asarray(episode.images["front"]), frames)  # PNG
        assert np.array_equal(episode.images["front"][[3, 0, 3]], frames[[3, 0, 3]])


def test_only_the_frames_that_are_asked_for_are_decoded(monkeypatch):
    from anyvla.data.formats import rlds_frames

    decoded = []
    honest = rlds_frames.EncodedFrames._decode
    monkeypatch.setattr(
        rlds_frames.EncodedFrames, "_decode", lambda self, data, step: decoded.append(step) or honest(self, data, step)
    )
    episode = open_dataset(BRIDGE)[1]
    assert episode.actions.any()
    assert decoded == []
    episode.images["primary"][[4, 2]]
    assert sorted(decoded) == [2, 4]


def test_tensorflow_is_not_imported():
    code = "import sys; import anyvla.data.formats.rlds; assert not {'tensorflow', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_index_is_kept_and_made_anew_when_it_is_damaged(tmp_path, monkeypatch, caplog):
    first = open_dataset(BRIDGE)
    [path] = (tmp_path / "cache/rlds").glob("*.npz")
    monkeypatch.setattr("anyvla.data.formats.rlds_index._scan", None)
    assert open_dataset(BRIDGE).lengths.tolist() == first.lengths.tolist()
    monkeypatch.undo()
    monkeypatch.setenv("ANYVLA_CACHE", str(tmp_path / "cache"))
    path.write_bytes(b"nothing")
    assert open_dataset(BRIDGE).lengths.tolist() == first.lengths.tolist()
    assert "is damaged" in caplog.text


def test_it_goes_to_other_processes():
    data = pickle.loads(pickle.dumps(open_dataset(BRIDGE)))
    assert np.array_equal(data[2].actions, open_dataset(BRIDGE)[2].actions)
    assert data.fingerprint == open_dataset(BRIDGE).fingerprint


def test_recognised_with_and_without_its_version():
    assert recognise(BRIDGE) == recognise(BRIDGE / "1.0.0") == "rlds"
    assert len(open_dataset(BRIDGE / "1.0.0")) == 4


def test_cameras_are_chosen_by_the_embodiment():
    one = Embodiment(**{**vars(open_dataset(BRIDGE).embodiment), "cameras": ("secondary",)})
    assert list(open_dataset(BRIDGE, "rlds", one)[0].images) == ["secondary"]


def test_a_preset_opens_what_lies_below_its_root(tmp_path):
    with pytest.raises(ValueError, match=r"1 of 1 data sets of the mixture 'rt1' are missing below"):
        open_mixture(DataConfig(preset="rt1", root=tmp_path), tmp_path)
    mixture = open_mixture(
        DataConfig(preset="oxe_magic_soup", root=FIXTURES, missing="skip", views=("primary",)), tmp_path
    )
    assert {d.root.parent.name: len(d) for d in mixture.datasets} == {"fractal20220817_data": 3, "bridge_orig": 3}
    assert mixture.canonical.embodiment.cameras == ("primary",)
    assert len(mixture.canonical.names) == 2


def copied(tmp_path: Path) -> Path:
    folder = tmp_path / "bridge_orig/1.0.0"
    shutil.copytree(BRIDGE / "1.0.0", folder)
    return folder


def last(folder: Path) -> Path:
    return sorted(folder.glob("*.tfrecord*"))[-1]


def test_a_truncated_file_is_named_or_left_out_and_counted(tmp_path):
    folder = copied(tmp_path)
    last(folder).write_bytes(last(folder).read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"00001-of-00002: it ends within record 1, 500 bytes too early; .*skip"):
        open_dataset(folder)
    data = RLDSDataset(RLDSConfig(damaged="skip"), folder)
    assert len(data) == 3
    [(where, what)] = data.provenance["damaged"].items()
    assert where == str(last(folder))
    assert "too early" in what


def test_damaged_headers_checksums_and_lost_records(tmp_path):
    pytest.importorskip("google_crc32c")
    folder = copied(tmp_path)
    content = bytearray(last(folder).read_bytes())
    content[5000] ^= 1
    last(folder).write_bytes(content)
    assert len(open_dataset(folder)) == 4  # not seen unless asked for
    with pytest.raises(ValueError, match="record 0: its checksum is wrong: the data is damaged"):
        RLDSDataset(RLDSConfig(checksums=True), folder)
    content[0] ^= 1
    last(folder).write_bytes(content)
    with pytest.raises(ValueError, match="record 0, at byte 0, has a damaged header"):
        open_dataset(folder)
    data, whole = RLDSDataset(RLDSConfig(damaged="skip"), folder), open_dataset(BRIDGE)
    assert len(data) == 3  # the next record of the file is found
    assert np.array_equal(data[2].actions, whole[3].actions)
    assert list(data.provenance["damaged"]) == [str(last(folder))]
    last(folder).unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 2 files of split 'train', the first .*-00001-of-00002"):
        open_dataset(folder)


def test_an_instruction_that_is_no_utf8_names_its_record(tmp_path):
    folder = copied(tmp_path)
    path = last(folder)
    text = "fold the clöth".encode()
    path.write_bytes(path.read_bytes().replace(text, text[:-3] + b"\xff" + text[-2:]))
    with pytest.raises(
        ValueError, match=r"00001-of-00002, record 1: its instruction \(language_instruction\) is no UTF"
    ):
        open_dataset(folder)
    assert len(RLDSDataset(RLDSConfig(damaged="skip"), folder)) == 3


def test_a_damaged_image_names_its_record_and_step(tmp_path):
    folder = copied(tmp_path)
    path = sorted(folder.glob("*.tfrecord*"))[0]
    content = path.read_bytes()
    offsets, sizes, _ = tfrecord.records(path)
    record = tf_example.parse(tfrecord.read(path, int(offsets[0]), int(sizes[0])))
    at = content.index(record["steps/observation/image_0"].texts()[2])  # the first step is skipped
    path.write_bytes(content[: at + 3] + b"\x00" * 400 + content[at + 403 :])
    data = open_dataset(folder)
    frames = data[0].images["primary"]
    with pytest.raises(ValueError, match=r"record 0, observation/image_0, the image of step 1: the image is damaged"):
        frames[1]
    assert frames[[0, 2]].shape == (2, 32, 32, 3)  # the others can


def test_what_is_asked_for_and_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="does not say what its numbers mean"):
        open_dataset(MINE)
    with pytest.raises(ValueError, match=r"has no steps/observation/joint: did you mean 'observation/joints'"):
        RLDSDataset(RLDSConfig(proprio=("observation/joint",)), MINE, MY_ARM)
    with pytest.raises(ValueError, match="observation/touch is a list in the list of steps"):
        RLDSDataset(RLDSConfig(proprio=("observation/touch",)), MINE, MY_ARM)
    with pytest.raises(ValueError, match="observation/joints make 3 dims, the embodiment declares 7"):
        RLDSDataset(RLDSConfig(proprio=("observation/joints",)), MINE, MY_ARM)[0]
    with pytest.raises(ValueError, match="has no split 'test': it has train"):
        RLDSDataset(RLDSConfig(split="test"), BRIDGE)
    with pytest.raises(ValueError, match="the table has no entry 'bridge_ori': did you mean 'bridge_orig'"):
        RLDSDataset(RLDSConfig(entry="bridge_ori"), BRIDGE)
    with pytest.raises(IndexError, match="has 4 episodes; no episode 4"):
        open_dataset(BRIDGE)[4]
    folder = tmp_path / "flat"
    folder.mkdir()
    (folder / "dataset_info.json").write_text("{}")
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": {"image": {}}}}))
    with pytest.raises(ValueError, match="no RLDS data set: its records have no steps"):
        open_dataset(folder)
    (folder / "features.json").write_text("{")
    with pytest.raises(ValueError, match=r"features\.json, line 1: not valid JSON"):
        open_dataset(folder)


def tensors(*steps: np.ndarray) -> tf_example.Feature:
    """A key whose steps are tensors written as bytes."""
    texts = [step.tobytes() for step in steps]
    return tf_example.Feature(1, memoryview(b"".join(b"\x0a" + bytes([len(text)]) + text for text in texts)))


def test_steps_whose_lengths_or_types_differ_are_refused():
    leaf = Leaf("tensor", (3,), "float32", "bytes", ragged=False)
    numbers = [np.arange(n, dtype=np.float32) for n in (3, 2, 4)]
    with pytest.raises(ValueError, match="steps/action, step 1: expected 3 numbers, found 2"):
        numbers_of({"steps/action": tensors(*numbers)}, "steps/action", leaf, 3)  # 9 numbers in all
    for wrong in (dataclasses.replace(leaf, dtype="complex64"), dataclasses.replace(leaf, kind="text")):
        with pytest.raises(ValueError, match="steps/action: expected real numbers, found"):
            numbers_of({"steps/action": tensors(numbers[0])}, "steps/action", wrong, 1)


def test_records_without_steps_are_left_out(monkeypatch, caplog):
    count, counted = rlds_index._count_steps, [1, 1, 0, 1]
    monkeypatch.setattr(rlds_index, "_count_steps", lambda record, steps: count(record, steps) * counted.pop())
    assert len(open_dataset(BRIDGE)) == 3
    assert "episodes without steps are left out: bridge_orig-train.tfrecord-00000-of-00002, record 1" in caplog.text
