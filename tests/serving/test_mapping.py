"""Observations are mapped to the robot's keys, and actions to the client's convention."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from anyvla.config import ConfigError, build
from anyvla.robot.embodiment import Embodiment
from anyvla.serving.limits import ServerLimits
from anyvla.serving.mapping import ClientMapping, Translator


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
        converted = translator.their_actions(action)
        assert converted.tolist() == pytest.approx([expected, 1, -2, 3] if first else [1, -2, 3, expected])
        assert converted.dtype == np.float32
        assert (action == kept).all()


def test_without_a_gripper_in_the_mapping_an_action_is_sent_as_it_is() -> None:
    action = np.array([0.5, -2, 3, -0.25], np.float32)
    assert Translator(ClientMapping(), ARM).their_actions(action).tolist() == [0.5, -2, 3, -0.25]


def test_impossible_conversions_and_infinite_actions_are_refused() -> None:
    with pytest.raises(ValueError, match="open and closed are both 1"):
        ClientMapping(gripper=(1.0, 1.0))
    with pytest.raises(ConfigError, match="the camera 'wirst', which the policy has not: did you mean 'wrist'"):
        Translator(ClientMapping(cameras={"wirst": "x"}), ARM)
    for lacking in (robot(POSITION, gripper(-1, 1, None)), robot(POSITION)):
        with pytest.raises(ConfigError, match=r"the mapping converts (a|the) gripper"):
            Translator(ClientMapping(gripper=(1.0, 0.0)), lacking)
    for number in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="not finite; it is not sent"):
            Translator(ClientMapping(), ARM).their_actions(np.array([0, number, 0, 0], np.float32))


def test_several_grippers_have_the_clients_convention_each() -> None:
    left, right = ({**gripper(0, 1, 1), "name": name} for name in ("left", "right"))
    converted = Translator(ClientMapping(gripper=(-1.0, 1.0)), robot(left, POSITION, right)).their_actions(
        np.array([1, 5, 6, 7, 0.25], np.float32)
    )
    assert converted.tolist() == [-1, 5, 6, 7, 0.5]


def test_a_gripper_of_the_same_convention_keeps_its_bits() -> None:
    action = np.array([1, 2, 3, 0.123456789], np.float32)
    same = Translator(ClientMapping(gripper=(-1.0, 1.0)), ARM).their_actions(action)
    assert (same == action).all()


@pytest.mark.parametrize(
    "values",
    [
        {"observation/a": PICTURES["a"], "observation/wrist": PICTURES["b"], "top": PICTURES["c"]},  # openpi: flat keys
        {"observation": {"a": PICTURES["a"], "wrist": PICTURES["b"]}, "top": PICTURES["c"]},
        {"observation": {"a": PICTURES["a"]}, "observation/wrist": PICTURES["b"], "top": PICTURES["c"]},
    ],
)
def test_a_key_is_a_path(values: dict[str, Any]) -> None:
    """A camera without a key is looked for by its name: in the map of images, and at the top."""
    mapping = ClientMapping(
        cameras={"corner": "observation/a"}, images="observation", proprio="observation/state", instruction="prompt"
    )
    shown = observe(mapping, {**values, "observation/state": STATES, "prompt": "go"})
    assert {camera: tuple(pixels[0, 0]) for camera, pixels in shown.images.items()} == {
        "corner": RED,
        "wrist": GREEN,
        "top": BLUE,
    }


def test_a_missing_key_is_named_with_the_keys_that_came() -> None:
    mapping = ClientMapping(images="observation", proprio="observation/state", instruction="prompt")
    sent: dict[str, Any] = {
        "observation": dict.fromkeys(ARM.cameras, PICTURES["a"]) | {"state": STATES},
        "prompt": "go",
        "more": [{"depth": 1}, 2],
    }
    got = "observation/corner, observation/wrist, observation/top, observation/state, prompt, more/0/depth, more/1"
    paths = got.split(", ")
    for missing in ("observation/wrist", "observation/state", "prompt"):
        short = {**sent, "observation": {k: v for k, v in sent["observation"].items() if f"observation/{k}" != missing}}
        if missing == "prompt":
            del short["prompt"]
        rest = ", ".join(path for path in paths if path != missing)
        with pytest.raises(ValueError, match=rf"has no .*{missing.rpartition('/')[2]}'.* it has {rest}:"):
            Translator(mapping, ARM).request(short)


def test_the_keys_that_came_take_little_memory_whatever_their_length() -> None:
    """A message of 1 MB can repeat a path of nearly 1 MB before each of 3,000 leaves."""
    values: Any = {str(i): i for i in range(3000)}
    for _ in range(15):
        values = {"k" * 65000: values}
    tracemalloc.start()
    with pytest.raises(ValueError, match="and 2992 more"):
        Translator(ClientMapping(), ARM).request(values)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_a_client_that_sends_no_instruction_gets_the_default_one() -> None:
    """openpi's ALOHA clients send none. An empty one is a fault of the client."""
    translator = Translator(ClientMapping(default_instruction="fold the shirt"), ARM)
    sent = {"images": dict(zip(ARM.cameras, PICTURES.values(), strict=True)), "states": STATES}
    assert translator.request(sent).instruction == "fold the shirt"
    assert translator.request({**sent, "task_description": "stop"}).instruction == "stop"
    with pytest.raises(ValueError, match="has no task_description: it must say what to do, in text; got ''"):
        translator.request({**sent, "task_description": ""})


