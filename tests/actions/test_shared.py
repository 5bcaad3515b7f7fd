from __future__ import annotations

import numpy as np
import pytest

from anyvla.actions.shared import places, union
from anyvla.actions.space import ActionSpace, Group

HAND = Group(name="position", size=3, kind="position", mode="delta", unit="m")
TURN = Group(name="rotation", size=3, kind="rotation", mode="delta", rotation="euler")
GRIP = Group(name="gripper", size=1, kind="gripper", low=-1, high=1)


def space(*groups: Group) -> ActionSpace:
    return ActionSpace(groups=groups)


def changed(group: Group, **keys: object) -> Group:
    return Group(**(vars(group) | keys))


def test_the_union_of_one_robot_is_its_own_space():
    own = space(HAND, GRIP)
    assert union({"a": own}, "action") == own
    assert places(own, own).tolist() == [0, 1, 2, 3]


def test_groups_meet_by_name_wherever_they_stand():
    small, large = space(HAND, GRIP), space(GRIP, TURN, HAND)
    two = space(Group(name="left_joints", size=6, kind="joints"), Group(name="right_joints", size=6, kind="joints"))
    whole = union({"small": small, "large": large, "two": two}, "action")
    assert [g.name for g in whole.groups] == ["position", "gripper", "rotation", "left_joints", "right_joints"]
    assert whole.size == 19
    assert places(large, whole).tolist() == [3, 4, 5, 6, 0, 1, 2]
    assert places(two, whole).tolist() == list(range(7, 19))
    assert len(np.unique(places(small, whole))) == small.size
    assert places(space(), whole).tolist() == []


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (changed(HAND, mode="absolute"), "mode 'delta' and 'absolute'"),
        (changed(HAND, size=2), "size 3 and 2"),
        (changed(HAND, kind="other"), "kind 'position' and 'other'"),
    ],
)
def test_one_name_means_one_thing(other: Group, told: str):
    with pytest.raises(ValueError, match=f"action group 'position' means different things in a and b: {told}"):
        union({"a": space(HAND), "b": space(other)}, "action")


def test_rotations_and_frames():
    with pytest.raises(
        ValueError, match=r"rotation 'euler' and 'axis_angle'\. Convert one of the sources \(rotation: "
    ):
        union({"a": space(TURN), "b": space(changed(TURN, rotation="axis_angle"))}, "action")
    base, tool = (changed(HAND, frame=f) for f in ("base", "tool"))
    with pytest.raises(ValueError, match="frame 'base' and 'tool'"):
        union({"a": space(base), "b": space(tool)}, "action")
    assert union({"a": space(HAND), "b": space(tool)}, "action").groups[0].frame == "tool"


def test_units_may_differ_as_each_robot_has_its_own_statistics():
    [whole] = union({"a": space(HAND), "b": space(changed(HAND, unit="cm"))}, "action").groups
    assert whole == changed(HAND, unit="")


def test_grippers_of_different_ranges_meet_where_they_say_which_end_is_open():
    wide = Group(name="gripper", size=1, kind="gripper", low=0, high=0.08, open=0.08)
    with pytest.raises(ValueError, match=r"another range in a than in b, and a does not say .* open: -1 or open: 1"):
        union({"a": space(GRIP), "b": space(wide)}, "action")
    [whole] = union({"a": space(changed(GRIP, open=-1)), "b": space(wide)}, "action").groups
    assert (whole.low, whole.high, whole.open) == (-1, 1, 1)
