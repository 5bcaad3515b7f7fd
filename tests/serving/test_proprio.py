"""The proprio of a client is read by its keys, and converted only as the mapping declares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from anyvla.config import ConfigError, build
from anyvla.robot.space import ActionSpace
from anyvla.serving.limits import ServerLimits
from anyvla.serving.mapping import ClientMapping
from anyvla.serving.proprio import ProprioReader

POSITION = {"name": "position", "size": 3, "kind": "position", "unit": "m"}
TURN = {"name": "rotation", "size": 3, "kind": "rotation", "rotation": "euler", "unit": "rad"}
JOINTS = {"name": "joints", "size": 2, "kind": "joints", "unit": "rad"}
GRIPPER = {"name": "gripper", "size": 1, "kind": "gripper", "low": 0, "high": 0.08, "open": 0.08}


def read(keys: Any, values: dict[str, Any], *groups: dict[str, Any]) -> list[float]:
    mapping = build(ClientMapping, {"proprio": keys})
    space = build(ActionSpace, {"groups": list(groups)})
    vector = ProprioReader(mapping.proprio, space, ServerLimits()).read(values)
    assert vector.dtype == np.float32
    return vector.tolist()  # type: ignore[no-any-return]


def test_the_groups_of_a_map_are_in_the_robots_order() -> None:
    """DROID's clients have a key for the joints and one for the gripper, and the gripper as a number or as an array."""
    keys = {"gripper": "observation/gripper_position", "joints": "observation/joint_position"}
    for gripper in (0.5, [0.5], np.array([0.5]), {"__npgeneric__": True, "data": 0.5, "dtype": "<f8"}):
        sent = {"observation/joint_position": [1, 2], "observation/gripper_position": gripper}
        assert read(keys, sent, JOINTS, GRIPPER) == [1, 2, 0.5]
        assert read(keys, sent, GRIPPER, JOINTS) == [0.5, 1, 2]


def test_a_map_at_the_one_key_has_the_groups_by_name() -> None:
    sent = {"state": {"gripper": [0.5], "joints": [1, 2]}}
    assert read("state", sent, JOINTS, GRIPPER) == [1, 2, 0.5]
    with pytest.raises(ValueError, match=r"has no 'state/joints', it has state/gripper: .* its proprio, joints 2"):
        read("state", {"state": {"gripper": [0.5]}}, JOINTS, GRIPPER)


def test_some_numbers_of_a_key_in_another_order() -> None:
    sent = {"states": list(range(10)), "x": 20, "y": 21, "z": [22]}
    assert read({"position": "states[4:6, 1]"}, sent, POSITION) == [4, 5, 1]
    assert read({"position": {"key": ["x", "y", "z"]}}, sent, POSITION) == [20, 21, 22]
    assert read({"position": {"key": ["z", "states[7:9]"]}}, sent, POSITION) == [22, 7, 8]
    with pytest.raises(ValueError, match=r"'states' has 10 numbers, the mapping reads 'states\[8:11\]'"):
        read({"position": "states[8:11]"}, sent, POSITION)


def test_units_are_converted_only_if_declared() -> None:
    sent = {"p": [10, -20, 30], "j": [180, -90]}
    assert read({"position": "p"}, sent, POSITION) == [10, -20, 30]
    assert read({"position": {"key": "p", "unit": "mm"}}, sent, POSITION) == pytest.approx([0.01, -0.02, 0.03])
    assert read({"joints": {"key": "j", "unit": "deg"}}, sent, JOINTS) == pytest.approx([np.pi, -np.pi / 2])


def test_a_gripper_is_converted_from_the_clients_ends() -> None:
    """DROID writes 0 open, 1 closed; the robot 0.08 open, 0 closed."""
    keys = {"gripper": {"key": "g", "gripper": [0, 1]}}
    for theirs, ours in ((0, 0.08), (1, 0), (0.25, 0.06)):
        assert read(keys, {"g": theirs}, GRIPPER) == pytest.approx([ours])
        closing = {**GRIPPER, "open": 0}
        assert read(keys, {"g": theirs}, closing) == pytest.approx([0.08 - ours])


def test_a_rotation_is_converted_with_the_frame_of_the_clients_tool() -> None:
    """SimplerEnv sends the quaternion of a tool that points along x; Bridge's angles are 0 where it points down."""
    down = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    turned = Rotation.from_euler("xyz", [0.3, -0.2, 1.1])
    x, y, z, w = (turned * Rotation.from_matrix(down)).as_quat()
    tool = [0, -np.sqrt(0.5), 0, np.sqrt(0.5)]
    key = {"key": "states[3:7]", "rotation": "quaternion_wxyz", "tool": tool}
    assert read({"rotation": key}, {"states": [0, 0, 0, w, x, y, z, 1]}, TURN) == pytest.approx([0.3, -0.2, 1.1])
    same = {"key": "q", "rotation": "quaternion_xyzw"}
    assert read({"rotation": same}, {"q": turned.as_quat().tolist()}, TURN) == pytest.approx([0.3, -0.2, 1.1])
    with pytest.raises(ValueError, match="'q': "):
        read({"rotation": same}, {"q": [0, 0, 0, 0]}, TURN)


@pytest.mark.parametrize("numbers", [[], [1], [1, 2, 3], [1, float("nan")], [1e300, 0]])
def test_a_group_of_another_size_or_with_nan_is_refused(numbers: list[float]) -> None:
    with pytest.raises(ValueError, match=f"'j' has {len(numbers)} numbers, 2 finite ones are needed: joints"):
        read({"joints": "j"}, {"j": numbers}, JOINTS)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"position": {"key": "p", "unit": "deg"}}, "'deg' and 'm' are no units of the same quantity"),
        ({"position": {"key": "p", "unit": "furlong"}}, "the unit 'furlong' is not known"),
        ({"position": "p[0:2]"}, r"'p\[0:2\]' are 2 numbers, 3 are needed"),
        ({"position": "p[3:2]"}, r"'p\[3:2\]': expected numbers and ranges"),
        ({"position": {"key": "p", "gripper": [0, 1]}}, "does not declare which end is open"),
        ({"position": {"key": "p", "gripper": [1, 1]}}, "open and closed are both 1"),
        ({"position": {"key": "p", "rotation": "euler"}}, "it is not known how its rotation is written"),
        ({"position": {"key": "p", "tool": [0, 0, 0, 1]}}, "tool needs the rotation that the client writes"),
        ({"position": {"kye": "p"}}, "unknown key 'kye': did you mean 'key'"),
        ({"position": 3}, "proprio.position: expected keys and values, found 3"),
    ],
)  # fmt: skip
def test_a_conversion_that_is_not_possible_is_refused(keys: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(keys, {"p": [1, 2, 3]}, POSITION)