def test_a_policy_without_proprio_does_not_ask_for_it() -> None:
    sent = {"images": dict(zip(ARM.cameras, PICTURES.values(), strict=True)), "task_description": "go"}
    request = Translator(ClientMapping(), ARM, reads_proprio=False).request(sent)
    assert request.proprio.tolist() == [0] * 5
    with pytest.raises(ValueError, match="has no 'states'"):
        Translator(ClientMapping(), ARM).request(sent)


def test_actions_are_converted_to_the_clients_units_and_rotations() -> None:
    """CALVIN's relative actions are in 0.02 m and 0.05 rad; another client adds meters and radians to the pose."""
    position = {**POSITION, "unit": "0.02 m", "mode": "delta"}
    turn = {"name": "rotation", "size": 3, "kind": "rotation", "rotation": "euler", "unit": "rad", "mode": "delta"}
    units = Translator(
        ClientMapping(action_units={"position": "cm", "rotation": "deg"}), robot(position, turn, gripper(-1, 1, 1))
    )
    action = np.array([1, -0.5, 0, np.pi, 0, -np.pi / 2, 0.75], np.float32)
    assert units.their_actions(action).tolist() == pytest.approx([2, -1, 0, 180, 0, -90, 0.75])
    turned = Translator(ClientMapping(action_rotation="axis_angle"), robot(position, turn)).their_actions(
        np.array([1, 2, 3, 0, np.pi / 2, 0.0], np.float32)
    )
    assert turned.tolist() == pytest.approx([1, 2, 3, 0, np.pi / 2, 0], abs=1e-6)
    both = Translator(ClientMapping(action_rotation="axis_angle"), robot(position, turn)).their_actions(
        np.array([0, 0, 0, np.pi / 2, np.pi / 2, 0.0], np.float32)
    )
    third = 2 * np.pi / 3 / np.sqrt(3)  # 120 degrees about the diagonal
    assert both.tolist() == pytest.approx([0, 0, 0, third, third, -third], abs=1e-6)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"action_units": {"positoin": "m"}}, "the action group 'positoin', which the policy has not: did you mean"),
        ({"action_units": {"position": "deg"}}, "action group 'position': 'm' and 'deg' are no units of the same"),
        ({"action_units": {"gripper": "m"}}, "the unit '' is not known"),
        ({"action_rotation": "rot6d"}, "of 3 dims to rot6d, which has 6"),
        ({"actions": {"x": "position[0]"}}, "actions do not name each of the 7 dims once"),
        ({"actions": {"x": "position[3]"}}, "but the group has 3 dims"),
        ({"proprio": {"position": "a", "fingrs": "b"}}, "the proprio group 'fingrs', which the policy has not: did"),
        ({"proprio": {"position": "a"}}, "no key for the proprio group 'fingers', which the policy reads"),
    ],
)  # fmt: skip
def test_a_mapping_that_does_not_fit_the_robot_is_refused(keys: dict[str, Any], message: str) -> None:
    turn = {"name": "rotation", "size": 3, "kind": "rotation", "rotation": "euler", "unit": "rad", "mode": "delta"}
    with pytest.raises(ConfigError, match=message):
        Translator(build(ClientMapping, keys), robot({**POSITION, "unit": "m"}, turn, gripper(-1, 1, 1)))


def test_actions_are_split_by_the_clients_names() -> None:
    """GR00T's clients get each part of an action under a name of its own."""
    chunk = np.arange(8, dtype=np.float32).reshape(2, 4)
    whole = Translator(ClientMapping(), ARM).split(chunk)
    assert {name: part.tolist() for name, part in whole.items()} == {
        "position": [[0, 1, 2], [4, 5, 6]],
        "gripper": [[3], [7]],
    }
    names = {"z": "position[2]", "xy": "position[0:2]", "hand": "gripper"}
    parts = Translator(ClientMapping(actions=names), ARM).split(chunk)
    assert {name: part.tolist() for name, part in parts.items()} == {
        "z": [[2], [6]],
        "xy": [[0, 1], [4, 5]],
        "hand": [[3], [7]],
    }
