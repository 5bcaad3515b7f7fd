from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from anyvla.play.stage import HEIGHT, WIDTH, Stage
from anyvla_sim.base import BenchmarkUnusable
from anyvla_sim.spec import BENCHMARKS, Spec

pytestmark = pytest.mark.simulator("metaworld")


def test_the_worker_answers_all_that_a_page_asks():
    stage = Stage(Spec(BENCHMARKS["metaworld"]), "half-open")
    try:
        facts = stage.describe()
        assert facts.embodiment.control_hz == 40
        assert facts.disturbances == ("push", "open")
        stage.reset("window-open", 4)
        assert Image.open(io.BytesIO(stage.draw())).size == (WIDTH, HEIGHT)
        assert set(stage.observe().images) == set(facts.embodiment.cameras)
        path = stage.foresee(np.ones((8, 4), np.float32))
        assert path.shape == (9, 2)
        assert ((path > 0) & (path < 1)).all()
        before = stage.locate()
        assert stage.move((0.03, 0.0))
        assert stage.locate()[0] > before[0]
        assert stage.step(np.zeros(4, np.float32)) == {"window-open": False, "window-close": False}
        assert stage.disturb("open", 0)
        with pytest.raises(BenchmarkUnusable, match="drawer-open"):
            stage.reset("drawer-opne", 0)
    finally:
        stage.close()
