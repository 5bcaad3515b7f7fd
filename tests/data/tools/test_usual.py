from __future__ import annotations

import pytest

from anyvla.data.tools.usual import find_open_end, gripper_range, is_real_part, read_key, read_names


@pytest.mark.parametrize(
    ("name", "side", "kind"),
    [
        ("left_elbow.pos", "left", "joints"),
        ("right_waist", "right", "joints"),
        ("joint_0_left", "left", "joints"),
        ("gripper_right", "right", "gripper"),
        ("kLeftShoulderPitch", "left", "joints"),
        ("rightGripper", "right", "gripper"),
        ("main_shoulder_pan", "", "joints"),
        ("l_gripper", "left", "gripper"),
        ("ee_x", "", "position"),
        ("ee_qw", "", "quaternion"),
        ("roll", "", "euler"),
        ("joint_velocity_1", "", "rate"),
        ("motor_3", "", "unknown"),
    ],
)
def test_names_of_dims(name: str, side: str, kind: str) -> None:
    [read] = read_names([name], None)
    assert (read.side, read.is_) == (side, kind)


@pytest.mark.parametrize(
    ("key", "size", "side", "kinds"),
    [
        ("observation.left_joint_position", 7, "left", ["joints"] * 7),
        ("state.right_gripper", 1, "right", ["gripper"]),
        ("left_eef_pose", 7, "left", ["position"] * 3 + ["quaternion"] * 4),
        ("ee_quat", 4, "", ["quaternion"] * 4),
    ],
)
def test_keys_of_columns(key: str, size: int, side: str, kinds: list[str]) -> None:
    read = read_key(key, size)
    assert [dim.is_ for dim in read] == kinds
    assert {dim.side for dim in read} == {side}


@pytest.mark.parametrize(
    ("name", "real"), [("qw", True), ("ee_quat_w", True), ("rw", True), ("qx", False), ("w2", False)]
)
def test_the_real_part_of_a_quaternion(name: str, real: bool) -> None:
    assert is_real_part(name) == real


@pytest.mark.parametrize(
    ("robot", "ends", "unit", "end"),
    [
        ("SO-100 or SO-101", (0, 100), "", "high"),  # LeRobot's calibration
        ("Koch", (0, 100), "", "high"),
        ("ALOHA", (0, 1), "", "high"),
        ("DROID", (0, 1), "", "low"),  # droid-dataset.github.io: 0 is open
        ("Bridge", (0, 1), "", "high"),
        ("LIBERO", (-1, 1), "", "low"),  # robosuite: -1 opens, 1 closes
        ("UR", (0, 255), "", "low"),  # Robotiq: 255 is closed
        ("xArm", (0, 850), "", "high"),
        (None, (0, 0.08), "m", "high"),  # a width grows on opening
        (None, (0, 1), "", None),
        ("DROID", (0, 255), "", None),  # another range than DROID writes
    ],
)
def test_the_end_at_which_a_gripper_is_open(robot: str | None, ends: tuple[float, float], unit: str, end: str) -> None:
    assert find_open_end("gripper", robot, ends, unit)[0] == end


@pytest.mark.parametrize(
    ("name", "end"), [("gripper_closed", "low"), ("gripper_closedness", "low"), ("gripper_width", "high")]
)
def test_the_open_end_of_a_gripper_by_its_name(name: str, end: str) -> None:
    assert find_open_end(name, None, (0, 1), "")[0] == end


@pytest.mark.parametrize(
    ("low", "high", "robot", "expected"),
    [
        (0, 1, None, (0, 1, "")),
        (-1, 1, None, (-1, 1, "")),
        (0, 98, "SO-100 or SO-101", (0, 100, "")),
        (0, 240, "UR", (0, 255, "")),
        (0, 0.078, None, (0, 0.08, "m")),
    ],
)
def test_the_usual_range_of_gripper_numbers(
    low: float, high: float, robot: str | None, expected: tuple[float, float, str]
) -> None:
    assert gripper_range(low, high, robot) == expected
