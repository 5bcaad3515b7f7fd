"""Tests of files as robomimic's dataset_states_to_obs.py and LIBERO's create_dataset.py write them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from anyvla.config import build
from anyvla.data.formats.robomimic.dataset import RobomimicConfig, RobomimicDataset
from anyvla.data.open import open_dataset, recognize
from anyvla.data.undeclared import UndeclaredError
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.space import ActionSpace, Group
from tests.data.demonstrations import scene

CONTROLLER = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "control_delta": True,
}


def write_robomimic(
    path: Path, demos: int = 12, controller: dict[str, Any] | None = None, dims: int = 7, **environment: Any
) -> Path:
    rng = np.random.default_rng(1)
    kwargs = {"robots": ["Panda"], "control_freq": 20, "controller_configs": controller or CONTROLLER, **environment}
    env = {"env_name": "Lift", "env_version": "1.4.1", "type": 1, "env_kwargs": kwargs}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        total = 0
        for i in range(demos):
            length = 5 + i
            demo = data.create_group(f"demo_{i}")
            demo.create_dataset("actions", data=rng.uniform(-1, 1, (length, dims)))
            demo.create_dataset("states", data=rng.normal(size=(length, 32)))
            demo.create_dataset("rewards", data=np.zeros(length))
            demo.create_dataset("dones", data=np.zeros(length, np.int64))
            for name in ("obs", "next_obs"):
                obs = demo.create_group(name)
                for camera, seed in (("agentview", i), ("robot0_eye_in_hand", i + 50)):
                    images = scene(length, 16, seed)
                    obs.create_dataset(f"{camera}_image", data=images, compression="gzip", chunks=(1, 16, 16, 3))
                obs.create_dataset("robot0_eef_pos", data=rng.normal(size=(length, 3)))
                obs.create_dataset("robot0_eef_quat", data=rng.normal(size=(length, 4)))
                obs.create_dataset("robot0_gripper_qpos", data=rng.normal(size=(length, 2)))
                obs.create_dataset("object", data=rng.normal(size=(length, 10)))
            demo.attrs["model_file"] = "<mujoco/>"
            demo.attrs["num_samples"] = length
            total += length
        data.attrs["total"] = total
        data.attrs["env_args"] = json.dumps(env, indent=4)
        file["mask/train"] = np.array([f"demo_{i}" for i in range(demos) if i != 3], dtype="S")
        file["mask/valid"] = np.array(["demo_3"], dtype="S")
    return path


def write_libero(folder: Path, task: str, words: str | None, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    path = folder / f"{task}_demo.hdf5"
    folder.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if words is not None:
            data.attrs["env_name"] = "Libero_Tabletop_Manipulation"
            data.attrs["problem_info"] = json.dumps({"problem_name": "libero", "language_instruction": words})
            data.attrs["macros_image_convention"] = "opengl"
            data.attrs["bddl_file_name"] = f"libero/bddl_files/{task}.bddl"
            kwargs = {"robots": ["Panda"], "control_freq": 20, "controller_configs": CONTROLLER}
            data.attrs["env_args"] = json.dumps({"type": 1, "env_name": "libero", "env_kwargs": kwargs})
        for i in range(2):
            demo, length = data.create_group(f"demo_{i}"), 8
            actions = rng.uniform(-1, 1, (length, 7))
            actions[:, 6] = -1
            actions[[0, 3, 4], :6] = 0  # no motion at 0 and 3; 4 closes the gripper
            actions[4:, 6] = 1
            obs = demo.create_group("obs")
            obs["agentview_rgb"] = scene(length, 16, seed + i)
            obs["eye_in_hand_rgb"] = scene(length, 16, seed + i + 9)
            states = rng.normal(size=(length, 6))
            obs["ee_states"], obs["ee_pos"], obs["ee_ori"] = states, states[:, :3], states[:, 3:]
            obs["gripper_states"], obs["joint_states"] = rng.normal(size=(length, 2)), rng.normal(size=(length, 7))
            demo["actions"], demo["states"] = actions, rng.normal(size=(length, 20))
            demo["robot_states"] = rng.normal(size=(length, 9))
            demo["rewards"], demo["dones"] = np.zeros(length, np.uint8), np.zeros(length, np.uint8)
            demo.attrs["num_samples"] = length
    return path


def opened(path: Path, embodiment: Embodiment | None = None, **options: Any) -> RobomimicDataset:
    return RobomimicDataset(build(RobomimicConfig, options), path, embodiment)


def test_a_robomimic_file(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "low_dim.hdf5")
    assert recognize(path) == "robomimic" == recognize(tmp_path)
    data = opened(path, instruction="lift the cube")
    assert data.lengths.tolist() == [5 + i for i in range(12)]  # demo_10 comes after demo_9
    episode = data[11]
    with h5py.File(path) as file:
        demo = file["data/demo_11"]
        assert np.array_equal(episode.actions, demo["actions"][()].astype(np.float32))
        parts = [demo[f"obs/robot0_{k}"][()] for k in ("eef_pos", "eef_quat", "gripper_qpos")]
        assert np.array_equal(episode.proprio, np.concatenate(parts, 1).astype(np.float32))
        frames = demo["obs/agentview_image"][()]
    assert np.array_equal(episode.images["agentview"], frames)
    for steps in ([15, 0, 3, 3], [4, 5, 6], [7]):
        assert np.array_equal(episode.images["agentview"][steps], frames[steps])
    assert list(episode.images) == ["agentview", "robot0_eye_in_hand"]
    assert episode.instruction == "lift the cube" == data.task(11)
    robot = data.embodiment
    assert (robot.name, robot.control_hz) == ("robosuite_panda", 20)
    assert [g.unit for g in robot.action.groups] == ["0.05 m", "0.5 rad", ""]
    assert robot.action.groups[2].open == -1


MOVE = Group(name="position", size=3, kind="position", mode="delta", low=-1, high=1, unit="0.05 m", frame="base")
TURN = Group(
    name="rotation", size=3, kind="rotation", mode="delta", rotation="axis_angle", low=-1, high=1, unit="0.5 rad",
    frame="base",
)  # fmt: skip
GRIPPER = Group(name="gripper", size=1, kind="gripper", low=-1, high=1, open=-1)
POSITION = Group(name="position", size=3, kind="position", unit="m", frame="base")
FINGERS = Group(name="fingers", size=2, kind="joints", unit="m")


def test_units_and_frames_are_as_in_robosuite(tmp_path: Path) -> None:
    """OSC_POSE takes axis-angles in the base's frame; quaternions are x, y, z, w; grippers close at 1."""
    robot = opened(write_robomimic(tmp_path / "a.hdf5", 1)).embodiment
    quaternion = Group(name="rotation", size=4, kind="rotation", rotation="quaternion_xyzw", frame="base")
    assert robot.action.groups == (MOVE, TURN, GRIPPER)
    assert robot.proprio.groups == (POSITION, quaternion, FINGERS)
    libero = opened(write_libero(tmp_path / "libero", "open_it", "open it")).embodiment
    angle = Group(name="rotation", size=3, kind="rotation", rotation="axis_angle", unit="rad", frame="base")
    assert libero.action.groups == (MOVE, TURN, GRIPPER)
    assert libero.proprio.groups == (POSITION, angle, FINGERS)
    assert (libero.control_hz, libero.cameras) == (20, ("agentview", "eye_in_hand"))


