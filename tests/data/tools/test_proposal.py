from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from anyvla.config import build
from anyvla.data.tools.proposal import Proposal, propose
from anyvla.data.tools.quality import check
from anyvla.data.training.mixture import Source, open_source
from anyvla.data.undeclared import UndeclaredError
from anyvla.robot.rotations import convert
from tests.hub_like import (
    ALOHA,
    FRANKA,
    KOCH,
    LEKIWI,
    POSE,
    curves,
    following,
    opening,
    so101,
    write_hub_like,
)

STEPS, EPISODES = 40, 3
Rows = list[np.ndarray]


def proposed(root: Path) -> tuple[Proposal, dict[str, Any]]:
    """Return the proposal for a data set, and the groups of its file by part and name."""
    with pytest.raises(UndeclaredError) as caught:
        open_source(Source(path=str(root)))
    error = caught.value
    keys: dict[str, Any] = {"path": str(root), "unlabeled": "keep"}
    keys |= {"format": error.options} if error.options else {}
    dataset = open_source(build(Source, {**keys, "embodiment": error.plain}))
    proposal = propose(dataset, error.options, timed=error.timed)
    file = yaml.safe_load(proposal.text)
    source = build(Source, {**keys, **file})
    assert source.embodiment == proposal.embodiment
    assert [f for f in check(open_source(source), frames="none") if f.kind in ("meaning", "gripper")] == []
    parts = {part: file["embodiment"][part]["groups"] for part in ("proprio", "action")}
    return proposal, {part: {g["name"]: g for g in groups} for part, groups in parts.items()}


def rows(make: Callable[[int], np.ndarray]) -> Rows:
    return [make(i) for i in range(EPISODES)]


def joined(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts, axis=1)


def hub(root: Path, names: Any, action: Rows, state: Rows | None = None, state_names: Any = None, **keys: Any) -> Path:
    state = [following(a) for a in action] if state is None else state
    features = {"action": (names, action), "observation.state": (state_names or names, state)}
    return write_hub_like(root / keys.pop("folder", "data"), features, **keys)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_so101(tmp_path: Path, version: str) -> None:
    proposal, groups = proposed(so101(tmp_path / "pick", version))
    for part in ("proprio", "action"):
        joints, gripper = groups[part]["joints"], groups[part]["gripper"]
        assert (joints["size"], joints["kind"], joints["mode"], joints["unit"]) == (
            5,
            "joints",
            "absolute",
            "normalized",
        )
        assert joints["names"][2] == "elbow_flex.pos"
        assert (gripper["low"], gripper["high"], gripper["open"]) == (0, 100, 100)
    assert len(proposal.questions) == 2
    assert "normalized (LeRobot's -100..100 of a joint's range) or deg" in proposal.questions[0]
    assert proposal.embodiment.cameras == ("front", "wrist")
    assert proposal.embodiment.control_hz == 30


def test_koch_in_degrees(tmp_path: Path) -> None:
    action = rows(lambda i: joined(curves(5, -80, 170, STEPS, i), opening(3, 60, STEPS, i)))
    _, groups = proposed(hub(tmp_path, KOCH, action, robot_type="koch"))
    assert groups["action"]["joints"]["unit"] == "deg"
    assert (groups["action"]["gripper"]["high"], groups["action"]["gripper"]["open"]) == (100, 100)


def test_aloha_of_14_dims_with_names_below_motors(tmp_path: Path) -> None:
    def arm(i: int) -> np.ndarray:
        return joined(curves(6, -1.4, 1.5, STEPS, i), opening(0, 1, STEPS, i))

    action = rows(lambda i: joined(arm(i), arm(i + 9)))
    proposal, groups = proposed(hub(tmp_path, {"motors": ALOHA}, action, robot_type="aloha", fps=50))
    assert list(groups["action"]) == ["left_joints", "left_gripper", "right_joints", "right_gripper"]
    assert groups["action"]["left_joints"]["unit"] == "rad"
    assert groups["action"]["right_gripper"]["open"] == 1
    assert proposal.questions == []


def test_aloha_without_names_by_its_type_and_size(tmp_path: Path) -> None:
    action = rows(lambda i: joined(*(curves(6, -1, 1, STEPS, i), opening(0, 1, STEPS, i)) * 2))
    proposal, groups = proposed(hub(tmp_path, None, action, robot_type="aloha"))
    assert list(groups["action"]) == ["left_joints", "left_gripper", "right_joints", "right_gripper"]
    assert any("the data does not name these dims" in q for q in proposal.questions)


