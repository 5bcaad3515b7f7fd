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

from anyvla.data.formats.rlds import index as rlds_index
from anyvla.data.formats.rlds import oxe, tf_example, tfrecord
from anyvla.data.formats.rlds.dataset import RLDSDataset
from anyvla.data.formats.rlds.features import FeatureSpec
from anyvla.data.formats.rlds.frames import read_numbers
from anyvla.data.formats.rlds.index import RLDSConfig
from anyvla.data.open import open_dataset, recognize
from anyvla.data.training.mixture import DataConfig, open_mixture
from anyvla.data.undeclared import UndeclaredError
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.space import ActionSpace, Group
from tests.data.formats.rlds.tf_records import png, write_rlds

FIXTURES = Path(__file__).parent / "fixtures"
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


def test_bridge_equals_the_values_that_tensorflow_reads():
    data = open_dataset(BRIDGE)
    assert data.embodiment.name == "widowx_bridge"
    assert data.provenance == {"format": "rlds", "name": "bridge_orig", "version": "1.0.0", "split": "train"}
    assert len(data) == 4
    for i in range(4):
        episode = data[i]
        expected = golden(BRIDGE, i, "language_instruction")[0]
        assert episode.instructions == ((expected,) if expected else ())
        assert data.task(i) == expected
        # without the first and the last step
        assert data.lengths[i] == len(episode) == len(golden(BRIDGE, i, "action")) - 2
        state = golden(BRIDGE, i, "observation/state")
        np.testing.assert_allclose(episode.actions[:, :6], state[2:, :6] - state[1:-1, :6], atol=1e-6)
        assert np.array_equal(episode.actions[:, 6], golden(BRIDGE, i, "action")[1:-1, 6])
        frames = np.asarray(episode.images["primary"])
        error = np.abs(frames.astype(int) - golden(BRIDGE, i, "observation/image_0")[1:-1])
        assert error.mean() < 1.5  # TensorFlow decodes JPEG by a faster and coarser transform
        assert error.max() <= 8


def test_rt1_equals_the_values_that_tensorflow_reads():
    data = open_dataset(FRACTAL)
    for i in range(3):
        episode = data[i]
        assert episode.instruction == golden(FRACTAL, i, "observation/natural_language_instruction")[0]
        assert np.array_equal(episode.actions[:, :3], golden(FRACTAL, i, "action/world_vector"))
        assert np.array_equal(episode.actions[:, 3:6], golden(FRACTAL, i, "action/rotation_delta"))
        pose = golden(FRACTAL, i, "observation/base_pose_tool_reached")
        assert np.array_equal(episode.proprio[:, :7], pose)
        assert episode.images["primary"].shape == (5 + i, 32, 40, 3)


def test_a_data_set_with_a_declared_embodiment():
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


def test_class_labels_are_whole_numbers(tmp_path):
    steps = {"action": np.zeros((4, 3), np.float32), "front": [png((1, 2, 3))] * 4, "phase": np.array([0, 1, 1, 2])}
    root = write_rlds(tmp_path / "1.0.0", "my_arm", {"train": [(steps, {})]})
    features = json.loads((root / "features.json").read_text())
    tree = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    tree["phase"] = {"classLabel": {"numClasses": "3"}}
    (root / "features.json").write_text(json.dumps(features))
    robot = dataclasses.replace(MY_ARM, proprio=ActionSpace(groups=(Group(name="phase", size=1),)))
    assert RLDSDataset(RLDSConfig(proprio=("phase",)), root, robot)[0].proprio.tolist() == [[0], [1], [1], [2]]


def jaco(seed: int) -> dict[str, object]:
    """Return an episode of jaco_play."""
    rng = np.random.default_rng(seed)
    vectors = {"action/world_vector": 3, "action/gripper_closedness_action": 1}
    vectors |= {"observation/end_effector_cartesian_pos": 7, "observation/joint_pos": 8}
    numbers = {key: rng.normal(size=(4 + seed, width)).astype(np.float32) for key, width in vectors.items()}
    texts = {"observation/natural_language_instruction": [f"pick up {seed}".encode()] * (4 + seed)}
    return (
        numbers
        | texts
        | {key: [png((9, 8, 7))] * (4 + seed) for key in ("observation/image", "observation/image_wrist")}
    )