def test_limits_and_rate_come_from_the_file(tmp_path: Path) -> None:
    limits = {"output_max": [0.1, 0.1, 0.1, 0.25, 0.25, 0.25]}
    path = write_robomimic(tmp_path / "a.hdf5", 1, CONTROLLER | limits, control_freq=12.5)
    robot = opened(path).embodiment
    assert [g.unit for g in robot.action.groups] == ["0.1 m", "0.25 rad", ""]
    assert robot.control_hz == 12.5
    assert opened(path)[0].timestamps == pytest.approx(np.arange(5) / 12.5)
    position = write_robomimic(tmp_path / "b.hdf5", 1, CONTROLLER | {"type": "OSC_POSITION"}, dims=4)
    assert [g.name for g in opened(position).embodiment.action.groups] == ["position", "gripper"]
    both = {"type": "BASIC", "body_parts": {"right": CONTROLLER | limits}}  # robosuite 1.5
    assert opened(write_robomimic(tmp_path / "c.hdf5", 1, both)).embodiment.action == robot.action


def test_a_file_without_a_rate_has_the_rate_of_robosuite(tmp_path: Path) -> None:
    path = write_libero(tmp_path, "open_it", "open it")
    with h5py.File(path, "a") as file:
        del file["data"].attrs["env_args"]
    assert opened(path).embodiment.control_hz == 20


