from __future__ import annotations

import pytest

from anyvla.config import ConfigError
from anyvla.play import visit_pool
from anyvla.play.checkpoints import SHIPPED, read_checkpoint
from anyvla_sim.base import NotInstalled
from tests.play import fakes


def make(*, count=1):
    played = [read_checkpoint(SHIPPED, "shipped")] * count
    return visit_pool.VisitPool(None, "half-open", "metaworld/half-open", played, "cpu", False)


def test_a_missing_simulator_is_named_with_its_extra(monkeypatch):
    def refuse(spec, suite):
        raise NotInstalled('Meta-World is not installed; pip install "anyvla-sim[metaworld]"')

    monkeypatch.setattr(visit_pool, "SimulatedRobot", refuse)
    with pytest.raises(ConfigError, match=r"anyvla-sim\[metaworld\]"):
        make().prepare()


def test_the_stages_that_did_start_are_closed_if_one_does_not(monkeypatch):
    started = []

    def start(spec, suite):
        if started:
            raise NotInstalled("no")
        started.append(fakes.CartRobot())
        return started[-1]

    monkeypatch.setattr(visit_pool, "SimulatedRobot", start)
    with pytest.raises(ConfigError):
        make(count=2).prepare()
    assert started[0].closed


def test_a_robot_of_another_suite_is_refused_and_its_stage_closed(monkeypatch):
    robot = fakes.CartRobot()
    monkeypatch.setattr(visit_pool, "SimulatedRobot", lambda spec, suite: robot)
    with pytest.raises(ConfigError, match="another robot"):
        make().prepare()
    assert robot.closed
