"""Notes about unusual dims of the training data, shown before the first step."""

from __future__ import annotations

from collections.abc import Sequence

from anyvla.config import ConfigError
from anyvla.policy import NormalizationConfig
from anyvla.robot.ranges import compute_scalings, describe_unusual_dims
from anyvla.robot.shared_layout import Robot


def describe_robot_dims(robots: Sequence[Robot], scaling: NormalizationConfig) -> list[str]:
    """Return a sentence for each dim that never varies, that quantiles would cut off, or that has spikes."""
    out = []
    for robot in robots:
        own, of = robot.embodiment, robot.statistics
        found = describe_unusual_dims(own.action, of.action, scaling.action, "action")
        found += describe_unusual_dims(own.proprio, of.proprio, scaling.proprio, "proprio")
        out += [f"{own.name}, {note}" if len(robots) > 1 else note for note in found]
    return out


def check_actions_vary(robots: Sequence[Robot], scaling: NormalizationConfig) -> None:
    """Raise ConfigError for a robot whose actions are all the same: its data teaches nothing."""
    for robot in robots:
        space, of = robot.embodiment.action, robot.statistics.action
        if not any(limit for _, _, limit in compute_scalings(space, of, scaling.action)):
            raise ConfigError(
                f"no action of robot {robot.embodiment.name!r} ever varies in this data, so that there is nothing to "
                "learn: look at them with anyvla data statistics, and choose the column that holds the commands"
            )