@pytest.mark.parametrize(
    "controller",
    [
        {"control_delta": False},
        {"input_type": "absolute"},
        {"input_ref_frame": "eef"},
        {"output_max": [0.05, 0.05, 0.1, 0.5, 0.5, 0.5]},
        {"type": "IK_POSE"},
    ],
)
def test_actions_of_another_meaning_must_be_declared(tmp_path: Path, controller: dict[str, Any]) -> None:
    with pytest.raises(UndeclaredError):
        opened(write_robomimic(tmp_path / "a.hdf5", 1, CONTROLLER | controller))


def test_filter_keys(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5")
    assert opened(path, filter="valid").lengths.tolist() == [8]
    assert opened(path, filter="train").lengths.tolist() == [5 + i for i in range(12) if i != 3]
    with pytest.raises(ValueError, match=r"a\.hdf5 has no 'mask/20_percent'; mask holds: train, valid"):
        opened(path, filter="20_percent")


def test_a_folder_of_libero(tmp_path: Path) -> None:
    suite = tmp_path / "libero_goal"
    path = write_libero(suite, "open_the_drawer", "open the drawer")
    write_libero(suite, "KITCHEN_SCENE10_close_the_box", None, 5)  # as OpenVLA's script writes it: without attributes
    data = open_dataset(suite)
    assert [data.task(i) for i in range(4)] == ["close the box"] * 2 + ["open the drawer"] * 2
    episode = data[2]
    with h5py.File(path) as file:
        demo = file["data/demo_0"]
        assert np.array_equal(episode.images["agentview"], demo["obs/agentview_rgb"][()][:, ::-1, ::-1])
        states = np.concatenate([demo["obs/ee_states"][()], demo["obs/gripper_states"][()]], 1)
        assert np.array_equal(episode.proprio, states.astype(np.float32))
    assert data.embodiment.name == "libero_panda"
    assert episode.instructions == ("open the drawer",)
    assert data.provenance["images"] == "turn"


@pytest.mark.parametrize(
    ("sentence", "text"), [('"open it"', "open it"), (["open", "it"], "open it"), (None, "pick up the red cup")]
)
def test_the_instruction_of_a_file(tmp_path: Path, sentence: Any, text: str) -> None:
    path = write_libero(tmp_path, "LIVING_ROOM_SCENE2_pick_up_the_red_cup", sentence)
    assert opened(path)[0].instructions == (text,)
    assert opened(path, instruction="close it")[0].instructions == ("close it",)


def test_other_actions_and_proprio_can_be_declared(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", 2)
    absolute = np.random.default_rng(5).normal(size=(6, 7))
    with h5py.File(path, "a") as file:
        for name in ("demo_0", "demo_1"):
            file[f"data/{name}/actions_abs"] = absolute[: len(file[f"data/{name}/actions"])]
        position, fingers = (file[f"data/demo_1/obs/robot0_{key}"][()] for key in ("eef_pos", "gripper_qpos"))
    arm = opened(path).embodiment
    proprio = ActionSpace(groups=(Group(name="fingers", size=2), Group(name="position", size=3)))
    robot = Embodiment(name="arm", cameras=(), proprio=proprio, action=arm.action, control_hz=20)
    keys = ["robot0_gripper_qpos", "robot0_eef_pos"]
    episode = opened(path, robot, actions="actions_abs", proprio=keys)[1]
    assert np.array_equal(episode.actions, absolute.astype(np.float32))
    assert np.array_equal(episode.proprio, np.concatenate([fingers, position], 1).astype(np.float32))


def test_images_are_turned_as_declared(tmp_path: Path) -> None:
    path = write_libero(tmp_path, "open_the_drawer", "open the drawer")
    with h5py.File(path) as file:
        raw = file["data/demo_1/obs/eye_in_hand_rgb"][()]
    for name, expected in (("recorded", raw), ("flip", raw[:, ::-1]), ("turn", raw[:, ::-1, ::-1])):
        assert np.array_equal(opened(path, images=name)[1].images["eye_in_hand"][[5, 2]], expected[[5, 2]])
    assert opened(path, images="flip").fingerprint != opened(path).fingerprint


def test_no_ops_are_dropped_from_actions_proprio_and_images(tmp_path: Path) -> None:
    path = write_libero(tmp_path, "open_the_drawer", "open the drawer")
    whole, less = opened(path)[0], opened(path, drop_noops=True)[0]
    kept = [1, 2, 4, 5, 6, 7]  # step 4 moves only the gripper
    assert np.array_equal(less.actions, whole.actions[kept])
    assert np.array_equal(less.proprio, whole.proprio[kept])
    assert np.array_equal(less.images["agentview"], whole.images["agentview"][kept])
    assert len(less.timestamps) == 6


def test_a_no_op_neither_moves_nor_changes_the_last_kept_gripper(tmp_path: Path) -> None:
    actions = np.zeros((8, 7))
    actions[:, 6] = [-1, -1, 1, -1, -1, 1, 1, 1]
    actions[[1, 7], 0] = 1, 0.009  # a motion, and one smaller than 0.01
    path = write_robomimic(tmp_path / "a.hdf5", 4)
    with h5py.File(path, "a") as file:
        replace(file, "data/demo_3/actions", actions)  # of 8 steps
    whole = opened(path)[3]
    # 0: no step is kept yet; 1: moves; 2, 3, 5: change the gripper; 4, 6: equal the step before
    for noop, kept in ((0.01, [1, 2, 3, 5]), (1e-4, [1, 2, 3, 5, 7]), (2.0, [0])):
        less = opened(path, drop_noops=True, noop=noop)[3]
        assert np.array_equal(less.proprio, whole.proprio[kept])
        assert np.array_equal(less.images["agentview"], whole.images["agentview"][kept])
    assert np.array_equal(opened(path, drop_noops=True)[3].proprio, whole.proprio[[1, 2, 3, 5, 7]])


def test_steps_with_nan_are_not_dropped(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", 1)
    with h5py.File(path, "a") as file:
        file["data/demo_0/actions"][2] = np.nan
    assert len(opened(path, drop_noops=True)[0]) == 5  # the data check names the step


@pytest.mark.parametrize("mask", [np.array([b"demo_1", b"\xff"]), 1.0, np.array([1.0])])
def test_a_mask_without_matching_demonstrations_is_refused(tmp_path: Path, mask: Any) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", 2)
    with h5py.File(path, "a") as file:
        replace(file, "mask/train", mask)
    with pytest.raises(ValueError, match=r"a\.hdf5 has no 'data/.+/actions'; data holds: demo_0, demo_1"):
        opened(path, filter="train")[-1]


def test_images_of_other_layouts_name_the_format_that_reads_them(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", 1)
    with h5py.File(path, "a") as file:
        replace(file, "data/demo_0/obs/agentview_image", np.moveaxis(scene(5, 16), -1, 1))
    robot = opened(write_robomimic(tmp_path / "b.hdf5", 1)).embodiment
    with pytest.raises(
        ValueError, match=r"no camera 'agentview'; it has robot0_eye_in_hand.*name: hdf5.*channels: first"
    ):
        open_dataset(path, embodiment=robot)


def test_pickled_and_read_again(tmp_path: Path) -> None:
    data = opened(write_robomimic(tmp_path / "a.hdf5", 2))
    frames = np.asarray(data[1].images["agentview"])
    again = pickle.loads(pickle.dumps(data))
    assert np.array_equal(again[1].images["agentview"], frames)
    assert again.fingerprint == data.fingerprint


def test_unknown_robots_must_be_declared(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", 2, {"type": "JOINT_VELOCITY"}, dims=8)
    with pytest.raises(ValueError, match="does not declare the meaning of its numbers"):
        opened(path)
    robot = Embodiment(
        name="arm",
        cameras=("agentview",),
        proprio=ActionSpace(groups=(Group(name="position", size=3),)),
        action=ActionSpace(groups=(Group(name="joints", size=8),)),
        control_hz=20,
    )
    assert opened(path, robot, proprio=["robot0_eef_pos"])[0].proprio.shape == (5, 3)
    with pytest.raises(ValueError, match=r"'arm' declares 3 dims of proprio; .* has 9 \(obs/robot0_eef_pos: 3, "):
        opened(path, robot)
    with pytest.raises(ValueError, match=r"has no obs/joint; it has object, robot0_eef_pos"):
        opened(path, robot, proprio=["joint"])


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    whole = write_robomimic(tmp_path / "a.hdf5", 2).read_bytes()
    (tmp_path / "b.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"b\.hdf5 cannot be read as HDF5 .*truncated"):
        opened(tmp_path / "b.hdf5")


def test_errors_name_the_demonstration(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", 2)
    with h5py.File(path, "a") as file:
        del file["data/demo_1/obs/agentview_image"]
        file["data/demo_1/obs/agentview_image"] = scene(4, 16)
    with pytest.raises(ValueError, match=r"demo_1: obs/agentview_image has 4 frames, its actions 6 steps"):
        opened(path)[1]
    bare = write_robomimic(tmp_path / "bare.hdf5", 1)
    with h5py.File(bare, "a") as file:
        del file["data/demo_0/obs"]
    with pytest.raises(ValueError, match=r"demo_0 has no obs, only raw states.*dataset_states_to_obs\.py"):
        opened(bare)


def replace(file: h5py.File, key: str, values: Any) -> None:
    del file[key]
    file[key] = values


def without_actions(file: h5py.File) -> None:
    del file["data/demo_2/actions"]


@pytest.mark.parametrize("drop_noops", [False, True])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_actions, r"has no 'data/demo_2/actions'"),
        (lambda f: replace(f, "data/demo_2/actions", np.zeros(7)), r"demo_2: actions has shape \(7,\)"),
        (lambda f: replace(f, "data/demo_2/actions", np.zeros((7, 7), complex)), "demo_2: actions: expected real"),
        (lambda f: replace(f, "data/demo_2/actions", np.zeros((7, 7), bool)), "found truth values"),
        (lambda f: replace(f, "data/demo_2/obs/robot0_eef_pos", np.full((7, 3), b"1")), "found text"),
        (lambda f: replace(f, "data/demo_2/obs/robot0_eef_pos", ["far"] * 7), "found objects"),
        (lambda f: replace(f, "data/demo_2/obs/robot0_eef_pos", np.zeros((6, 3))), r"\(6, 3\); expected 7 steps of 3"),
        (lambda f: replace(f, "data/demo_2/obs/robot0_eef_pos", 3.0), r"has shape \(\); expected 7 steps of 3"),
        (lambda f: replace(f, "data/demo_2/actions", np.zeros((7, 8))), r"\(7, 8\); expected 7 steps of 7"),
        (lambda f: replace(f, "data/demo_2/obs/agentview_image", scene(6, 16)), "has 6 frames, its actions 7"),
        (lambda f: replace(f, "data/demo_2/obs/agentview_image", np.uint8(6)), "has 0 frames, its actions 7"),
    ],
)
def test_one_damaged_demonstration_is_named_and_the_others_are_read(
    tmp_path: Path, damage: Any, message: str, drop_noops: bool
) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", demos=4)
    with h5py.File(path, "a") as file:
        damage(file)
    data = opened(path, drop_noops=drop_noops)
    with pytest.raises(ValueError, match=message):
        data[2]
    assert [len(data[i]) for i in (0, 1, 3)] == [5, 6, 8]


def test_a_mask_of_absent_demonstrations_and_a_wrong_count(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", demos=4)
    with h5py.File(path, "a") as file:
        replace(file, "mask/train", np.array(["demo_0", "demo_99"], dtype="S"))
        file["data/demo_0"].attrs["num_samples"] = 50  # its arrays say 5
    data = RobomimicDataset(RobomimicConfig(filter="train"), path)
    assert list(data.unreadable) == [1]
    assert len(data[0]) == 5
    with pytest.raises(ValueError, match="has no 'data/demo_99/actions'"):
        data[1]


def test_demonstrations_without_steps_and_files_of_other_programs(tmp_path: Path) -> None:
    write_robomimic(tmp_path / "a.hdf5", demos=3)
    (tmp_path / "._a.hdf5").write_bytes(b"\0\5\26\7")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        replace(file, "data/demo_0/actions", np.zeros((0, 7)))
    assert open_dataset(tmp_path).lengths.tolist() == [6, 7]
