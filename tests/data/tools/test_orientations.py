from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation as Scipy

from anyvla.data.tools.orientations import orientation_mode
from anyvla.robot.space import Group

TURN = Group(name="turn", size=4, kind="rotation", rotation="quaternion_xyzw")
WHOLE = slice(0, 4)
YAW = np.arange(21) / 10  # two orientations ten steps apart are one radian apart


def about_z(angles: np.ndarray) -> np.ndarray:
    return Scipy.from_rotvec(angles[:, None] * [0, 0, 1]).as_quat()


def mode(states: np.ndarray, actions: np.ndarray) -> str | None:
    return orientation_mode([(states, actions)], (TURN, WHOLE), (TURN, WHOLE))


@pytest.mark.parametrize(
    ("offset", "expected"), [(0.0, "absolute"), (0.29, "absolute"), (-0.29, "absolute"), (0.31, None), (-0.31, None)]
)
def test_actions_near_the_next_orientations_are_absolute(offset: float, expected: str | None) -> None:
    """Near: within 0.3 of the angle between orientations of the data, which is one radian."""
    assert mode(about_z(YAW), about_z(YAW + 0.1 + offset)) == expected


@pytest.mark.parametrize(("turn", "expected"), [(0.1, "delta"), (0.129, "delta"), (0.071, "delta"), (0.131, None)])
def test_actions_near_the_turns_are_deltas(turn: float, expected: str | None) -> None:
    """Near: within 0.3 of a turn, which is a tenth of a radian."""
    assert mode(about_z(YAW), about_z(np.full(21, turn))) == expected


def test_turns_may_be_along_the_axes_of_the_base_or_of_the_tool() -> None:
    path = Scipy.random(12, random_state=0)
    before, after = path[:-1], path[1:]
    last = Scipy.identity()
    for turns, expected in (
        (after * before.inv(), "delta"),
        (before.inv() * after, "delta"),
        (before * after.inv(), None),
        (after.inv() * before, None),
    ):
        assert mode(path.as_quat(), Scipy.concatenate([turns, last]).as_quat()) == expected


def test_each_group_is_read_in_its_own_convention_and_unit() -> None:
    degrees = Group(name="turn", size=3, kind="rotation", rotation="euler", unit="deg")
    states = np.concatenate([np.ones((21, 2)), about_z(YAW)], 1)
    actions = np.zeros((21, 4))
    actions[:, 3] = np.rad2deg(YAW + 0.1)
    assert orientation_mode([(states, actions)], (TURN, slice(2, 6)), (degrees, slice(1, 4))) == "absolute"


def test_no_orientation_shows_no_mode() -> None:
    assert mode(np.zeros((5, 4)), about_z(YAW[:5])) is None
    assert mode(about_z(YAW[:1]), about_z(YAW[:1])) is None
    assert orientation_mode([], (TURN, WHOLE), (TURN, WHOLE)) is None
