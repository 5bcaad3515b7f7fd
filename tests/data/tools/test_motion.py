"""The sizes at which a step is a jump and a change is motion, computed by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation as Scipy

from anyvla.data.episode import Episode
from anyvla.data.tools.motion import Scale, find_idle_ends, find_jumps, find_moving_span, find_still_steps
from anyvla.robot.space import ActionSpace, Group
from tests.data.demonstrations import ROBOT, InMemory, demonstration

JOINT = ActionSpace(groups=(Group(name="joint", size=1, kind="joints"),))
ONE = np.ones(1)  # the usual step of a dim, or its range


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


@pytest.mark.parametrize(("step", "found"), [(11.9, False), (12.1, True), (-12.1, True)])
def test_a_jump_is_twelve_times_the_usual_step(step: float, found: bool) -> None:
    findings = list(find_jumps(column(0, 1, 1 + step, 2 + step), JOINT, ONE, "proprio", 5))
    assert [(f.kind, f.episode, "at step 2" in f.text) for f in findings] == ([("jump", 5, True)] if found else [])


def test_the_usual_step_is_the_99th_percentile_of_moving_steps() -> None:
    """One dim has steps of 1 to 100 and rests as often; the others never move."""
    path = np.repeat(np.concatenate([[0], np.cumsum(np.arange(1, 101))]), 2)
    still = np.zeros(len(path))
    rows = np.stack([path, still, still, still], 1).astype(np.float32)
    scale = Scale(InMemory([demonstration(len(rows), proprio=rows, actions=rows[:, ::-1].copy())]))
    assert scale.step["proprio"].tolist() == pytest.approx([99.01, 0, 0, 0])
    assert scale.step["actions"].tolist() == pytest.approx([0, 0, 0, 99.01])
    assert scale.spread["proprio"].tolist() == [5050, 0, 0, 0]
    assert scale.constant == {"proprio": [1, 2, 3], "actions": [0, 1, 2]}


@pytest.mark.parametrize("rotation", ["quaternion_xyzw", "axis_angle"])
@pytest.mark.parametrize(("angle", "found"), [(1.15, False), (1.25, True)])
def test_orientations_jump_by_the_angle_between_them(rotation: str, angle: float, found: bool) -> None:
    """The usual step is a tenth of a radian, so 1.2 radians are a jump."""
    turns = Scipy.from_rotvec(np.cumsum([0.1, 0.1, angle, 0.1])[:, None] * [0, 0.6, 0.8])
    written = turns.as_quat() if rotation == "quaternion_xyzw" else turns.as_rotvec()
    group = Group(name="turn", size=written.shape[1], kind="rotation", rotation=rotation)  # type: ignore[arg-type]
    array, limits = written.astype(np.float32), np.full(written.shape[1], 0.1)
    kinds = [f.kind for f in find_jumps(array, ActionSpace(groups=(group,)), limits, "proprio", 0)]
    assert kinds == (["jump"] if found else [])


def test_a_gripper_may_open_at_once_and_a_quaternion_may_not_change_its_sign() -> None:
    gripper = ActionSpace(groups=(Group(name="gripper", size=1, kind="gripper", low=0, high=100),))
    assert list(find_jumps(column(0, 100, 0), gripper, ONE, "actions", 0)) == []
    turn = ActionSpace(groups=(Group(name="turn", size=4, kind="rotation", rotation="quaternion_xyzw"),))
    flips = np.array([[0, 0, 0, 1], [0, 0, 0, -1], [0, 0, 0, -1], [0, 0, 0, 1]], np.float32)
    [finding] = find_jumps(flips, turn, np.full(4, 0.1), "proprio", 0)
    assert (finding.kind, "at step 1 (2 times)" in finding.text) == ("antipode", True)


def episode(proprio: np.ndarray, actions: np.ndarray, mode: str = "absolute", kind: str = "joints") -> Episode:
    ends = {"low": -1, "high": 1} if kind == "gripper" else {}
    group = Group(name="a", size=1, kind=kind, mode=mode, **ends)  # type: ignore[arg-type]
    robot = dataclasses.replace(ROBOT, proprio=JOINT, action=ActionSpace(groups=(group,)))
    return demonstration(len(proprio), embodiment=robot, proprio=proprio, actions=actions)


REST = column(*[0.0] * 10)
MOVES = column(0, 0, 0, 0.5, 0.7, 0.9, 0.9, 0.9, 0.9, 0.9)  # from step 2 to step 5


@pytest.mark.parametrize(
    ("proprio", "actions", "mode", "kind", "span"),
    [
        (MOVES, REST, "absolute", "joints", (2, 6)),  # the last step at rest before, the first one after
        (REST, MOVES, "absolute", "joints", (2, 6)),
        (REST, MOVES, "delta", "gripper", (2, 6)),
        (
            REST,
            column(0, 0, 0, 0.1, 0, 0.1, 0, 0, 0, 0),
            "delta",
            "joints",
            (3, 7),
        ),  # with the last effect
        (MOVES, column(0, 0.1, 0, 0, 0, 0, 0, 0.1, 0, 0), "delta", "joints", (1, 9)),
        (REST, REST, "delta", "joints", None),
        (REST, column(*[0.1] * 10), "absolute", "joints", None),  # commanded to stay
        (REST, column(*[0.1] * 10), "delta", "joints", (0, 10)),  # commanded to keep moving
        (MOVES[::-1].copy(), REST, "absolute", "joints", (4, 8)),
    ],
)
def test_idle_ends_are_steps_at_which_neither_proprio_nor_actions_move(
    proprio: np.ndarray, actions: np.ndarray, mode: str, kind: str, span: tuple[int, int] | None
) -> None:
    assert find_moving_span(episode(proprio, actions, mode, kind), ONE, ONE) == span


@pytest.mark.parametrize(("size", "moves"), [(0.0049, False), (0.0051, True), (-0.0051, True)])
def test_motion_is_half_a_hundredth_of_the_range(size: float, moves: bool) -> None:
    change = np.where(np.arange(10)[:, None] == 4, np.float32(size), np.float32(0))
    for mode in ("delta", "absolute"):
        assert (find_moving_span(episode(REST, change, mode), ONE, ONE) is not None) == moves
    assert (find_moving_span(episode(change, REST), ONE, ONE) is not None) == moves
    assert find_still_steps(change, ONE).tolist() == [not (moves and t in (3, 4)) for t in range(9)]


@pytest.mark.parametrize("idle", [15, 16])
def test_sixteen_idle_steps_are_worth_cutting(idle: int) -> None:
    moving = np.arange(30, dtype=np.float32)[:, None]
    still = np.zeros((idle, 1), np.float32)
    scale = Scale(InMemory([episode(moving, moving)], episode(moving, moving).embodiment))
    for at in ("begin", "end"):
        rows = np.concatenate([still, moving] if at == "begin" else [moving, still + 29])
        texts = [f.text for f in find_idle_ends(episode(rows, rows), 0, scale)]
        # the first and the last step of the motion show the robot at rest
        assert texts == ([f"nothing moves for {idle} steps at its {at}"] if idle > 15 else [])
