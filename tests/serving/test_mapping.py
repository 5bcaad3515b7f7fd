"""Observations are mapped to the robot's keys, and actions to the client's convention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anyvla.config import ConfigError, build
from anyvla.robot.embodiment import Embodiment
from anyvla.serving.limits import ServerLimits
from anyvla.serving.mapping import DEFAULTS, ClientMapping, Translator


def gripper(low: float, high: float, open: float | None) -> dict[str, Any]:
    return {"name": "gripper", "size": 1, "kind": "gripper", "low": low, "high": high, "open": open}


def robot(*action: dict[str, Any]) -> Embodiment:
    groups = [{"name": "position", "size": 3, "kind": "position"}, {"name": "fingers", "size": 2}]
    keys = {"name": "r", "cameras": ["corner", "wrist", "top"], "control_hz": 5}
    return build(Embodiment, {**keys, "proprio": {"groups": groups}, "action": {"groups": list(action)}})


POSITION = {"name": "position", "size": 3, "kind": "position"}
ARM = robot(POSITION, gripper(-1, 1, -1))


def picture(*corners: tuple[int, int, int]) -> dict[str, Any]:
    """Return an image of 2 rows and 3 columns. `corners`: the upper left, upper right and lower left pixel."""
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 0], pixels[0, 2], pixels[1, 0] = corners
    return {"__ndarray__": True, "dtype": "|u1", "shape": [2, 3, 3], "data": memoryview(pixels.tobytes())}


RED, GREEN, BLUE = (200, 10, 20), (30, 210, 40), (50, 60, 220)
PICTURES = {"a": picture(RED, GREEN, BLUE), "b": picture(GREEN, BLUE, RED), "c": picture(BLUE, RED, GREEN)}
STATES = [0.1, -2.0, 3.14159265, 4.5, -0.0625]


def observe(mapping: ClientMapping, payload: dict[str, Any], limits: ServerLimits | None = None) -> Any:
    return Translator(mapping, ARM, limits).request(payload).observation()


@pytest.mark.parametrize("order", ["abc", "cab", "bca"])
@pytest.mark.parametrize(
    "cameras", [{"corner": "b", "wrist": "c", "top": "a"}, {"top": "a", "wrist": "c", "corner": "b"}]
)
def test_cameras_are_matched_by_name_whatever_the_order(cameras: dict[str, str], order: str) -> None:
    images = {name: PICTURES[name] for name in order}
    shown = observe(ClientMapping(cameras=cameras), {"images": images, "states": STATES, "task_description": "go"})
    assert set(shown.images) == {"corner", "wrist", "top"}
    for camera, (upper_left, upper_right, lower_left) in {
        "corner": (GREEN, BLUE, RED),
        "wrist": (BLUE, RED, GREEN),
        "top": (RED, GREEN, BLUE),
    }.items():
        pixels = shown.images[camera]
        assert pixels.shape == (2, 3, 3)
        assert [tuple(pixels[at]) for at in ((0, 0), (0, 2), (1, 0))] == [upper_left, upper_right, lower_left]


def test_a_camera_that_the_mapping_does_not_name_has_our_name() -> None:
    """The client's `corner` is not used: the corner camera of the robot is the client's `a`."""
    images = {"corner": PICTURES["c"], "a": PICTURES["a"], "wrist": PICTURES["b"], "top": PICTURES["c"]}
    payload = {"images": images, "states": STATES, "task_description": "go"}
    shown = observe(ClientMapping(cameras={"corner": "a"}), payload)
    assert {camera: tuple(pixels[0, 0]) for camera, pixels in shown.images.items()} == {
        "corner": RED,
        "wrist": GREEN,
        "top": BLUE,
    }


def test_the_proprio_keeps_its_order_and_the_precision_of_float32() -> None:
    payload = {"images": PICTURES, "task_description": "go", "states": STATES}
    proprio = observe(ClientMapping(cameras={"corner": "a", "wrist": "b", "top": "c"}), payload).proprio
    assert proprio.dtype == np.float32
    assert proprio.tolist() == [np.float32(0.1), -2.0, np.float32(3.14159265), 4.5, -0.0625]


@pytest.mark.parametrize("states", [[], [0.5], STATES[:4], [*STATES, 1.0], [*STATES[:4], float("nan")]])
def test_proprio_of_another_size_or_with_nan_is_refused(states: list[float]) -> None:
    payload = {"images": PICTURES, "task_description": "go", "states": states}
    with pytest.raises(ValueError, match=f"has {len(states)} numbers, 5 finite ones are needed: position 3, fingers 2"):
        observe(ClientMapping(cameras={"corner": "a", "wrist": "b", "top": "c"}), payload)


def test_the_keys_of_the_mapping_are_read_and_no_others() -> None:
    mapping = ClientMapping(cameras={"corner": "a", "wrist": "b", "top": "c"}, proprio="joints", instruction="prompt")
    payload = {"images": PICTURES, "joints": STATES, "prompt": "press it"}
    others = {"states": [9.0] * 5, "task_description": "another"}
    request = Translator(mapping, ARM).request(payload | others)
    assert request.instruction == "press it"
    assert request.proprio.tolist() == pytest.approx(STATES)
    for missing in ("joints", "prompt"):
        with pytest.raises(ValueError, match=f"no '?{missing}"):
            Translator(mapping, ARM).request({k: v for k, v in (payload | others).items() if k != missing})


def test_an_instruction_may_be_as_long_as_its_limit() -> None:
    mapping, limits = (
        ClientMapping(cameras={"corner": "a", "wrist": "b", "top": "c"}),
        ServerLimits(instruction_characters=9),
    )
    payload = {"images": PICTURES, "states": STATES}
    assert Translator(mapping, ARM, limits).request({**payload, "task_description": "123456789"})
    with pytest.raises(ValueError, match="has 10 characters; at most 9"):
        Translator(mapping, ARM, limits).request({**payload, "task_description": "1234567890"})


@pytest.mark.parametrize(
    ("ours", "theirs", "commands"),
    [  # (low, high, open) of the robot; (open, closed) of the client; ours: theirs
        ((-1, 1, -1), (1.0, 0.0), {-1: 1, 1: 0, 0: 0.5, -0.5: 0.75}),
        ((-1, 1, 1), (1.0, 0.0), {1: 1, -1: 0, 0.5: 0.75}),
        ((0, 1, 1), (-1.0, 1.0), {1: -1, 0: 1, 0.25: 0.5}),  # LIBERO takes -1 for open
        ((0, 1, 0), (-1.0, 1.0), {0: -1, 1: 1, 0.25: -0.5}),
        ((0, 0.08, 0.08), (0.0, 255.0), {0.08: 0, 0: 255, 0.02: 191.25}),  # m between the fingers; bits
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_the_gripper_is_converted_from_the_robots_ends_to_the_clients(
    ours: tuple[float, float, float], theirs: tuple[float, float], commands: dict[float, float], first: bool
) -> None:
    """The gripper may be any dim. The other dims and the policy's chunk do not change."""
    groups = [gripper(*ours), POSITION] if first else [POSITION, gripper(*ours)]
    translator = Translator(ClientMapping(gripper=theirs), robot(*groups))
    for command, expected in commands.items():
        action = np.array([command, 1, -2, 3] if first else [1, -2, 3, command], np.float32)
        kept = action.copy()
        converted = translator.action(action)
        assert converted.tolist() == pytest.approx([expected, 1, -2, 3] if first else [1, -2, 3, expected])
        assert converted.dtype == np.float32
        assert (action == kept).all()


