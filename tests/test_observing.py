"""Observations of two robots are read into the layout that they share, and checked against each robot's own data."""

from __future__ import annotations

import dataclasses
import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from anyvla.config import build
from anyvla.observing import Observer, ProprioChecker
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.normalize import Statistics
from anyvla.robot.shared_layout import Robot, SharedLayout
from anyvla.robot.space import ActionSpace, Group
from anyvla.robot.views import ViewConfig
from anyvla.types import Observation
from tests.small import robot

HAND = Group(name="hand", size=2, kind="position", unit="m")
GRIP = Group(name="gripper", size=1, kind="gripper", low=0, high=255)


def make_robot(name: str, cameras: str, groups: tuple[Group, ...], proprio: dict[str, list[float]]) -> Robot:
    space = ActionSpace(groups=groups)
    actions = {key: [100.0] * space.size for key in ("min", "max", "q01", "q99")}  # of the other vector
    embodiment = Embodiment(name=name, cameras=tuple(cameras.split()), proprio=space, action=space, control_hz=10)
    return Robot(embodiment, Statistics(actions, proprio, "f"))


def ranges(*ends: tuple[float, float]) -> dict[str, list[float]]:
    low, high = zip(*ends, strict=True)
    return {"min": list(low), "max": list(high)}


ARM = make_robot("arm", "corner wrist", (HAND,), ranges((-1, 1), (0, 2)))
CLAW = make_robot("claw", "wrist top", (GRIP, HAND), ranges((0, 0), (10, 14), (10, 10)))


def is_implausible(of: Robot, dim: int, value: float, usual: tuple[float, ...]) -> bool:
    vector = np.array(usual, np.float32)
    vector[dim] = value
    found = ProprioChecker(of).find_implausible(vector)
    assert not np.delete(found, dim).any()
    return bool(found[dim])


@pytest.mark.parametrize(
    ("of", "dim", "usual", "low", "high"),
    [
        # -1 to 1: a scale of 2, so 3 times 2 beyond either end
        (ARM, 0, (0, 1), -7, 7),
        # 0 to 2
        (ARM, 1, (0, 1), -6, 8),
        # recorded at 0 only, but declared from 0 to 255
        (CLAW, 0, (0, 12, 10), -765, 1020),
        # 10 to 14: the largest magnitude is 14
        (CLAW, 1, (0, 12, 10), -32, 56),
        # never moves: the magnitude of 10
        (CLAW, 2, (0, 12, 10), -20, 40),
        # two hundredths of a meter, beside 2 meters in the same group: 0.3 of the group's scale
        (make_robot("flat", "c", (HAND,), ranges((0, 2), (0, 0.02))), 1, (1, 0), -1.8, 1.82),
        # only percentiles are known, and a gripper's declared range widens them
        (make_robot("q", "c", (GRIP,), {"q01": [-45.0], "q99": [200.0]}), 0, (0,), -45 - 900, 255 + 900),
    ],
)
def test_a_value_three_scales_beyond_the_range_is_implausible(
    of: Robot, dim: int, usual: tuple[float, ...], low: float, high: float
) -> None:
    slack = 1e-3 * (high - low)
    for within in (low + slack, high - slack):
        assert not is_implausible(of, dim, within, usual)
    for beyond in (low - slack, high + slack):
        assert is_implausible(of, dim, beyond, usual)


def test_nothing_is_implausible_without_a_known_range() -> None:
    unknown = make_robot("unknown", "c", (HAND,), {})
    assert not is_implausible(unknown, 0, 1e9, (0, 0))


def make_observer(**view: Any) -> Observer:
    robots = [ARM, CLAW]
    return Observer(robots, SharedLayout([r.embodiment for r in robots]), build(ViewConfig, view))


def observe(cameras: dict[str, int], proprio: list[float], size: tuple[int, int] = (4, 4)) -> Observation:
    images = {camera: np.full((*size, 3), level, np.uint8) for camera, level in cameras.items()}
    return Observation(images, np.array(proprio, np.float32))


def test_each_robot_is_read_into_its_own_part_of_the_layout() -> None:
    """The layout: cameras corner, wrist, top; proprio hand (2), gripper (1)."""
    both = [observe({"top": 1, "wrist": 2}, [9, 7, 8]), observe({"wrist": 3, "corner": 4, "extra": 5}, [5, 6])]
    assert make_observer().read_proprio(both, [1, 0]).tolist() == [[7, 8, 9], [5, 6, 0]]
    images = make_observer().read_images(both, [1, 0])
    assert images.shape == (2, 3, 4, 4, 3)
    assert images[..., 0, 0, 0].tolist() == [[0, 2, 1], [4, 3, 0]]


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 2), (2, 1), ()])
def test_proprio_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="observation 4: proprio has shape"):
        ProprioChecker(ARM).read(np.zeros(shape, np.float32)[...], 4)


