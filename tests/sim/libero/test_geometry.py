"""Height maps, surfaces and scenes of shapes whose numbers can be worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from anyvla_sim.libero.benchmark import LiberoEnvironment
from anyvla_sim.libero.geometry import (
    OPENING,
    PALM,
    TIP,
    HeightMap,
    SceneGeometry,
    sample_box_surface,
    sample_hand_points,
)

ORIGIN = np.array([0.0, 0.0])


def test_points_of_a_box_are_on_its_surface_and_close() -> None:
    half = np.array([0.02, 0.03, 0.01])
    points = sample_box_surface(half)
    assert np.abs(points).max(0) == pytest.approx(half)
    on_a_face = np.isclose(np.abs(points), half).any(1)
    assert on_a_face.all()
    for axis in range(3):
        for side in (-1, 1):
            face = points[np.isclose(points[:, axis], side * half[axis])]
            other = np.delete(face, axis, 1)
            assert np.abs(other).max(0) == pytest.approx(np.delete(half, axis))
            for column in other.T:
                assert np.diff(np.unique(column.round(9))).max() <= 0.005 + 1e-9


def test_a_height_map_keeps_the_highest_point_of_each_cell() -> None:
    field = HeightMap(ORIGIN, 0.1)
    field.raise_to(np.array([[0.502, 0.302, 0.4], [0.503, 0.303, 0.2], [0.502, 0.302, 0.3]]))
    lift = field.required_rise(np.array([[0.502, 0.302, 0.25]]), np.array([[0.0, 0.0], [0.02, 0.0], [0.0, -0.02]]))
    assert lift == pytest.approx([0.15, -0.15, -0.15])


def test_the_point_that_must_rise_most_decides() -> None:
    field = HeightMap(ORIGIN, 0.0)
    field.raise_to(np.array([[0.5, 0.5, 0.3]]))
    moving = np.array([[0.4, 0.5, 0.2], [0.45, 0.5, 0.25], [0.4, 0.4, 0.5]])
    assert field.required_rise(moving, np.array([[0.1, 0.0], [0.05, 0.0], [0.3, 0.0]])) == pytest.approx(
        [0.1, 0.05, -0.2]
    )


def test_points_below_an_overhang_cannot_rise() -> None:
    field = HeightMap(ORIGIN, 0.0)
    field.raise_to(np.array([[0.5, 0.5, 0.3], [0.5, 0.5, 0.25], [0.7, 0.7, 0.1]]))
    below = np.array([[0.5, 0.5, 0.1], [0.5, 0.5, 0.24], [0.5, 0.5, 0.4], [0.51, 0.5, 0.1], [0.6, 0.5, 0.1]])
    assert field.is_under(below).tolist() == [True, False, False, True, False]


def test_the_hand_has_two_fingers_below_its_palm() -> None:
    points = sample_hand_points(np.eye(3), OPENING)
    assert points[:, 2].max() == pytest.approx(TIP)  # z goes out of the palm
    fingers = points[points[:, 2] > PALM + 0.001]
    assert np.abs(fingers[:, 0]).min() == pytest.approx(OPENING / 2)
    assert (fingers[:, 0] > 0).sum() == (fingers[:, 0] < 0).sum()
    turn = Rotation.from_euler("xyz", [0.4, 0.2, 1.0]).as_matrix()
    assert sample_hand_points(turn, OPENING) == pytest.approx(np.array([turn @ point for point in points]))


def make_scene(**parts: Any) -> SceneGeometry:
    """Return a scene that has only these parts."""
    found = SceneGeometry.__new__(SceneGeometry)
    vars(found).update(parts)
    return found


def test_points_are_turned_and_moved_with_their_geom() -> None:
    quarter = Rotation.from_euler("z", 90, degrees=True).as_matrix()
    tilted = Rotation.from_euler("xyz", [0.3, 0.2, 0.1]).as_matrix()
    data = SimpleNamespace(
        geom_xmat=np.stack([quarter.ravel(), tilted.ravel()]), geom_xpos=np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]])
    )
    local = np.array([[0.1, 0.0, 0.0], [0.0, 0.2, 0.0], [0.1, 0.2, 0.3]])
    there = make_scene(data=data, _geom=np.array([0, 0, 1]), _body=np.array([5, 6, 7]), _local=local)
    assert there.points([5]) == pytest.approx(np.array([[1.0, 2.1, 3.0]]))
    assert there.points([6, 7]) == pytest.approx(np.array([[0.8, 2.0, 3.0], tilted @ local[2] + (0, 0, 1)]))
    around = there.points_around(np.array([1.0, 2.0, 3.0]), 0.15, without=[6])
    assert around == pytest.approx(np.array([[1.0, 2.1, 3.0]]))


def test_something_is_held_when_both_fingers_touch_it() -> None:
    def is_held(*contacts: tuple[int, int]) -> bool:
        first, second = (np.array([pair[k] for pair in contacts], int) for k in (0, 1))
        return make_scene(
            data=SimpleNamespace(contact=SimpleNamespace(geom1=first, geom2=second)),
            model=SimpleNamespace(geom_bodyid=np.array([0, 1, 2, 9, 8])),  # geoms 1 and 2: fingers, 3: bowl, 4: table
            _fingers=[{1}, {2}],
        ).is_held({9})

    assert is_held((1, 3), (3, 2))
    assert not is_held((1, 3))
    assert not is_held((1, 3), (1, 3), (2, 4))
    assert not is_held((1, 4), (2, 4), (3, 4))


@pytest.mark.simulator("libero")
def test_a_scene_reads_the_hand_the_table_and_a_drawer(libero_plate: LiberoEnvironment) -> None:
    libero_plate.reset("put_the_bowl_on_the_plate", 0)
    env = libero_plate.simulation.env
    found = SceneGeometry(env)
    position, rotation = found.hand_pose()
    assert position == pytest.approx(env._get_observations()["robot0_eef_pos"], abs=0.01)
    assert rotation[:, 2] == pytest.approx([0, 0, -1], abs=0.2)  # it points down
    bowl, turn = found.pose("akita_black_bowl_1")
    assert bowl == pytest.approx(env._get_observations()["akita_black_bowl_1_pos"], abs=0.01)
    assert np.linalg.det(turn) == pytest.approx(1)
    points = found.points(found.body_ids("akita_black_bowl_1"))
    assert np.abs(points.mean(0) - bowl).max() < 0.03
    floor = found.floor_height(bowl + (0, 0, 0.05))
    assert points[:, 2].min() == pytest.approx(floor, abs=0.01)
    assert found.finger_opening() == pytest.approx(0.08, abs=0.003)  # a Panda's open hand
    assert found.hand_velocity() == pytest.approx(np.zeros(3), abs=0.02)
    assert found.base == pytest.approx(np.array(env.robots[0].base_pos)[:2])
    drawer = found.joint("wooden_cabinet_1_top_level")
    assert (drawer.slides, drawer.body) == (True, "wooden_cabinet_1_cabinet_top")
    assert drawer.value == pytest.approx(0, abs=0.005)
    assert abs(drawer.axis[2]) < 1e-6
