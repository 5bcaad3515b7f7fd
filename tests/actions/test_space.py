from __future__ import annotations

import dataclasses

import pytest

from anyvla.actions.shared import union
from anyvla.actions.space import ActionSpace, Group
from anyvla.config import build, to_dict

ARM = Group(name="arm", size=2, kind="joints", names=("elbow_flex.pos", "wrist_roll.pos"))
GRIPPER = Group(name="gripper", size=1, kind="gripper", low=0, high=100)
SPACE = ActionSpace(groups=(ARM, GRIPPER))


def test_a_dim_is_called_by_its_name_where_it_has_one():
    assert SPACE.place(1) == "group 'arm', dim 1 (wrist_roll.pos)"
    assert SPACE.place(2) == "group 'gripper', dim 0"
    with pytest.raises(IndexError, match="no dim 3 among 3"):
        SPACE.place(3)


def test_names_travel_and_mean_nothing():
    assert build(ActionSpace, to_dict(SPACE)).groups[0].names == ARM.names
    assert "names" not in to_dict(GRIPPER)  # as older versions wrote it
    plain = ActionSpace(groups=(dataclasses.replace(ARM, names=()), GRIPPER))
    assert plain == SPACE
    assert union({"one": SPACE, "other": plain}, "action").groups[0].names == ()
    assert union({"one": SPACE, "other": SPACE}, "action").groups[0].names == ARM.names


def test_each_dim_or_none_is_named():
    with pytest.raises(ValueError, match="group 'arm': 1 names for 2 dims"):
        Group(name="arm", size=2, names=("elbow",))
