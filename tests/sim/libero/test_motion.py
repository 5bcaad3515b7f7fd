"""How an expert's hand moves, from numbers that can be worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from anyvla_sim.libero.fixtures import MoveJoint, rotation_about
from anyvla_sim.libero.geometry import HeightMap, Joint
from anyvla_sim.libero.motion import CLOSE, METERS, OPEN, RADIANS, limit_norm, move_over, move_straight, rotation_vector

DOWN = Rotation.from_euler("xyz", [np.pi, 0, 0.3]).as_matrix()


def make_scene(position: Any = (0.0, 0.0, 0.0), rotation: np.ndarray = DOWN, velocity: Any = (0.0, 0.0, 0.0)) -> Any:
    """Return a scene in which only the hand is known."""
    return SimpleNamespace(hand_pose=lambda: (np.array(position), rotation), hand_velocity=lambda: np.array(velocity))


def test_units_are_those_of_the_controller() -> None:
    """robosuite's osc_pose.json: output_max is 0.05 m and 0.5 rad; its PandaGripper opens on -1."""
    assert (METERS, RADIANS, OPEN, CLOSE) == (0.05, 0.5, -1.0, 1.0)


def test_rotation_vectors_and_rotations_about_an_axis_agree_with_scipy() -> None:
    for rotation in Rotation.random(20, random_state=0):
        vector = rotation.as_rotvec()
        angle = float(np.linalg.norm(vector))
        assert rotation_vector(rotation.as_matrix()) == pytest.approx(vector, abs=1e-6)
        assert rotation_about(vector / angle, angle) == pytest.approx(rotation.as_matrix())
    assert rotation_vector(np.eye(3)).tolist() == [0, 0, 0]


def test_limit_norm_keeps_the_direction() -> None:
    assert limit_norm(np.array([3.0, 0.0, 4.0]), 1.0) == pytest.approx([0.6, 0, 0.8])
    assert limit_norm(np.array([0.3, 0.0, 0.4]), 1.0) == pytest.approx([0.3, 0, 0.4])


def test_move_straight_commands_the_remaining_way_in_the_controllers_units() -> None:
    """A centimeter to go: 2 x 0.01 m / 0.05 m along x and y, 3.5 x along z."""
    scene = make_scene((0.1, 0.2, 0.3))
    action = move_straight(scene, np.array([0.11, 0.19, 0.305]), None, CLOSE)
    assert action.tolist() == pytest.approx([0.4, -0.4, 0.35, 0, 0, 0, 1])
    assert np.linalg.norm(move_straight(scene, np.ones(3), None, OPEN)[:3]) == pytest.approx(0.75)
    assert move_straight(scene, np.ones(3), None, OPEN)[6] == -1


def test_move_straight_accounts_for_the_controllers_lag() -> None:
    """At 0.1 m/s the hand is 5 mm further when the command takes effect."""
    action = move_straight(make_scene(velocity=(0.1, 0.0, -0.1)), np.array([0.01, 0.0, 0.0]), None, OPEN)
    assert action[:3].tolist() == pytest.approx([2 * 0.005 / 0.05, 0, 3.5 * 0.005 / 0.05])


