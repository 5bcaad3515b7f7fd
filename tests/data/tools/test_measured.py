from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation as Scipy

from anyvla.data.episode import Episode
from anyvla.data.tools.measured import MeasuredNumbers, Relation, measure, orientation_mode, relate
from anyvla.robot.space import ActionSpace, Group
from tests.data.demonstrations import ROBOT, InMemory, demonstration

ROW = slice(0, 1)


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def test_actions_are_compared_with_the_states_around_them() -> None:
    found = relate([(column(0, 1, 3, 6), column(2, 3, 4, 99)), (column(5, 5), column(5, 7))], ROW, ROW)
    assert found is not None
    # after: 1, 3, 6, 5; changes: 1, 2, 3, 0; actions: 2, 3, 4, 5. The last action of an episode has no state after it.
    assert found.to_next.tolist() == [(1 + 0 + 2 + 0) / 4]
    assert found.to_change.tolist() == [(1 + 1 + 1 + 5) / 4]
    assert found.change.tolist() == [6 / 4]
    assert found.spread.tolist() == pytest.approx([np.std([1, 3, 6, 5])])
    assert found.follows_change.tolist() == pytest.approx([np.corrcoef([2, 3, 4, 5], [1, 2, 3, 0])[0, 1]])
    assert found.follows_next.tolist() == pytest.approx([np.corrcoef([2, 3, 4, 5], [1, 3, 6, 5])[0, 1]])


def test_angles_are_compared_around_the_circle() -> None:
    found = relate([(column(170, -170, -179), column(20, 352, 0))], ROW, ROW, turn=360.0)
    assert found is not None
    assert found.change.tolist() == [(20 + 9) / 2]
    assert found.to_change.tolist() == [(0 + 1) / 2]
    assert found.to_next.tolist() == [(170 + 171) / 2]


def test_two_steps_are_needed() -> None:
    assert relate([(column(1), column(2))], ROW, ROW) is None
    assert relate([], ROW, ROW) is None


def related(**values: list[float]) -> Relation:
    far = {"to_next": [9.0], "to_change": [9.0], "change": [1.0], "spread": [1.0]}
    far |= {"follows_change": [0.0], "follows_next": [0.0]}
    return Relation(**{key: np.array(value) for key, value in (far | values).items()})


@pytest.mark.parametrize(
    ("found", "mode"),
    [
        (related(to_next=[0.29]), "absolute"),  # within 0.3 of the spread
        (related(to_next=[0.31]), None),
        (related(to_next=[0.29], to_change=[0.57]), None),  # not half as far as from the change
        (related(to_change=[0.29]), "delta"),
        (related(to_change=[0.31]), None),
        (related(to_change=[0.29], change=[0.9]), None),
        (related(to_change=[0.29], to_next=[0.57]), None),
        (related(follows_change=[0.71]), "scaled delta"),
        (related(follows_change=[0.69]), None),
        (related(follows_change=[0.9], follows_next=[-0.51]), None),
        (related(to_next=[0.1], spread=[0.0]), None),  # nothing moves
    ],
)
def test_the_mode_that_numbers_show(found: Relation, mode: str | None) -> None:
    assert found.mode == mode


def test_most_of_the_dims_that_move_decide() -> None:
    spread = [1.0, 1.0, 1.0, 0.0]
    three = {"spread": spread, "change": [1.0] * 4, "follows_change": [0.0] * 4, "follows_next": [0.0] * 4}
    assert related(**three, to_next=[0.1, 0.1, 9, 9], to_change=[9] * 4).mode == "absolute"
    assert related(**three, to_next=[0.1, 9, 9, 0.1], to_change=[9] * 4).mode is None


def numbers(*values: float, actions: float = 0.0) -> Episode:
    robot = dataclasses.replace(ROBOT, action=ActionSpace(groups=(Group(name="a", size=1),)))
    rows = np.tile(column(*values), (1, 4))
    return demonstration(len(values), embodiment=robot, proprio=rows, actions=column(*[actions] * len(values)))


def test_ranges_are_of_all_episodes() -> None:
    episodes = [numbers(3, 4), numbers(-7, 0, actions=5), numbers(2, 9), numbers(1, 1)]
    found = measure(InMemory(episodes, episodes[0].embodiment))
    assert found.range_of("proprio", slice(1, 3)) == (-7, 9)
    assert found.range_of("actions", ROW) == (0, 5)
    assert found.values("proprio", ROW)[:, 0].tolist() == [3, 4, -7, 0, 2, 9, 1, 1]
    assert found.values("actions", ROW)[:, 0].tolist() == [0, 0, 5, 5, 0, 0, 0, 0]


def test_numbers_that_are_not_finite_are_ignored() -> None:
    found = MeasuredNumbers(2, 4, 1)
    found.add(0, numbers(np.nan, 3, -np.inf))
    assert found.range_of("proprio", ROW) == (3, 3)
    assert len(found.rows) == 0  # such an episode is not compared with its states
    assert MeasuredNumbers(1, 4, 1).range_of("proprio", ROW) is None


def test_rows_are_kept_of_two_hundred_episodes_spread_evenly() -> None:
    found = MeasuredNumbers(399, 4, 1)
    for index in range(399):
        found.add(index, numbers(index, index))
    assert found.values("proprio", ROW)[::2, 0].tolist() == list(range(0, 399, 2))
    assert found.range_of("proprio", ROW) == (0, 398)


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
    """Near means within 0.3 of the angle between orientations of the data, which is one radian."""
    assert mode(about_z(YAW), about_z(YAW + 0.1 + offset)) == expected


@pytest.mark.parametrize(("turn", "expected"), [(0.1, "delta"), (0.129, "delta"), (0.071, "delta"), (0.131, None)])
def test_actions_near_the_turns_are_deltas(turn: float, expected: str | None) -> None:
    """Near means within 0.3 of a turn, which is a tenth of a radian."""
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


def test_numbers_that_are_no_orientations_show_no_mode() -> None:
    assert mode(np.zeros((5, 4)), about_z(YAW[:5])) is None
    assert mode(about_z(YAW[:1]), about_z(YAW[:1])) is None
    assert orientation_mode([], (TURN, WHOLE), (TURN, WHOLE)) is None