def test_lekiwi_has_a_base(tmp_path: Path) -> None:
    action = rows(
        lambda i: joined(curves(5, -90, 100, STEPS, i), opening(1, 99, STEPS, i), curves(3, -0.2, 0.2, STEPS, i))
    )
    _, groups = proposed(hub(tmp_path, LEKIWI, action, robot_type="lekiwi_client"))
    assert [(g["name"], g["size"]) for g in groups["action"].values()] == [
        ("joints", 5),
        ("gripper", 1),
        ("velocity", 3),
    ]


def test_bridge_moves_by_deltas(tmp_path: Path) -> None:
    state = rows(lambda i: joined(curves(6, -0.2, 0.3, STEPS, i), np.zeros((STEPS, 1)), opening(0, 1, STEPS, i)))
    action = [joined(np.diff(s[:, :6], axis=0, append=s[-1:, :6]), s[:, 7:]) for s in state]
    names = {"motors": [*POSE, "gripper"]}
    root = hub(tmp_path, names, action, state, {"motors": [*POSE, "pad", "gripper"]}, robot_type="widowx", fps=5)
    _, groups = proposed(root)
    position, rotation, gripper = groups["action"].values()
    assert (position["kind"], position["mode"], position["unit"]) == ("position", "delta", "m")
    assert (rotation["kind"], rotation["mode"], rotation["rotation"]) == ("rotation", "delta", "euler")
    assert (gripper["low"], gripper["high"], gripper["open"]) == (0, 1, 1)
    assert list(groups["proprio"]) == ["position", "rotation", "other", "gripper"]
    assert groups["proprio"]["position"]["mode"] == "absolute"


def test_droid_closes_at_1(tmp_path: Path) -> None:
    action = rows(lambda i: joined(curves(7, -2, 2, STEPS, i), opening(1, 0, STEPS, i)))
    _, groups = proposed(hub(tmp_path, {"axes": FRANKA}, action, robot_type="Franka", fps=15, folder="droid_1.0.1"))
    assert groups["action"]["joints"]["size"] == 7
    assert groups["action"]["gripper"]["open"] == 0


def test_franka_with_a_quaternion_and_a_width_in_meters(tmp_path: Path) -> None:
    def pose(i: int) -> np.ndarray:
        quaternion = curves(4, -1, 1, STEPS, i)
        quaternion /= np.linalg.norm(quaternion, axis=1, keepdims=True)
        return joined(curves(3, 0.2, 0.6, STEPS, i), quaternion, opening(0, 0.078, STEPS, i))

    names = ["ee_x", "ee_y", "ee_z", "ee_qw", "ee_qx", "ee_qy", "ee_qz", "gripper_width"]
    action = rows(pose)
    proposal, groups = proposed(hub(tmp_path, names, action, [a.copy() for a in action], robot_type="panda"))
    assert groups["action"]["rotation"]["rotation"] == "quaternion_wxyz"
    assert groups["action"]["gripper"] | {"names": 0} == {
        "name": "gripper", "size": 1, "kind": "gripper", "mode": "absolute", "unit": "m", "low": 0.0, "high": 0.08,
        "open": 0.08, "names": 0,
    }  # fmt: skip
    assert proposal.questions == []


def test_ur_with_an_axis_angle_and_a_robotiq_gripper(tmp_path: Path) -> None:
    names = ["tcp_x", "tcp_y", "tcp_z", "tcp_rx", "tcp_ry", "tcp_rz", "gripper"]
    action = rows(
        lambda i: joined(curves(3, -0.5, 0.5, STEPS, i), curves(3, -3, 3, STEPS, i), opening(230, 2, STEPS, i))
    )
    _, groups = proposed(hub(tmp_path, names, action, robot_type="ur5e"))
    assert groups["action"]["rotation"]["rotation"] == "axis_angle"
    assert (groups["action"]["gripper"]["high"], groups["action"]["gripper"]["open"]) == (255, 0)


def test_the_open_end_of_an_unknown_gripper_is_a_question(tmp_path: Path) -> None:
    action = rows(lambda i: joined(curves(6, -1, 1, STEPS, i), opening(-1, 1, STEPS, i)))
    names = [*(f"joint{i}" for i in range(6)), "right_hand"]
    proposal, groups = proposed(hub(tmp_path, names, action, robot_type="my arm"))
    assert "open" not in groups["action"]["right_gripper"]
    assert "open: at which end is it open, -1 or 1?" in " ".join(proposal.questions)