def test_images_are_resized_to_the_view() -> None:
    """4 x 8 in 8 x 8: two black rows above and below."""
    [images] = make_observer(size=[8, 8], fit="pad").read_images(
        [observe({"corner": 200, "wrist": 100}, [0, 0], (4, 8))], [0]
    )
    assert images[0, :, 0, 0].tolist() == [0, 0, 200, 200, 200, 200, 0, 0]
    assert images[1, :, 0, 0].tolist() == [0, 0, 100, 100, 100, 100, 0, 0]
    assert not images[2].any()


def make_session(robot: int) -> Any:
    return SimpleNamespace(robot=robot, warned=set())


def test_each_session_is_checked_against_its_robots_data() -> None:
    far = observe({}, [0, 30])  # for the arm; for the claw's hand 30 is not
    make_observer().check_plausible(
        [observe({}, [0, 30, 30]), observe({}, [0, 1])], [make_session(1), make_session(0)], "error"
    )
    with pytest.raises(ValueError, match=r"observation 1: proprio of robot 'arm' is far outside .* dim 1 is 30"):
        make_observer().check_plausible([observe({}, [0, 30, 30]), far], [make_session(1), make_session(0)], "error")


def test_a_session_is_warned_of_each_dim_once(caplog: pytest.LogCaptureFixture) -> None:
    of, one, other = make_observer(), make_session(0), make_session(0)
    far, both = observe({}, [0, 30]), observe({}, [30, 30])
    with caplog.at_level(logging.WARNING, "anyvla.observing"):
        for given, asked, warnings in ((far, one, 1), (far, one, 0), (both, one, 1), (both, one, 0), (far, other, 1)):
            caplog.clear()
            of.check_plausible([given], [asked], "warn")
            assert len(caplog.records) == warnings
    assert (one.warned, other.warned) == ({("proprio", 0), ("proprio", 1)}, {("proprio", 1)})


def test_messages_name_the_dims_as_the_data_does() -> None:
    known = robot()
    [group] = known.embodiment.proprio.groups
    named = dataclasses.replace(group, names=("ee_x", "ee_y", "ee_z"))
    arm = dataclasses.replace(known.embodiment, proprio=ActionSpace(groups=(named,)))
    proprio = ProprioChecker(dataclasses.replace(known, embodiment=arm))
    with pytest.raises(ValueError, match=r"group 'position', dim 1 \(ee_y\) is nan"):
        proprio.read(np.array([0, np.nan, 0], np.float32), 0)


def test_committed_actions_are_placed_by_the_dims_of_their_robot() -> None:
    """The layout has the dims hand, hand, gripper; the claw's own order is gripper, hand, hand."""
    arm, claw = np.array([[1, 2], [3, 4]], np.float32), np.array([[5, 6, 7]], np.float32)
    sessions = [make_session(robot) for robot in (1, 0, 0)]
    actions, mask = make_observer().read_committed([claw, None, arm], sessions, 3, "error")
    assert actions.tolist() == [
        [[6, 7, 5], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[1, 2, 0], [3, 4, 0], [0, 0, 0]],
    ]
    assert mask.tolist() == [[True, False, False], [False] * 3, [True, True, False]]


def test_a_session_is_warned_of_each_dim_of_committed_actions_once(caplog: pytest.LogCaptureFixture) -> None:
    """A warning of a dim of proprio is none of the same dim of the action."""
    of, session = make_observer(), make_session(0)
    of.check_plausible([observe({}, [0, 30])], [session], "warn")
    far = np.array([[0, 0], [0, 1e6], [0, 1e6]], np.float32)
    with pytest.raises(ValueError, match=r"0: a committed action of .* dim 1 is 1e\+06 .*implausible: warn"):
        of.read_committed([far], [session], 3, "error")
    with caplog.at_level(logging.WARNING, "anyvla.observing"):
        for warnings in (1, 0):
            caplog.clear()
            actions, _ = of.read_committed([far], [session], 3, "warn")
            assert len(caplog.records) == warnings
    assert actions[0, 1].tolist() == [0, 1e6, 0]
    assert session.warned == {("proprio", 1), ("a committed action", 1)}
