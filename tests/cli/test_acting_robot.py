from __future__ import annotations

from dataclasses import replace

import pytest

from anyvla.cli.acting_robot import choose_acting_robot
from anyvla.config import ConfigError
from anyvla.policy import VLA
from anyvla.robot.shared_layout import Robot
from tests import small


def policy(*names: str) -> VLA:
    return VLA(small.model(), [Robot(replace(small.embodiment(), name=n), small.statistics()) for n in names])


def test_a_policy_of_several_robots_needs_a_name() -> None:
    assert choose_acting_robot(policy("left"), None, None).name == "left"
    two = policy("left", "right")
    assert choose_acting_robot(two, "right", 1).name == "right"
    for name in (None, "", "middle"):
        with pytest.raises(ConfigError, match=r"which robot\? --robot one of left, right"):
            choose_acting_robot(two, name, None)


def test_no_more_actions_are_executed_than_predicted() -> None:
    one = policy("left")
    chunk = one.config.chunk
    choose_acting_robot(one, None, chunk)
    for execute in (0, -1, chunk + 1):
        with pytest.raises(ConfigError, match=f"--execute {execute}: the policy predicts {chunk} actions at once"):
            choose_acting_robot(one, None, execute)
