from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anyvla_sim.base import Observation
from anyvla_sim.client import ClientError, Robot, WrongObservation
from tests.sim.client.scripted import DESCRIPTION, observation

ROBOT = Robot.read(DESCRIPTION)


def test_the_description_is_read() -> None:
    robot = Robot.read(DESCRIPTION | {"cameras": {"front": [48, 64]}, "added": "later"})
    assert (robot.name, robot.cameras, robot.control_hz) == ("arm", {"front": (48, 64)}, 10)
    assert [(group.name, group.size) for group in robot.action] == [("position", 3), ("gripper", 1)]
    assert robot.proprio[0].meaning == {"kind": "position", "unit": "m"}
    assert (robot.chunk, robot.execute, robot.action_size) == (4, 2, 4)


@pytest.mark.parametrize("change", [{"cameras": None}, {"chunk": "many"}, {"action": [{"name": "a"}]}, {"robot": ...}])
def test_a_description_of_another_form_is_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(ClientError, match="description of its robot cannot be read"):
        Robot.read({k: v for k, v in (DESCRIPTION | change).items() if v is not ...})
    with pytest.raises(ClientError):
        Robot.read(None)


def test_an_observation_may_be_of_the_contract_or_a_dict() -> None:
    given = observation()
    groups = {"gripper": given["proprio"][3], "position": given["proprio"][:3].tolist()}  # in any order
    forms = [given, Observation(given["images"], given["proprio"]), {**given, "proprio": groups}]
    for form in forms:
        read = ROBOT.read_observation(form)
        assert np.array_equal(read.images["hand"], given["images"]["hand"])
        assert read.proprio.dtype == np.float32
        assert read.proprio == pytest.approx(given["proprio"])


def test_cameras_that_the_policy_does_not_read_are_not_sent() -> None:
    given = observation()
    given["images"]["side"] = "anything"
    assert set(ROBOT.read_observation(given).images) == {"front", "hand"}


def test_images_may_differ_in_size_if_the_policy_resizes_them() -> None:
    given = observation()
    given["images"]["hand"] = np.zeros((5, 5, 3), np.uint8)
    Robot.read(DESCRIPTION | {"cameras": {"front": [8, 8], "hand": [8, 8]}}).read_observation(given)
    with pytest.raises(WrongObservation, match="must have one size"):
        ROBOT.read_observation(given)


RGB = np.zeros((12, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": ...}, "has no 'images', it has proprio"),
        ({"images": RGB}, "images is a dict of camera: image, not ndarray"),
        ({"images": {"front": RGB}}, "lacks the camera 'hand'; the policy reads front, hand and .* has front"),
        ({"front": RGB.tolist()}, "camera 'front': .* got list; give np.asarray"),
        ({"front": RGB.transpose(2, 0, 1)}, r"channels first; give image.transpose\(1, 2, 0\)"),
        ({"front": np.zeros((12, 16, 4), np.uint8)}, "an alpha channel"),
        ({"front": RGB[..., 0]}, r"got uint8 \(12, 16\)"),
        ({"front": RGB[:0]}, r"got uint8 \(0, 16, 3\)"),
        ({"front": RGB / 255}, r"got float64 \(12, 16, 3\)"),
        ({"proprio": ...}, r"proprio \(position 3, gripper 1\) must have 4 numbers, got 0"),
        ({"proprio": np.zeros(5)}, "must have 4 numbers, got 5"),
        ({"proprio": ["a"] * 4}, "must be numbers"),
        ({"proprio": np.array([0, 1, np.nan, 0])}, "not finite"),
        ({"proprio": np.array([0, 1, 1e300, 0])}, "not finite"),
        ({"proprio": {"position": np.zeros(3)}}, "proprio lacks the group 'gripper', it has position"),
        ({"proprio": {"position": np.zeros(4), "gripper": 0}}, "proprio 'position' must have 3 numbers, got 4"),
    ],
)
def test_an_observation_that_does_not_fit_names_its_fault(change: dict[str, Any], message: str) -> None:
    given = observation() | {k: v for k, v in change.items() if k != "front"}
    if "front" in change:
        given["images"]["front"] = change["front"]
    with pytest.raises(WrongObservation, match=message):
        ROBOT.read_observation({k: v for k, v in given.items() if v is not ...})


def test_something_else_is_no_observation() -> None:
    with pytest.raises(WrongObservation, match="an observation is an Observation or a dict, not tuple"):
        ROBOT.read_observation((1, 2))
