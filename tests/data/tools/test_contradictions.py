from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from anyvla.data.tools.findings import Finding
from anyvla.data.tools.quality import check
from anyvla.robot.rotations import convert, from_quaternions, relative
from anyvla.robot.space import ROTATION_DIMS, ActionSpace, Group
from tests.data.demonstrations import ROBOT, InMemory, demonstration

LENGTH = 60
JOINTS = ("pan", "lift")
NOTHING = ActionSpace(groups=())


def walk(dims: int, scale: float, seed: int, episode: int) -> np.ndarray:
    """Return smooth motion within +-scale: (LENGTH, dims)."""
    t = np.linspace(0, 5, LENGTH)[:, None]
    return scale * np.sin(t + np.random.default_rng((seed, episode)).uniform(0, 6, dims))


def found(action: Group, proprio: Group | None, actions: Any, states: Any = None) -> list[Finding]:
    """Return the findings of three episodes. `actions` and `states` map an episode number to (LENGTH, D)."""
    robot = dataclasses.replace(
        ROBOT,
        action=ActionSpace(groups=(action,)),
        proprio=ActionSpace(groups=(proprio,) if proprio is not None else ()),
    )
    episodes = [
        demonstration(
            LENGTH,
            i,
            embodiment=robot,
            actions=actions(i).astype(np.float32),
            proprio=(states(i) if states is not None else np.zeros((LENGTH, 0))).astype(np.float32),
        )
        for i in range(3)
    ]
    findings = check(InMemory(episodes, robot), frames="none")
    return [f for f in findings if f.kind in ("meaning", "gripper")]


def only(*arguments: Any) -> Finding:
    [finding] = found(*arguments)
    return finding


def test_joints_of_60_radians():
    group = Group(name="joints", size=2, kind="joints", unit="rad", names=JOINTS)
    finding = only(group, None, lambda i: walk(2, 1, 1, i) * [1, 60])
    assert (finding.severity, finding.episode) == ("error", None)
    assert "actions, group 'joints', dim 1 (lift), goes from -60 to" in finding.text
    assert "9.5" in finding.text
    assert "unit: deg" in finding.fix
    assert found(dataclasses.replace(group, unit="deg"), None, lambda i: walk(2, 1, 1, i) * [1, 60]) == []
    assert only(group, None, lambda i: walk(2, 8, 1, i)).severity == "warning"  # a joint may turn without end


def from_to(low: float, high: float) -> Any:
    """Return a function that returns an episode's rows: one dim that goes from `low` to `high`."""
    return lambda i: np.linspace(low, high, LENGTH)[:, None]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("unit", "kind", "largest", "severity"),
    [
        ("rad", "joints", 6.4, None),  # a turn is 6.283, and a fiftieth more
        ("rad", "joints", 6.42, "warning"),
        ("rad", "joints", 12.5, "warning"),
        ("rad", "joints", 12.6, "error"),  # two turns
        ("deg", "joints", 719, None),
        ("deg", "joints", 721, "error"),
        ("deg", "joints", 3.3, None),
        ("deg", "joints", 3.2, "warning"),  # half a turn in radians is 3.142, and a fiftieth more
        ("deg", "joints", 0.51, "warning"),
        ("deg", "joints", 0.49, None),  # hardly moves
        ("normalized", "joints", 104.9, None),
        ("normalized", "joints", 105.1, "error"),
        ("m", "position", 9.9, None),
        ("m", "position", 10.1, "warning"),
        ("m", "position", 50.1, "error"),
        ("mm", "position", 900, None),
    ],
)
def test_the_size_at_which_numbers_contradict_their_unit(
    unit: str, kind: Any, largest: float, severity: str | None, sign: int
) -> None:
    group = Group(name="a", size=1, kind=kind, unit=unit)
    findings = found(group, None, from_to(*sorted((-0.1 * sign, largest * sign))))
    assert [f.severity for f in findings] == ([severity] if severity else [])


@pytest.mark.parametrize(
    ("kind", "low", "high", "severity"),
    [
        ("joints", -1.03, 1.0, None),  # a range of 2, and a fiftieth of it
        ("joints", -1.05, 1.0, "error"),
        ("joints", -1.0, 1.05, "error"),
        ("gripper", -0.05, 0.06, None),
        ("gripper", -0.04, 0.05, "warning"),  # less than a twentieth of the range
        ("gripper", 0.0, 0.0, None),  # a gripper that never moves is reported as constant
    ],
)
def test_the_size_at_which_numbers_contradict_their_range(
    kind: Any, low: float, high: float, severity: str | None
) -> None:
    findings = found(Group(name="a", size=1, kind=kind, low=-1, high=1), None, from_to(low, high))
    assert [f.severity for f in findings] == ([severity] if severity else [])


