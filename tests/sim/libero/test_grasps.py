"""Grasps of shapes whose best grasp is obvious."""

from __future__ import annotations

import numpy as np
import pytest

from anyvla_sim.libero.geometry import WRIST_RADIUS
from anyvla_sim.libero.grasps import find_grasp, hand_rotation, list_downward_rotations, list_tilted_rotations

TABLE = np.stack(np.meshgrid(np.linspace(-0.3, 0.3, 25), np.linspace(-0.3, 0.3, 25), [0.0]), -1).reshape(-1, 3)
BASE = np.array([-0.5, 0.0])


def make_box(*size: float) -> np.ndarray:
    """Return points (N, 3) on the sides and the top of a box on the table."""
    axes = [np.linspace(-s / 2, s / 2, 15) for s in size[:2]] + [np.linspace(0.001, size[2], 15)]
    points = np.stack(np.meshgrid(*axes), -1).reshape(-1, 3)
    shell = (np.abs(points[:, :2]) > np.array(size[:2]) / 2 - 1e-9).any(1) | (points[:, 2] > size[2] - 1e-9)
    return points[shell]


def test_a_box_is_held_over_its_narrow_side() -> None:
    found = find_grasp(make_box(0.12, 0.04, 0.06), TABLE, list_downward_rotations(), floor=0.002, base=BASE)
    assert found is not None
    assert found.width == pytest.approx(0.04, abs=0.004)
    assert abs(found.rotation[:, 0] @ (0, 1, 0)) > 0.99  # the fingers close along y
    assert np.linalg.norm(found.position[:2]) < 0.01


def test_a_sheet_on_the_table_cannot_be_held() -> None:
    assert find_grasp(make_box(0.04, 0.04, 0.001), TABLE, list_downward_rotations(), floor=0.012, base=BASE) is None


def test_neighbors_are_not_hit() -> None:
    """A wall along one side leaves no room for a finger there: the hand turns."""
    item = make_box(0.05, 0.05, 0.06)
    wall = make_box(0.3, 0.01, 0.12) + (0, 0.034, 0)
    free = find_grasp(item, TABLE, list_downward_rotations(), floor=0.002, base=BASE)
    beside = find_grasp(item, np.concatenate([TABLE, wall]), list_downward_rotations(), floor=0.002, base=BASE)
    assert free is not None
    assert beside is not None
    assert abs(beside.rotation[:, 0] @ (0, 1, 0)) < 0.1


def test_the_wrist_avoids_high_obstacles() -> None:
    """Fingers and palm fit beside a drawer that hangs over one end; the round wrist above them is wider."""
    item = make_box(0.16, 0.04, 0.06)
    drawer = make_box(0.2, 0.3, 0.1) + (0.14, 0, 0.2)
    found = find_grasp(item, np.concatenate([TABLE, drawer]), list_downward_rotations(), floor=0.002, base=BASE)
    assert found is not None
    assert abs(found.rotation[:, 0] @ (0, 1, 0)) > 0.9
    assert 0.04 - found.position[0] > WRIST_RADIUS


def test_a_failed_grasp_is_not_repeated_at_once() -> None:
    item = make_box(0.16, 0.04, 0.06)
    first = find_grasp(item, TABLE, list_downward_rotations(), floor=0.002, base=BASE)
    assert first is not None
    again = find_grasp(item, TABLE, list_downward_rotations(), floor=0.002, base=BASE, failed=[first.position])
    assert again is not None
    assert np.linalg.norm(again.position - first.position) > 0.02


def test_hands_from_above_point_down_and_cover_half_a_turn() -> None:
    rotations = list_downward_rotations()
    for rotation, _ in rotations:
        assert rotation @ rotation.T == pytest.approx(np.eye(3))
        assert np.linalg.det(rotation) == pytest.approx(1)
        assert rotation[:, 2] == pytest.approx([0, 0, -1])
    assert len(rotations) == 12  # 15 degrees apart; half a turn covers all, as the fingers are alike
    assert min(rotations, key=lambda found: found[1])[0] == pytest.approx(hand_rotation(0))
    assert hand_rotation(0)[:, 0] == pytest.approx([0, 1, 0])  # the fingers close along y
    assert hand_rotation(np.pi / 6)[:, 0] == pytest.approx([-0.5, np.sqrt(3) / 2, 0])  # counterclockwise from above


def test_tilted_hands_lean_towards_their_direction() -> None:
    angles = [0.0, 0.5, np.pi / 2]
    for (rotation, _), angle in zip(list_tilted_rotations(np.array([0.0, 1.0, 0.0]), angles), angles, strict=True):
        assert rotation[:, 2] == pytest.approx([0, np.sin(angle), -np.cos(angle)])
        assert rotation @ rotation.T == pytest.approx(np.eye(3))
        assert np.linalg.det(rotation) == pytest.approx(1)