def test_the_requested_split_and_entry_are_used(tmp_path):
    splits = {"train": [(jaco(0), {}), (jaco(1), {})], "test": [(jaco(2), {})]}
    root = write_rlds(tmp_path / "0.1.0", "my_copy", splits)
    train = RLDSDataset(RLDSConfig(entry="jaco_play"), root)
    assert train.embodiment.name == "jaco_2"
    assert [train.task(i) for i in range(2)] == ["pick up 0", "pick up 1"]
    test = RLDSDataset(RLDSConfig(entry="jaco_play", split="test"), root)
    assert test.lengths.tolist() == [6]
    assert np.array_equal(test[0].actions[:, :3], jaco(2)["action/world_vector"])
    assert np.array_equal(test[0].proprio[:, 3:], jaco(2)["observation/joint_pos"])
    with pytest.raises(ValueError, match="does not declare the meaning of its numbers"):
        RLDSDataset(RLDSConfig(), root)


def test_failures_are_left_out_if_the_entry_names_their_flag(tmp_path, monkeypatch):
    flags = [{"success": np.array([flag])} for flag in (0, 1, 0)]
    root = write_rlds(tmp_path / "0.1.0", "jaco_play", {"train": [(jaco(i), flag) for i, flag in enumerate(flags)]})
    assert open_dataset(root).lengths.tolist() == [4, 5, 6]  # jaco_play names no flag
    entry = dataclasses.replace(oxe.load_entries()["jaco_play"], success="success")
    monkeypatch.setattr(oxe, "find_entry", lambda name: entry)
    data = open_dataset(root)  # the cached index of the other entry is not used
    assert data.lengths.tolist() == [5]
    assert data.provenance["failures"] == 2
    bare = write_rlds(tmp_path / "0.2.0", "jaco_play", {"train": [(jaco(0), {}), (jaco(1), {})]})
    assert open_dataset(bare).lengths.tolist() == [4, 5]  # without the flag, no episode counts as failed


def test_only_the_cameras_that_an_entry_names_are_swapped(monkeypatch):
    entry = dataclasses.replace(oxe.load_entries()["bridge_orig"], swapped=("secondary",))
    plain = open_dataset(BRIDGE)[1]
    monkeypatch.setattr(oxe, "find_entry", lambda name: entry)
    swapped = open_dataset(BRIDGE)[1]
    assert np.array_equal(swapped.images["primary"], plain.images["primary"])
    assert np.array_equal(swapped.images["secondary"][[2, 0]], plain.images["secondary"][[2, 0]][..., ::-1])
    assert not np.array_equal(swapped.images["secondary"], plain.images["secondary"])


def test_the_instruction_comes_from_the_kept_steps(tmp_path):
    """Bridge skips the first step and drops the last one."""
    state, image = np.zeros((5, 7), np.float32), [png((1, 2, 3))] * 5
    steps = {"observation/state": state, "action": state, "observation/image_0": image, "observation/image_1": image}
    steps["language_instruction"] = [b"", b"fold it", b"fold it", b"fold it", b"end"]
    data = open_dataset(write_rlds(tmp_path / "1.0.0", "bridge_orig", {"train": [(steps, {})]}))
    assert (data.task(0), data[0].instructions) == ("fold it", ("fold it",))


def test_other_keys_of_the_instruction_give_other_tasks(tmp_path):
    texts = {"first": [b"open it"] * 4, "second": [b"close it"] * 4}
    steps = {"action": np.zeros((4, 3), np.float32), "front": [png((1, 2, 3))] * 4} | texts
    root = write_rlds(tmp_path / "1.0.0", "my_arm", {"train": [(steps, {})]})
    robot = dataclasses.replace(MY_ARM, proprio=ActionSpace(groups=()))
    for keys, texts in (
        (("first",), ("open it",)),
        (("second",), ("close it",)),
        (("second", "first"), ("close it", "open it")),
    ):
        data = RLDSDataset(RLDSConfig(instruction=keys), root, robot)
        assert (data.task(0), data[0].instructions) == (texts[0], texts)
    assert data[0].timestamps == pytest.approx(np.arange(4) / 5)