def test_a_range_that_the_numbers_do_not_show_is_a_question(tmp_path: Path) -> None:
    """The degrees of a Koch arm's gripper fit into 0..255, but cover only a part of it."""
    action = rows(lambda i: joined(curves(5, -80, 170, STEPS, i), opening(-5, 60, STEPS, i)))
    proposal, _ = proposed(hub(tmp_path, KOCH, action, robot_type="koch"))
    assert "low, high: the data goes from -5 to 60 only" in " ".join(proposal.questions)


def test_dims_that_only_count_are_not_guessed(tmp_path: Path) -> None:
    action = rows(lambda i: joined(curves(3, -1, 1, STEPS, i), opening(0, 1, STEPS, i)))
    names = {"motors": ["motor_0", "motor_1", "motor_2", "motor_3"]}
    proposal, groups = proposed(hub(tmp_path, names, action))
    assert groups["action"]["numbers"] == {
        "name": "numbers", "size": 3, "names": ["motor_0", "motor_1", "motor_2"]
    }  # fmt: skip
    assert groups["action"]["gripper"]["kind"] == "gripper"
    assert any("names that only count; declare each dim" in q for q in proposal.questions)


def test_vectors_under_other_keys(tmp_path: Path) -> None:
    action = rows(lambda i: joined(curves(6, -1, 1, STEPS, i), opening(-1, 1, STEPS, i)))
    state = rows(
        lambda i: joined(curves(6, -1, 1, STEPS, i), curves(1, 0, 0.04, STEPS, i), -curves(1, 0, 0.04, STEPS, i))
    )
    features = {"actions": (["actions"], action), "state": (["state"], state)}
    root = write_hub_like(tmp_path / "libero", features, robot_type="panda", cameras=("image", "wrist_image"), fps=10)
    proposal, groups = proposed(root)
    assert yaml.safe_load(proposal.text)["format"] == {"name": "lerobot_v2", "state": "state", "action": "actions"}
    assert list(groups["proprio"]) == ["position", "rotation", "gripper", "gripper_2"]
    assert proposal.embodiment.cameras == ("image", "wrist_image")


def test_names_cannot_break_the_file(tmp_path: Path) -> None:
    action = rows(lambda i: curves(3, -1, 1, STEPS, i))
    names = ["gripper: [x", "joint\n- {name: evil}", "# CHECK y"]
    proposal, groups = proposed(hub(tmp_path, names, action, robot_type='a "robot"\nname: b'))
    assert proposal.embodiment.name == 'a "robot"\nname: b'
    assert [n for g in groups["action"].values() for n in g["names"]] == names
    assert all(question.startswith("CHECK ") for question in proposal.questions)


def test_names_of_hands_umi_and_trossen(tmp_path: Path) -> None:
    names = [
        *(f"robot0_eef_pos_{i}" for i in range(3)),
        *(f"robot0_eef_rot_axis_angle_{i}" for i in range(3)),
        *(f"left_hand_{finger}" for finger in ("thumb", "index", "pinky")),
    ]
    _, groups = proposed(hub(tmp_path, names, rows(lambda i: curves(9, 0, 1, STEPS, i)), folder="umi"))
    kinds = {name: (g["kind"], g.get("rotation")) for name, g in groups["action"].items()}
    assert kinds == {
        "position": ("position", None),
        "rotation": ("rotation", "axis_angle"),
        "left_fingers": ("joints", None),
    }
    names = [f"{side}_joint_{i}" for side in ("left", "right") for i in range(7)]
    arm = rows(lambda i: joined(curves(6, -1, 1, STEPS, i), curves(1, 0, 0.044, STEPS, i)))
    root = hub(tmp_path, names, [joined(a, a[::-1]) for a in arm], robot_type="trossen_ai_stationary")
    _, groups = proposed(root)
    assert list(groups["action"]) == ["left_joints", "left_gripper", "right_joints", "right_gripper"]
    assert (groups["action"]["left_gripper"]["unit"], groups["action"]["left_gripper"]["open"]) == ("m", 0.08)


def test_a_name_that_the_numbers_contradict_is_a_question(tmp_path: Path) -> None:
    names = ["qx", "qy", "qz", "qw"]
    proposal, groups = proposed(hub(tmp_path, names, rows(lambda i: curves(4, -3, 3, STEPS, i))))
    assert "rotation" not in groups["action"]["rotation"]
    assert any("by its name quaternion, but with lengths from" in q for q in proposal.questions)