@pytest.mark.parametrize("axis", [(0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (0.6, 0.0, 0.8)])
def test_hands_are_turned_about_the_axes_of_the_world(axis: tuple[float, float, float]) -> None:
    """2.5 x 0.08 rad / 0.5 rad, about an axis of the world, whichever way the hand points."""
    goal = Rotation.from_rotvec(0.08 * np.array(axis)).as_matrix() @ DOWN
    expected = 0.4 * np.array(axis)
    assert move_straight(make_scene(), np.zeros(3), goal, OPEN)[3:6] == pytest.approx(expected, abs=1e-6)
    field = HeightMap(np.array([-0.6, -0.7]), 0.0)
    action = move_over(make_scene(), field, np.array([[0.0, 0.0, 0.2]]), np.zeros(3), goal, OPEN)
    assert action[3:6] == pytest.approx(expected, abs=1e-6)
    far = Rotation.from_rotvec(1.5 * np.array(axis)).as_matrix() @ DOWN
    assert np.linalg.norm(move_straight(make_scene(), np.zeros(3), far, OPEN)[3:6]) == pytest.approx(0.5)


def move_point(height: float, shift: Any, wall: float = 0.0, velocity: Any = (0.0, 0.0, 0.0)) -> np.ndarray:
    """Move a point that is `height` over a table, with a wall 6 to 10 cm ahead along x."""
    field = HeightMap(np.array([-0.6, -0.7]), 0.0)
    if wall:
        xs, ys = np.meshgrid(np.arange(0.06, 0.1, 0.004), np.arange(-0.1, 0.1, 0.004))
        field.raise_to(np.stack([xs.ravel(), ys.ravel(), np.full(xs.size, wall)], 1))
        field.raise_to(np.stack([xs.ravel(), ys.ravel(), np.zeros(xs.size)], 1))
    point = np.array([[0.0, 0.0, height]])
    return move_over(make_scene(velocity=velocity), field, point, np.array(shift), DOWN, CLOSE)


def test_the_way_over_a_free_table_is_level_and_fast() -> None:
    action = move_point(0.2, (0.3, 0.0, -0.19))
    assert action[0] > 0.5
    assert abs(action[1]) < 1e-9
    assert action[6] == CLOSE
    assert np.linalg.norm(action[:3]) <= 0.75 + 1e-6


def test_a_wall_ahead_is_climbed_before_it_is_reached() -> None:
    blocked, free = move_point(0.05, (0.3, 0.0, -0.04), wall=0.15), move_point(0.2, (0.3, 0.0, -0.19), wall=0.15)
    assert blocked[2] > 0.5  # up
    assert blocked[0] < 0.05  # and no further until it is high enough
    assert free[0] > 0.4
    aside = move_point(0.05, (0.0, 0.3, -0.04), wall=0.15)
    assert aside[2] < 0.5  # the wall is not on this way
    assert aside[1] > 0.4


def test_the_hand_goes_down_over_its_goal() -> None:
    down = move_point(0.2, (0.0, 0.0, -0.1))
    assert down[2] == pytest.approx(-0.75)
    assert np.abs(down[:2]).max() < 1e-9
    assert move_point(0.2, (0.0, 0.0, -0.005))[2] == pytest.approx(-0.005 * 3.5 / 0.05)
    slowed = move_point(0.2, (0.0, 0.0, -0.005), velocity=(0.0, 0.0, -0.1))  # it falls already
    assert slowed[2] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_hand_goes_ahead_along_the_joint_that_it_moves(sign: float) -> None:
    """3 cm along a drawer's axis, or 0.25 rad about a knob's axis, which does not pass through the origin."""
    move = MoveJoint.__new__(MoveJoint)
    move._sign = sign
    axis, anchor, goal = np.array([0.0, -1.0, 0.0]), np.array([0.5, 0.2, 0.9]), np.array([0.6, 0.2, 0.95])
    position, turn = move._move_along_joint(Joint(0.0, axis, anchor, slides=True, body="drawer"), goal, DOWN)
    assert position == pytest.approx([0.6, 0.2 - sign * 0.03, 0.95])
    assert np.array_equal(turn, DOWN)
    knob = Joint(0.0, np.array([0.0, 0.0, 1.0]), anchor, slides=False, body="knob")
    position, turn = move._move_along_joint(knob, goal, DOWN)
    by = Rotation.from_euler("z", sign * 0.25).as_matrix()
    assert position == pytest.approx([0.5 + 0.1 * np.cos(0.25), 0.2 + sign * 0.1 * np.sin(0.25), 0.95])
    assert turn == pytest.approx(by @ DOWN)
