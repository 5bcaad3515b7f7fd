from __future__ import annotations

import dataclasses

import pytest

from anyvla.config import ConfigError, build, to_dict
from anyvla.robot.shared_space import merge_spaces
from anyvla.robot.space import ActionSpace, Group

ARM = Group(name="arm", size=2, kind="joints", names=("elbow_flex.pos", "wrist_roll.pos"))
GRIPPER = Group(name="gripper", size=1, kind="gripper", low=0, high=100)
SPACE = ActionSpace(groups=(ARM, GRIPPER))


def test_messages_name_a_dim_where_it_has_a_name():
    assert SPACE.locate(1) == "group 'arm', dim 1 (wrist_roll.pos)"
    assert SPACE.locate(2) == "group 'gripper', dim 0"
    with pytest.raises(IndexError, match="no dim 3 among 3"):
        SPACE.locate(3)


def test_names_are_saved_but_groups_compare_without_them():
    assert build(ActionSpace, to_dict(SPACE)).groups[0].names == ARM.names
    assert "names" not in to_dict(GRIPPER)  # as older versions wrote it
    plain = ActionSpace(groups=(dataclasses.replace(ARM, names=()), GRIPPER))
    assert plain == SPACE
    assert merge_spaces({"one": SPACE, "other": plain}, "action").groups[0].names == ()
    assert merge_spaces({"one": SPACE, "other": SPACE}, "action").groups[0].names == ARM.names


def test_all_dims_are_named_or_none():
    with pytest.raises(ValueError, match="group 'arm': 1 names for 2 dims"):
        Group(name="arm", size=2, names=("elbow",))


def test_undeclared_keys_of_a_group_have_neutral_defaults():
    assert to_dict(Group(name="a", size=2)) == {
        "name": "a",
        "size": 2,
        "kind": "other",
        "mode": "absolute",
        "low": None,
        "high": None,
        "unit": "",
        "rotation": None,
        "frame": "",
        "open": None,
    }


def test_groups_follow_one_another():
    space = ActionSpace(groups=(ARM, GRIPPER, Group(name="turn", size=4)))
    assert space.slices() == {"arm": slice(0, 2), "gripper": slice(2, 3), "turn": slice(3, 7)}
    assert space.size == 7
    assert [space.locate(dim) for dim in range(2, 7)] == [
        "group 'gripper', dim 0",
        *(f"group 'turn', dim {dim}" for dim in range(4)),
    ]


@pytest.mark.parametrize(
    ("rotation", "dims"),
    [("euler", 3), ("axis_angle", 3), ("quaternion_xyzw", 4), ("quaternion_wxyz", 4), ("rot6d", 6)],
)
def test_a_rotation_has_as_many_dims_as_its_convention(rotation: str, dims: int):
    build(Group, {"name": "turn", "size": dims, "kind": "rotation", "rotation": rotation})
    for data in ({"size": dims + 1, "kind": "rotation"}, {"size": dims - 1, "kind": "rotation"}, {"size": dims}):
        with pytest.raises(ConfigError, match=f"is a rotation of {dims} dims"):
            build(Group, {"name": "turn", "rotation": rotation} | data)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"low": 0}, "give both low and high, or neither"),
        ({"high": 0}, "give both low and high, or neither"),
        ({"low": 1, "high": 1}, "must be below high"),
        ({"low": 1, "high": -1}, "must be below high"),
        ({"low": 1, "high": 1 + 1e-9}, "are one number in float32"),
        ({"kind": "gripper"}, "needs its declared range"),
        ({"kind": "gripper", "low": -1, "high": 1, "open": 0}, "must be the end of a gripper's range"),
        ({"kind": "gripper", "low": 0, "high": 1, "open": -1}, "must be the end of a gripper's range"),
        ({"kind": "joints", "low": 0, "high": 1, "open": 1}, "must be the end of a gripper's range"),
    ],
)
def test_ranges_and_open_ends_must_fit(keys: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        build(Group, {"name": "a", "size": 1} | keys)


@pytest.mark.parametrize("end", [-1, 1, None])
def test_a_gripper_is_open_at_either_end(end: int | None):
    assert Group(name="a", size=1, kind="gripper", low=-1, high=1, open=end).open == end


def test_names_of_dims_are_given_to_groups_that_have_none():
    named = ActionSpace(groups=(ARM, GRIPPER)).with_names(["a", "b", "c"])
    assert [g.names for g in named.groups] == [ARM.names, ("c",)]
    assert SPACE.with_names(["a", "b"]) is SPACE