def test_depth_is_no_camera(tmp_path):
    steps = {"action": np.zeros((4, 3), np.float32), "front": [png((1, 2, 3))] * 4, "depth": [png((1, 2, 3))] * 4}
    root = write_rlds(tmp_path / "1.0.0", "my_arm", {"train": [(steps, {})]})
    features = json.loads((root / "features.json").read_text())
    tree = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    tree["depth"]["image"]["dtype"] = "uint16"
    (root / "features.json").write_text(json.dumps(features))
    with pytest.raises(UndeclaredError) as undeclared:
        open_dataset(root)
    assert undeclared.value.plain.cameras == ("front",)


def test_only_the_requested_frames_are_decoded(monkeypatch):
    from anyvla.data.formats.rlds import frames as rlds_frames

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
    code = "import sys; import anyvla.data.formats.rlds.dataset; assert not {'tensorflow', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_index_is_cached_and_made_again_when_damaged(tmp_path, monkeypatch, caplog):
    first = open_dataset(BRIDGE)
    [path] = (tmp_path / "cache/rlds").glob("*.npz")
    monkeypatch.setattr("anyvla.data.formats.rlds.index._scan", None)
    assert open_dataset(BRIDGE).lengths.tolist() == first.lengths.tolist()
    monkeypatch.undo()
    monkeypatch.setenv("ANYVLA_CACHE", str(tmp_path / "cache"))
    path.write_bytes(b"nothing")
    assert open_dataset(BRIDGE).lengths.tolist() == first.lengths.tolist()
    assert "is damaged" in caplog.text


def test_a_data_set_can_be_pickled():
    data = pickle.loads(pickle.dumps(open_dataset(BRIDGE)))
    assert np.array_equal(data[2].actions, open_dataset(BRIDGE)[2].actions)
    assert data.fingerprint == open_dataset(BRIDGE).fingerprint


def test_recognized_with_and_without_its_version():
    assert recognize(BRIDGE) == recognize(BRIDGE / "1.0.0") == "rlds"
    assert len(open_dataset(BRIDGE / "1.0.0")) == 4


def test_cameras_are_chosen_by_the_embodiment():
    one = Embodiment(**{**vars(open_dataset(BRIDGE).embodiment), "cameras": ("secondary",)})
    assert list(open_dataset(BRIDGE, "rlds", one)[0].images) == ["secondary"]


def test_a_preset_opens_the_data_sets_below_its_root(tmp_path):
    with pytest.raises(ValueError, match=r"1 of 1 data sets of the mixture 'rt1' are missing below"):
        open_mixture(DataConfig(preset="rt1", root=tmp_path), tmp_path)
    mixture = open_mixture(
        DataConfig(preset="oxe_magic_soup", root=FIXTURES, missing="skip", views=("primary",)), tmp_path
    )
    assert {d.root.parent.name: len(d) for d in mixture.datasets} == {"fractal20220817_data": 3, "bridge_orig": 3}
    assert mixture.layout.embodiment.cameras == ("primary",)
    assert len(mixture.layout.names) == 2


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
    assert len(open_dataset(folder)) == 4  # noticed only with checksums
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
        ValueError, match=r"00001-of-00002, record 1: its instruction \(language_instruction\) is not UTF"
    ):
        open_dataset(folder)
    assert len(RLDSDataset(RLDSConfig(damaged="skip"), folder)) == 3