def test_without_a_gripper_in_the_mapping_an_action_is_sent_as_it_is() -> None:
    action = np.array([0.5, -2, 3, -0.25], np.float32)
    assert Translator(ClientMapping(), ARM).action(action).tolist() == [0.5, -2, 3, -0.25]


def test_impossible_conversions_and_infinite_actions_are_refused() -> None:
    with pytest.raises(ValueError, match="open and closed are both 1"):
        ClientMapping(gripper=(1.0, 1.0))
    with pytest.raises(ConfigError, match="the mapping names the camera 'front'; the policy has corner, wrist, top"):
        Translator(ClientMapping(cameras={"front": "x"}), ARM)
    for lacking in (robot(POSITION, gripper(-1, 1, None)), robot(POSITION)):
        with pytest.raises(ConfigError, match="the mapping converts a gripper"):
            Translator(ClientMapping(gripper=(1.0, 0.0)), lacking)
    for number in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="not finite; it is not sent"):
            Translator(ClientMapping(), ARM).action(np.array([0, number, 0, 0], np.float32))


def test_the_robot_of_libero_is_mapped_as_vla_eval_names_its_cameras() -> None:
    """vla-eval's LIBERO benchmark sends `agentview` and, with send_wrist_image, `wrist`; and `states`."""
    mapping = DEFAULTS["libero_panda"]
    assert mapping == ClientMapping(
        cameras={"agentview": "agentview", "eye_in_hand": "wrist"}, proprio="states", instruction="task_description"
    )
    assert mapping.gripper is None
