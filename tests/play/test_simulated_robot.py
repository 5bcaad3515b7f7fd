from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from anyvla.play.simulated_robot import HEIGHT, WIDTH, SimulatedRobot
from anyvla_sim.base import BenchmarkUnusable
from anyvla_sim.spec import BENCHMARKS, Spec

pytestmark = pytest.mark.simulator("metaworld")


def test_the_worker_answers_all_that_a_page_asks():
    robot = SimulatedRobot(Spec(BENCHMARKS["metaworld"]), "half-open")
    try:
        facts = robot.describe()
        assert facts.embodiment.control_hz == 40
        assert facts.disturbances == ("push", "open")
        robot.reset("window-open", 4)
        assert Image.open(io.BytesIO(robot.draw())).size == (WIDTH, HEIGHT)
        assert set(robot.observe().images) == set(facts.embodiment.cameras)
        path = robot.foresee(np.ones((8, 4), np.float32))
        assert path.shape == (9, 2)
        assert ((path > 0) & (path < 1)).all()
        before = robot.locate()
        assert robot.move((0.03, 0.0))
        assert robot.locate()[0] > before[0]
        assert robot.step(np.zeros(4, np.float32)) == {"window-open": False, "window-close": False}
        assert robot.disturb("open", 0)
        with pytest.raises(BenchmarkUnusable, match="drawer-open"):
            robot.reset("drawer-opne", 0)
    finally:
        robot.close()
