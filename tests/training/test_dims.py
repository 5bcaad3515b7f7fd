from __future__ import annotations

import dataclasses

from anyvla.policy import NormalizationConfig
from anyvla.robot.shared_layout import Robot
from anyvla.training.dims import describe_robot_dims
from tests.small import embodiment, statistics


def with_spikes() -> Robot:
    """The first dim of action and of proprio has rare values of 50, far outside of its percentiles."""
    usual = statistics()

    def of(values: dict[str, list[float]]) -> dict[str, list[float]]:
        size = len(values["mean"])
        core = {"q10": [-1.5] * size, "q90": [1.5] * size, "low": [-2.0] * size, "high": [2.0] * size}
        return {**values, **core, "max": [50.0] + [2.0] * (size - 1)}

    spiky = dataclasses.replace(usual, action=of(dict(usual.action)), proprio=of(dict(usual.proprio)))
    return Robot(embodiment(), spiky)


def test_notes_follow_the_scaling_of_their_own_vector() -> None:
    """Only quantiles cut spikes off."""
    of_action = describe_robot_dims([with_spikes()], NormalizationConfig(action="quantile", proprio="minmax"))
    of_proprio = describe_robot_dims([with_spikes()], NormalizationConfig(action="minmax", proprio="quantile"))
    assert [note.partition(" has spikes from -2 to 50")[0] for note in of_action] == ["action group 'position', dim 0"]
    assert [note.partition(" has spikes from -2 to 50")[0] for note in of_proprio] == [
        "proprio group 'position', dim 0"
    ]


def test_notes_name_the_robot_if_there_are_several() -> None:
    other = Robot(dataclasses.replace(embodiment(), name="other"), with_spikes().statistics)
    found = describe_robot_dims([with_spikes(), other], NormalizationConfig(action="quantile", proprio="minmax"))
    assert [note.partition(" has")[0] for note in found] == [
        "small, action group 'position', dim 0",
        "other, action group 'position', dim 0",
    ]
