from __future__ import annotations

import numpy as np
import pytest

from anyvla.robot.shared_space import dim_indices, merge_spaces
from anyvla.robot.space import ActionSpace, Group

HAND = Group(name="position", size=3, kind="position", mode="delta", unit="m")
TURN = Group(name="rotation", size=3, kind="rotation", mode="delta", rotation="euler")
GRIP = Group(name="gripper", size=1, kind="gripper", low=-1, high=1)


def make_space(*groups: Group) -> ActionSpace:
    return ActionSpace(groups=groups)


def change(group: Group, **keys: object) -> Group:
    return Group(**(vars(group) | keys))


def test_the_union_of_one_robot_is_its_own_space():
    own = make_space(HAND, GRIP)
    assert merge_spaces({"a": own}, "action") == own
    assert dim_indices(own, own).tolist() == [0, 1, 2, 3]


def test_groups_are_merged_by_name_at_any_position():
    small, large = make_space(HAND, GRIP), make_space(GRIP, TURN, HAND)
    two = make_space(
        Group(name="left_joints", size=6, kind="joints"), Group(name="right_joints", size=6, kind="joints")
    )
    whole = merge_spaces({"small": small, "large": large, "two": two}, "action")
    assert [g.name for g in whole.groups] == ["position", "gripper", "rotation", "left_joints", "right_joints"]
    assert whole.size == 19
    assert dim_indices(large, whole).tolist() == [3, 4, 5, 6, 0, 1, 2]
    assert dim_indices(two, whole).tolist() == list(range(7, 19))
    assert len(np.unique(dim_indices(small, whole))) == small.size
    assert dim_indices(make_space(), whole).tolist() == []


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (change(HAND, mode="absolute"), "mode 'delta' and 'absolute'"),
        (change(HAND, size=2), "size 3 and 2"),
        (change(HAND, kind="other"), "kind 'position' and 'other'"),
        (change(HAND, mode="absolute", size=2), "size 3 and 2, mode 'delta' and 'absolute'"),
    ],
)
def test_groups_of_one_name_must_have_one_meaning(other: Group, difference: str):
    with pytest.raises(ValueError, match=f"action group 'position' means different things in a and b: {difference}"):
        merge_spaces({"a": make_space(HAND), "b": make_space(other)}, "action")


def test_rotations_and_frames():
    with pytest.raises(
        ValueError, match=r"rotation 'euler' and 'axis_angle'\. Convert one of the sources \(rotation: "
    ):
        merge_spaces({"a": make_space(TURN), "b": make_space(change(TURN, rotation="axis_angle"))}, "action")
    base, tool = (change(HAND, frame=f) for f in ("base", "tool"))
    with pytest.raises(ValueError, match="frame 'base' and 'tool'"):
        merge_spaces({"a": make_space(base), "b": make_space(tool)}, "action")
    assert merge_spaces({"a": make_space(HAND), "b": make_space(tool)}, "action").groups[0].frame == "tool"


def test_units_may_differ_as_each_robot_has_its_own_statistics():
    [whole] = merge_spaces({"a": make_space(HAND), "b": make_space(change(HAND, unit="cm"))}, "action").groups
    assert whole == change(HAND, unit="")


def test_grippers_of_different_ranges_need_a_declared_open_end():
    wide = Group(name="gripper", size=1, kind="gripper", low=0, high=0.08, open=0.08)
    with pytest.raises(ValueError, match=r"another range in a than in b, and a does not say .* open: -1 or open: 1"):
        merge_spaces({"a": make_space(GRIP), "b": make_space(wide)}, "action")
    [whole] = merge_spaces({"a": make_space(change(GRIP, open=-1)), "b": make_space(wide)}, "action").groups
    assert (whole.low, whole.high, whole.open) == (-1, 1, 1)


@pytest.mark.parametrize("open", [(-1, 1), (1, -1), (1, None), (None, -1)])
def test_grippers_of_one_range_are_equal_only_if_open_at_the_same_end(open: tuple[int | None, int | None]):
    both = {name: make_space(change(GRIP, open=end)) for name, end in zip("ab", open, strict=True)}
    if None in open:
        with pytest.raises(ValueError, match="does not say at which end its gripper is open"):
            merge_spaces(both, "action")
    else:
        [whole] = merge_spaces(both, "action").groups
        assert (whole.low, whole.high, whole.open) == (-1, 1, 1)


@pytest.mark.parametrize("end", [-1, 1, None])
def test_equal_grippers_are_unchanged(end: int | None):
    alike = change(GRIP, open=end, unit="rad")
    assert merge_spaces({"a": make_space(alike), "b": make_space(alike)}, "action").groups == (alike,)


def test_a_range_is_kept_only_if_all_declare_it():
    near, far = change(HAND, low=-1, high=1), change(HAND, low=-2, high=1)
    for spaces, expected in (
        ((near, near), (-1, 1)),
        ((near, far), (None, None)),
        ((near, HAND), (None, None)),
        ((HAND, near), (None, None)),
    ):
        [whole] = merge_spaces(dict(zip("ab", map(make_space, spaces), strict=True)), "action").groups
        assert (whole.low, whole.high) == expected
        assert (whole.mode, whole.kind, whole.size, whole.unit) == ("delta", "position", 3, "m")


def test_a_frame_is_compared_over_all_robots():
    base = change(HAND, frame="base")
    assert (
        merge_spaces({"a": make_space(HAND), "b": make_space(base), "c": make_space(HAND)}, "action").groups[0].frame
        == "base"
    )
    with pytest.raises(ValueError, match=r"different things in a and c: frame 'base' and 'tool'"):
        merge_spaces(
            {"a": make_space(HAND), "b": make_space(base), "c": make_space(change(HAND, frame="tool"))}, "action"
        )