@pytest.mark.parametrize(("length", "fine"), [(1.0, True), (0.985, True), (1.015, True), (0.97, False), (1.03, False)])
def test_a_quaternion_has_length_one_within_a_fiftieth(length: float, fine: bool) -> None:
    group = Group(name="turn", size=4, kind="rotation", rotation="quaternion_xyzw")
    assert (found(group, None, lambda i: length * turning(i)) == []) == fine


def test_one_rare_episode_counts():
    group = Group(name="joints", size=2, kind="joints", unit="rad")
    assert only(group, None, lambda i: walk(2, 60 if i == 2 else 1, 1, i)).severity == "error"


def test_degrees_that_are_radians():
    group = Group(name="joints", size=2, kind="joints", unit="deg")
    assert only(group, None, lambda i: walk(2, 1.5, 1, i)).severity == "warning"


def test_normalized_ends_at_100():
    group = Group(name="joints", size=2, kind="joints", unit="normalized")
    assert found(group, None, lambda i: walk(2, 100, 1, i)) == []
    assert "ends at -100 and 100" in only(group, None, lambda i: walk(2, 170, 1, i)).text


def test_meters_of_400():
    group = Group(name="position", size=3, kind="position", unit="m")
    assert "unit: mm" in only(group, None, lambda i: walk(3, 400, 1, i)).fix


@pytest.mark.parametrize(("low", "high", "severity"), [(0, 1, "error"), (0, 0.3, "warning")])
def test_a_gripper_that_uses_little_of_its_range(low, high, severity):
    group = Group(name="gripper", size=1, kind="gripper", low=0, high=100, names=("gripper.pos",))
    finding = only(group, None, lambda i: np.where(walk(1, 1, 1, i) > 0, low, high))
    assert finding.severity == severity
    assert f"dim 0 (gripper.pos), goes from {low} to {high}" in finding.text


def test_a_gripper_outside_of_its_range():
    group = Group(name="gripper", size=1, kind="gripper", low=0, high=1, names=("gripper.pos",))
    for action, proprio in ((group, None), (Group(name="other", size=1), group)):
        rows = lambda i: 50 + walk(1, 50, 1, i)  # noqa: E731
        findings = found(action, proprio, rows, rows if proprio else None)
        assert [(f.severity, f.episode) for f in findings] == [("error", 0), ("error", 1), ("error", 2)]
        assert "group 'gripper', dim 0 (gripper.pos), goes from 0" in findings[0].text
        assert "to 100, outside of its declared range 0 to 1" in findings[0].text


def test_joints_outside_of_their_range():
    group = Group(name="joints", size=2, kind="joints", low=-1, high=1)
    assert "outside of its declared range -1 to 1" in found(group, None, lambda i: walk(2, 2, 1, i))[0].text


@pytest.mark.parametrize(
    ("rotation", "make"),
    [
        ("quaternion_xyzw", lambda r: r),
        ("rot6d", lambda r: np.concatenate([r[:, :3], r[:, :3]], 1)),
    ],
)
def test_rotations_of_another_length(rotation, make):
    size = 4 if rotation != "rot6d" else 6
    group = Group(name="rotation", size=size, kind="rotation", rotation=rotation)
    finding = only(group, None, lambda i: make(walk(4, 3, 1, i)))
    assert finding.severity == "error"
    assert f"declared as {rotation}" in finding.text
    assert "group 'rotation'" in finding.text


def test_unit_quaternions_are_fine():
    def rows(i: int) -> np.ndarray:
        q = walk(4, 1, 1, i)
        return q / np.linalg.norm(q, axis=1, keepdims=True)

    assert found(Group(name="rotation", size=4, kind="rotation", rotation="quaternion_xyzw"), None, rows) == []


