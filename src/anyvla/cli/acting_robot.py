"""Choose the robot that acts, and how many actions of a chunk it executes, from a command's options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyvla.config import ConfigError

if TYPE_CHECKING:
    from anyvla.policy import VLA
    from anyvla.robot.embodiment import Embodiment


def choose_acting_robot(vla: VLA, name: str | None, execute: int | None) -> Embodiment:
    """Return the robot of `--robot`, or the only one of the policy. `execute`: that of `--execute`, which is checked.

    Raises ConfigError for a robot that the policy has not, for none if it has several, and for more actions than it
    predicts at once.
    """
    robots = {r.embodiment.name: r.embodiment for r in vla.robots}
    if name is None and len(robots) == 1:
        name = next(iter(robots))
    if name not in robots:
        raise ConfigError(f"which robot? --robot one of {', '.join(robots)}")
    if execute is not None and not 1 <= execute <= vla.config.chunk:
        raise ConfigError(f"--execute {execute}: the policy predicts {vla.config.chunk} actions at once")
    return robots[name]
