"""Positions in the close-up, and the object that visitors move."""

from __future__ import annotations

import numpy as np
import pytest

from anyvla_sim.metaworld.benchmark import MetaWorld
from anyvla_sim.metaworld.environment import close_up_view
from anyvla_sim.metaworld.moving import BEYOND_M
from anyvla_sim.projection import Projection
from anyvla_sim.rendering import Ornament

pytestmark = pytest.mark.simulator("metaworld")
TASKS = ("drawer-open", "window-close", "door-open", "button-press-topdown")


@pytest.fixture(scope="module")
def robot():
    benchmark = MetaWorld(render="fast")
    yield benchmark.make("half-open")
    benchmark.close()


def test_points_are_where_they_are_drawn(robot):
    """The pixels that a small ball changes are where `project` says."""
    robot.reset("button-press-topdown", 0)
    without = robot.close_up(240, 320).astype(int)
    point = np.array([0.15, 0.62, 0.05])
    robot.simulation.factors.ornaments = [Ornament("sphere", (0.012,) * 3, tuple(point), (1.0, 0.0, 1.0))]
    changed = np.abs(robot.close_up(240, 320).astype(int) - without).max(-1) > 30
    rows, columns = np.nonzero(changed)
    assert 10 < len(rows) < 500
    seen = np.array([columns.mean() + 0.5, rows.mean() + 0.5]) / [320, 240]
    sim = robot.simulation.sim
    projection = Projection(sim.model, sim.data, close_up_view(240, 320))
    np.testing.assert_allclose(projection.project(point[None])[0], seen, atol=0.01)
    np.testing.assert_allclose(projection.unproject(seen, point[2]), point, atol=0.01)
    robot.simulation.factors.ornaments = []


def test_the_gripper_goes_where_its_path_is_drawn(robot):
    robot.reset("drawer-open", 3)
    actions = np.tile(np.array([0.5, 0.4, 0.3, -1.0], np.float32), (12, 1))
    path = robot.foresee(actions)
    assert path.shape == (13, 2)
    before = robot.simulation.sim.tcp_center.copy()
    for action in actions:
        robot.step(action)
    for _ in range(6):  # the arm lags behind its command
        robot.step(np.array([0, 0, 0, -1], np.float32))
    arrived = robot.foresee(np.zeros((1, 4), np.float32))[0]
    assert np.linalg.norm(robot.simulation.sim.tcp_center - before) > 0.1
    assert np.linalg.norm(arrived - path[-1]) < 0.25 * np.linalg.norm(path[-1] - path[0])


@pytest.mark.parametrize("task", TASKS)
def test_the_object_moves_where_it_is_dragged_within_its_range(robot, task):
    robot.reset(task, 1)
    sim = robot.simulation.sim
    start, target, at = np.array(sim.obj_init_pos), np.array(sim._target_pos), robot.locate()
    assert ((at > 0) & (at < 1)).all()
    assert robot.move(np.array([0.02, 0.01]))
    moved = robot.locate() - at
    assert np.dot(moved, [0.02, 0.01]) > 0
    for _ in range(40):
        robot.move(np.array([0.2, 0.0]))
    assert not robot.move(np.array([0.2, 0.0]))  # the end of its range
    np.testing.assert_allclose(sim._target_pos - target, sim.obj_init_pos - start, atol=1e-6)
    low, high = sim._random_reset_space.low[:2], sim._random_reset_space.high[:2]
    assert (sim.obj_init_pos[:2] >= low - BEYOND_M - 1e-6).all()
    assert (sim.obj_init_pos[:2] <= high + BEYOND_M + 1e-6).all()


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_still_reaches_the_goal_of_a_moved_object(robot, task):
    robot.reset(task, 1)
    robot.move(np.array([0.06, 0.03]))
    for _ in range(100):
        if robot.step(robot.expert(task)).get(task):
            return
    pytest.fail("the goal was not reached")


@pytest.mark.parametrize("task", TASKS)
def test_a_reset_puts_the_object_back(robot, task):
    robot.reset(task, 2)
    picture, state = robot.close_up(64, 64), robot.simulation.sim._get_obs()
    robot.move(np.array([0.1, 0.05]))
    robot.reset(task, 2)
    np.testing.assert_array_equal(robot.close_up(64, 64), picture)
    np.testing.assert_array_equal(robot.simulation.sim._get_obs(), state)


def test_a_loose_object_moves_and_its_goal_stays():
    benchmark = MetaWorld(render="fast")
    robot = benchmark.make("mt10")
    robot.reset("pick-place", 0)
    sim = robot.simulation.sim
    goal, at = sim._target_pos.copy(), robot.locate()
    assert robot.move(np.array([0.03, 0.0]))
    assert robot.locate()[0] > at[0] + 0.01
    np.testing.assert_array_equal(sim._target_pos, goal)
    benchmark.close()
