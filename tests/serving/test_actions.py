"""Actions that a client sends come back as the robot writes them: the inverse of what clients get."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anyvla.config import build
from anyvla.robot.embodiment import Embodiment
from anyvla.serving.mapping import ClientMapping, Translator

ARM = build(
    Embodiment,
    {
        "name": "arm",
        "cameras": ["c"],
        "control_hz": 5,
        "proprio": {"groups": [{"name": "p", "size": 1}]},
        "action": {
            "groups": [
                {"name": "position", "size": 3, "kind": "position", "unit": "m"},
                {"name": "turn", "size": 3, "kind": "rotation", "rotation": "axis_angle", "unit": "rad"},
                {"name": "gripper", "size": 1, "kind": "gripper", "low": -1, "high": 1, "open": -1},
            ]
        },
    },
)
MINE = np.array([[0.1, -0.2, 0.3, 0.0, 0.0, np.pi / 2, -1.0], [0.0, 0.05, 0.0, 0.3, -0.2, 0.1, 0.5]], np.float32)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"gripper": (0.0, 1.0)},
        {"gripper": (255.0, 0.0)},
        {"action_units": {"position": "mm"}},
        {"action_rotation": "euler"},
        {"gripper": (1.0, 0.0), "action_units": {"position": "mm"}, "action_rotation": "euler"},
    ],
)
def test_own_actions_are_the_inverse_of_what_a_client_gets(keys: dict[str, Any]) -> None:
    translator = Translator(ClientMapping(**keys), ARM)
    theirs = translator.their_actions(MINE)
    if keys:
        assert np.abs(theirs - MINE).max() > 0.01
    np.testing.assert_allclose(translator.own_actions(theirs), MINE, atol=1e-6)


def test_each_conversion_is_undone() -> None:
    """A quarter turn about z, 30 mm, and a gripper at 64 of 0 (open) to 256."""
    mapping = ClientMapping(gripper=(0.0, 256.0), action_units={"position": "mm"}, action_rotation="euler")
    theirs = np.array([[30.0, 0.0, -30.0, 0.0, 0.0, np.pi / 2, 64.0]], np.float32)
    own = Translator(mapping, ARM).own_actions(theirs)
    np.testing.assert_allclose(own, [[0.03, 0, -0.03, 0, 0, np.pi / 2, -0.5]], atol=1e-6)


@pytest.mark.parametrize("shape", [(7,), (2, 6), (0, 0), (1, 2, 7)])
def test_actions_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(K, 7\) is needed: position 3, turn 3, gripper 1"):
        Translator(ClientMapping(), ARM).own_actions(np.zeros(shape, np.float32))