def test_a_damaged_image_names_its_record_and_step(tmp_path):
    folder = copied(tmp_path)
    path = sorted(folder.glob("*.tfrecord*"))[0]
    content = path.read_bytes()
    offsets, sizes, _ = tfrecord.find_records(path)
    record = tf_example.parse_example(tfrecord.read_record(path, int(offsets[0]), int(sizes[0])))
    at = content.index(record["steps/observation/image_0"].byte_strings()[2])  # the first step is skipped
    path.write_bytes(content[: at + 3] + b"\x00" * 400 + content[at + 403 :])
    data = open_dataset(folder)
    frames = data[0].images["primary"]
    with pytest.raises(ValueError, match=r"record 0, observation/image_0, the image of step 1: the image is damaged"):
        frames[1]
    assert frames[[0, 2]].shape == (2, 32, 32, 3)  # the other frames can be decoded


def test_missing_keys_splits_and_episodes_are_named(tmp_path):
    with pytest.raises(ValueError, match="does not declare the meaning of its numbers"):
        open_dataset(MINE)
    with pytest.raises(ValueError, match=r"has no steps/observation/joint: did you mean 'observation/joints'"):
        RLDSDataset(RLDSConfig(proprio=("observation/joint",)), MINE, MY_ARM)
    with pytest.raises(ValueError, match="observation/touch is a list within the list of steps"):
        RLDSDataset(RLDSConfig(proprio=("observation/touch",)), MINE, MY_ARM)
    with pytest.raises(ValueError, match="observation/joints have 3 dims, the embodiment declares 7"):
        RLDSDataset(RLDSConfig(proprio=("observation/joints",)), MINE, MY_ARM)[0]
    with pytest.raises(ValueError, match="has no split 'test': it has train"):
        RLDSDataset(RLDSConfig(split="test"), BRIDGE)
    with pytest.raises(ValueError, match="the table has no entry 'bridge_ori': did you mean 'bridge_orig'"):
        RLDSDataset(RLDSConfig(entry="bridge_ori"), BRIDGE)
    for index in (4, -5):
        with pytest.raises(IndexError, match=f"has 4 episodes; no episode {index}"):
            open_dataset(BRIDGE)[index]
    assert open_dataset(BRIDGE)[-1].provenance == open_dataset(BRIDGE)[3].provenance
    folder = tmp_path / "flat"
    folder.mkdir()
    (folder / "dataset_info.json").write_text("{}")
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": {"image": {}}}}))
    with pytest.raises(ValueError, match="no RLDS data set: its records have no steps"):
        open_dataset(folder)
    (folder / "features.json").write_text("{")
    with pytest.raises(ValueError, match=r"features\.json, line 1: not valid JSON"):
        open_dataset(folder)


def tensors(*steps: np.ndarray) -> tf_example.ExampleFeature:
    """Return a key whose steps are tensors written as bytes."""
    texts = [step.tobytes() for step in steps]
    return tf_example.ExampleFeature(1, memoryview(b"".join(b"\x0a" + bytes([len(text)]) + text for text in texts)))


def test_steps_whose_lengths_or_types_differ_are_refused():
    leaf = FeatureSpec("tensor", (3,), "float32", "bytes", ragged=False)
    numbers = [np.arange(n, dtype=np.float32) for n in (3, 2, 4)]
    with pytest.raises(ValueError, match="steps/action, step 1: expected 3 numbers, found 2"):
        read_numbers({"steps/action": tensors(*numbers)}, "steps/action", leaf, 3)  # 9 numbers in all
    for wrong in (dataclasses.replace(leaf, dtype="complex64"), dataclasses.replace(leaf, kind="text")):
        with pytest.raises(ValueError, match="steps/action: expected real numbers, found"):
            read_numbers({"steps/action": tensors(numbers[0])}, "steps/action", wrong, 1)


def test_records_without_steps_are_left_out(monkeypatch, caplog):
    count, counted = rlds_index._count_steps, [1, 1, 0, 1]
    monkeypatch.setattr(rlds_index, "_count_steps", lambda record, steps: count(record, steps) * counted.pop())
    assert len(open_dataset(BRIDGE)) == 3
    assert "episodes without steps are left out: bridge_orig-train.tfrecord-00000-of-00002, record 1" in caplog.text