def test_a_gripper_of_no_usual_range_gets_that_of_the_numbers(tmp_path: Path) -> None:
    action = rows(lambda i: joined(curves(2, -1, 1, STEPS, i), curves(1, 0, 5.4, STEPS, i)))
    proposal, groups = proposed(hub(tmp_path, ["joint1", "joint2", "kLeftGripper"], action))
    assert (groups["action"]["left_gripper"]["low"], groups["action"]["left_gripper"]["high"]) == (0, 5.4)
    assert any("none of the usual ranges" in q for q in proposal.questions)


def test_nothing_moves(tmp_path: Path) -> None:
    proposal, groups = proposed(hub(tmp_path, KOCH, rows(lambda i: np.zeros((STEPS, 6))), robot_type="koch"))
    assert groups["action"]["gripper"]["high"] == 100
    assert any("nothing moves" in q for q in proposal.questions)
    assert any("mode: absolute is a guess" in q for q in proposal.questions)


def test_actions_that_follow_in_another_unit(tmp_path: Path) -> None:
    state = rows(lambda i: curves(3, -0.3, 0.3, STEPS, i))
    action = [np.diff(s, axis=0, append=s[-1:]) * 20 for s in state]
    proposal, groups = proposed(hub(tmp_path, ["x", "y", "z"], action, state))
    assert (groups["action"]["position"]["mode"], groups["action"]["position"].get("unit")) == ("delta", None)
    assert any("unit: what does 1 mean?" in q for q in proposal.questions)


def test_aloha_files_of_hdf5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    root = tmp_path / "demos"
    root.mkdir()
    for i in range(EPISODES):
        arm = joined(curves(6, -1.4, 1.5, STEPS, i), curves(1, 0, 1, STEPS, i))
        with h5py.File(root / f"episode_{i}.hdf5", "w") as file:
            file["action"] = joined(arm, arm)
            file["observations/qpos"] = following(joined(arm, arm))
            file["observations/images/cam_high"] = np.full((STEPS, 16, 16, 3), 90 + i, np.uint8)
    proposal, groups = proposed(root)
    assert list(groups["action"]) == ["left_joints", "left_gripper", "right_joints", "right_gripper"]
    assert groups["action"]["right_gripper"]["open"] == 1
    assert any("control_hz" in q for q in proposal.questions)


def test_actions_in_another_convention_than_the_state(tmp_path: Path) -> None:
    turns = rows(lambda i: convert(curves(3, -0.9, 0.9, STEPS, i), "axis_angle", "quaternion_xyzw"))
    action = [convert(np.concatenate([q[1:], q[-1:]]), "quaternion_xyzw", "rot6d") for q in turns]
    names = [f"ee_rot6d_{i}" for i in range(6)]
    _, groups = proposed(hub(tmp_path, names, action, turns, ["ee_qx", "ee_qy", "ee_qz", "ee_qw"]))
    assert groups["action"]["rotation"]["mode"] == "absolute"


@pytest.mark.parametrize(
    ("state", "action"),
    [
        (("joint_position", "gripper_position"), ("actions",)),
        (
            ("observation.state.joint_position", "observation.state.gripper_position"),
            ("action.joint_position", "action.gripper_position"),
        ),
    ],
)
def test_droid_in_several_columns(tmp_path: Path, state: tuple[str, ...], action: tuple[str, ...]) -> None:
    arm = rows(lambda i: curves(7, -2, 2, STEPS, i))
    fingers = rows(lambda i: opening(1, 0, STEPS, i))
    whole = [joined(a, f) for a, f in zip(arm, fingers, strict=True)]
    features: dict[str, Any] = dict(zip(state, [(None, arm), (None, fingers)], strict=True))
    if len(action) == 1:
        features[action[0]] = (None, whole)
    else:
        features |= dict(zip(action, [(None, arm), (None, fingers)], strict=True))
    proposal, groups = proposed(write_hub_like(tmp_path / "droid", features, robot_type="panda", fps=15))
    for part in ("proprio", "action"):
        assert {name: g["size"] for name, g in groups[part].items()} == {"joints": 7, "gripper": 1}
        assert groups[part]["gripper"]["open"] == 0
    assert proposal.options["state"] == list(state)
