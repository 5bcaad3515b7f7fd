"""The layout that three robots share, written out by hand."""

from __future__ import annotations

import pytest

from anyvla.robot.embodiment import Embodiment
from anyvla.robot.shared_layout import SharedLayout
from anyvla.robot.space import ActionSpace, Group

HAND = Group(name="hand", size=3, kind="position", mode="delta")
TURN = Group(name="turn", size=4, kind="rotation", rotation="quaternion_xyzw")
JOINTS = Group(name="joints", size=2, kind="joints")
GRIP = Group(name="gripper", size=1, kind="gripper", low=0, high=1, open=1)


def make_robot(name: str, hz: float, cameras: str, proprio: list[Group], action: list[Group]) -> Embodiment:
    return Embodiment(
        name=name,
        control_hz=hz,
        cameras=tuple(cameras.split()),
        proprio=ActionSpace(groups=tuple(proprio)),
        action=ActionSpace(groups=tuple(action)),
    )


ARM = make_robot("arm", 10, "wrist corner", [HAND], [HAND, GRIP])
LEGS = make_robot("legs", 30, "head", [JOINTS, TURN], [JOINTS])
BOTH = make_robot("both", 5, "corner head wrist", [TURN, HAND], [GRIP, JOINTS, HAND])


def test_the_layout_has_every_camera_and_group_once_in_order_of_first_use() -> None:
    whole = SharedLayout([ARM, LEGS, BOTH]).embodiment
    assert whole.name == "arm + legs + both"
    assert whole.cameras == ("wrist", "corner", "head")
    assert [g.name for g in whole.proprio.groups] == ["hand", "joints", "turn"]
    assert [g.name for g in whole.action.groups] == ["hand", "gripper", "joints"]
    assert whole.control_hz == 30


def test_each_robot_has_the_indices_of_its_cameras_and_dims() -> None:
    shared = SharedLayout([ARM, LEGS, BOTH])
    assert shared.names == ["arm", "legs", "both"]
    places = {name: [p.views.tolist(), p.proprio.tolist(), p.action.tolist()] for name, p in shared.robots.items()}
    assert places == {
        "arm": [[0, 1], [0, 1, 2], [0, 1, 2, 3]],
        "legs": [[2], [3, 4, 5, 6, 7, 8], [4, 5]],
        "both": [[1, 2, 0], [5, 6, 7, 8, 0, 1, 2], [3, 4, 5, 0, 1, 2]],
    }


def test_the_layout_of_one_robot_is_its_own() -> None:
    shared = SharedLayout([BOTH])
    assert shared.embodiment is BOTH
    assert shared.robots["both"].views.tolist() == [0, 1, 2]
    assert shared.robots["both"].action.tolist() == list(range(6))


def test_robots_need_different_names() -> None:
    for robots in ([], [ARM, ARM]):
        with pytest.raises(ValueError, match="need different names, and one at least"):
            SharedLayout(robots)