def test_deltas_that_are_the_next_state():
    state = Group(name="joints", size=2, kind="joints", unit="rad", names=JOINTS)
    action = dataclasses.replace(state, mode="delta")
    states = lambda i: walk(2, 1.5, 1, i)  # noqa: E731
    after = lambda i: np.roll(walk(2, 1.5, 1, i), -1, 0)  # noqa: E731
    finding = only(action, state, after, states)
    assert finding.severity == "error"
    assert "is the next state of proprio 'joints'" in finding.text
    assert finding.fix == "declare mode: absolute"
    assert found(dataclasses.replace(action, mode="absolute"), state, after, states) == []


def test_absolute_targets_that_are_changes():
    state = Group(name="position", size=3, kind="position", unit="m")
    states = lambda i: 0.4 + walk(3, 0.2, 1, i)  # noqa: E731
    change = lambda i: np.diff(states(i), axis=0, append=states(i)[-1:])  # noqa: E731
    finding = only(state, state, change, states)
    assert finding.fix == "declare mode: delta"
    assert found(dataclasses.replace(state, mode="delta"), state, change, states) == []


def test_a_gripper_by_its_name_that_is_declared_as_a_joint():
    group = Group(name="joints", size=2, kind="joints", names=("elbow.pos", "gripper.pos"))
    finding = only(group, None, lambda i: walk(2, 1, 1, i))
    assert finding.severity == "warning"
    assert "dim 1 (gripper.pos), goes from" in finding.text
    plain = dataclasses.replace(group, kind="other")
    assert found(plain, None, lambda i: walk(2, 1, 1, i)) == []  # kind "other" declares no meaning


def test_the_order_of_a_quaternion_by_its_names():
    group = Group(name="r", size=4, kind="rotation", rotation="quaternion_xyzw", names=("qw", "qx", "qy", "qz"))

    def rows(i: int) -> np.ndarray:
        q = walk(4, 1, 1, i)
        return q / np.linalg.norm(q, axis=1, keepdims=True)

    finding = only(group, None, rows)
    assert finding.fix == "declare rotation: quaternion_wxyz"
    assert found(dataclasses.replace(group, rotation="quaternion_wxyz"), None, rows) == []


@pytest.mark.parametrize("unit", ["radians", "rad", "Radian"])
def test_other_spellings_of_units(unit):
    group = Group(name="joints", size=2, kind="joints", unit=unit)
    assert only(group, None, lambda i: walk(2, 60, 1, i)).severity == "error"


def turning(i: int) -> np.ndarray:
    """Return orientations along a smooth path, as quaternions: (LENGTH, 4)."""
    return convert(walk(3, 1.2, 3, i), "axis_angle", "quaternion_xyzw")


@pytest.mark.parametrize("rotation", ["euler", "axis_angle", "rot6d", "quaternion_wxyz"])
def test_rotations_in_another_convention_are_compared_too(rotation):
    size = ROTATION_DIMS[rotation]
    state = Group(name="rotation", size=4, kind="rotation", rotation="quaternion_xyzw")
    action = Group(name="turn", size=size, kind="rotation", rotation=rotation, mode="delta")

    def after(i: int) -> np.ndarray:
        return convert(np.roll(turning(i), -1, 0), "quaternion_xyzw", rotation)

    def turns(i: int) -> np.ndarray:
        q = turning(i)
        return from_quaternions(relative(q, np.roll(q, -1, 0), "tool"), rotation)

    assert only(action, state, after, turning).fix == "declare mode: absolute"
    assert found(action, state, turns, turning) == []
    absolute = dataclasses.replace(action, mode="absolute")
    assert only(absolute, state, turns, turning).fix == "declare mode: delta"
    assert found(absolute, state, after, turning) == []


def test_the_open_end_is_compared_with_the_known_robot():
    group = Group(name="gripper", size=1, kind="gripper", low=0, high=100, open=0, names=("gripper.pos",))
    robot = dataclasses.replace(ROBOT, name="so101_follower", action=ActionSpace(groups=(group,)), proprio=NOTHING)
    rows = [(50 + walk(1, 50, 1, i)).astype(np.float32) for i in range(2)]
    nothing = np.zeros((LENGTH, 0), np.float32)
    episodes = [demonstration(LENGTH, i, embodiment=robot, actions=r, proprio=nothing) for i, r in enumerate(rows)]
    [finding] = [f for f in check(InMemory(episodes, robot), frames="none") if f.kind == "meaning"]
    assert finding.severity == "warning"
    assert "declared open at 0; but LeRobot calibrates this arm to 0 closed, 100 open" in finding.text
