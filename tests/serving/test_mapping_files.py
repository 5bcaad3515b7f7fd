"""The mappings that ship fit the clients of each protocol; a mapping that does not fit is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyvla.config import ConfigError, build
from anyvla.data.formats.rlds.oxe import find_entry
from anyvla.robot.embodiment import Embodiment
from anyvla.serving.mapping import ClientMapping, Translator
from anyvla.serving.mapping_files import choose_mapping, load_mappings
from anyvla.serving.protocols.registry import load_protocol

OPENPI = {"images": "observation", "proprio": "observation/state", "instruction": "prompt"}
rng = np.random.default_rng(0)


def picture(first: bool = False) -> np.ndarray:
    return rng.integers(0, 255, (3, 8, 6) if first else (8, 6, 3), np.uint8)


def robot(name: str, cameras: list[str], proprio: list[dict[str, Any]], action: list[dict[str, Any]]) -> Embodiment:
    keys = {"name": name, "cameras": cameras, "control_hz": 10}
    return build(Embodiment, {**keys, "proprio": {"groups": proprio}, "action": {"groups": action}})


def move(unit: str = "") -> list[dict[str, Any]]:
    position = {"name": "position", "size": 3, "kind": "position", "mode": "delta", "unit": unit and f"0.02 {unit}"}
    turn = {"name": "rotation", "size": 3, "kind": "rotation", "mode": "delta", "unit": unit and "0.05 rad"}
    return [position, turn]


def gripper(low: float, high: float, open: float, unit: str = "") -> dict[str, Any]:
    return {"name": "gripper", "size": 1, "kind": "gripper", "low": low, "high": high, "open": open, "unit": unit}


def group(name: str, size: int, **keys: Any) -> dict[str, Any]:
    return {"name": name, "size": size, **keys}


LIBERO = robot(
    "libero_panda",
    ["agentview", "eye_in_hand"],
    [group("position", 3), group("rotation", 3), group("fingers", 2)],
    [*move(), gripper(-1, 1, -1)],
)
CALVIN = robot(
    "calvin_panda",
    ["static", "gripper"],
    [
        group("position", 3),
        group("rotation", 3, kind="rotation", rotation="euler", unit="rad"),
        gripper(0, 0.08, 0.08, "m"),
        group("gripper_command", 1),
    ],
    [*move("m"), gripper(-1, 1, 1)],
)
DROID = robot(
    "franka_droid",
    ["primary", "wrist"],
    [group("joints", 7), gripper(0, 1, 1)],
    [group("joints", 7), gripper(0, 1, 1)],
)
ALOHA = robot("aloha", ["cam_high", "cam_left_wrist"], [group("joints", 14)], [group("joints", 14)])
BRIDGE, GOOGLE = (find_entry(n).embodiment for n in ("bridge_orig", "fractal20220817_data"))  # type: ignore[union-attr]


def views(embodiment: Embodiment, count: int = 1) -> Embodiment:
    return dataclasses.replace(embodiment, cameras=embodiment.cameras[:count])


state = list(range(1, 15))
one = {"state/x": 1, "state/y": 2, "state/z": 3}
angles = {"state/roll": 4, "state/pitch": 5, "state/yaw": 6}
language = {"language/annotation.human.action.task_description": "go"}
two = {"image": [picture(), picture()], "lang": "go"}
# protocol, robot, what a client sends, the proprio that the policy gets, an action, what the client gets
CASES: dict[str, tuple[str, Embodiment, dict[str, Any], list[float], list[float], list[float]]] = {
    "vla-eval plays LIBERO": (
        "vla-eval", LIBERO,
        {"images": {"agentview": picture(), "wrist": picture()}, "states": state[:8], "task_description": "go"},
        [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, -1], [1, 2, 3, 4, 5, 6, -1],
    ),
    "openpi plays LIBERO": (
        "openpi", LIBERO,
        {"observation/image": picture(), "observation/wrist_image": picture(),
         "observation/state": np.arange(1.0, 9), "prompt": "go"},
        [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 1], [1, 2, 3, 4, 5, 6, 1],
    ),
    "starVLA plays LIBERO": (
        "starvla", LIBERO, {**two, "state": np.arange(1.0, 9)[None]},
        [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, -1], [1, 2, 3, 4, 5, 6, 1],  # 1 is open
    ),
    "GR00T plays LIBERO": (
        "groot", LIBERO,
        {"video/image": picture(), "video/wrist_image": picture(), **one, **angles, "state/gripper": [7, 8],
         **language},
        [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 1], [1, 2, 3, 4, 5, 6, 0],
    ),
    "openpi drives DROID": (
        "openpi", DROID,
        {"observation/exterior_image_1_left": picture(), "observation/wrist_image_left": picture(), "prompt": "go",
         "observation/joint_position": np.arange(1.0, 8), "observation/gripper_position": np.array([0.25])},
        [1, 2, 3, 4, 5, 6, 7, 0.75], [1, 2, 3, 4, 5, 6, 7, 1], [1, 2, 3, 4, 5, 6, 7, 0],  # 0 is open
    ),
    "openpi drives ALOHA": (
        "openpi", ALOHA,
        {"images": {n: picture(True) for n in ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")},
         "state": np.arange(1.0, 15), "prompt": "go"},
        [*map(float, state)], [*map(float, state)], [*map(float, state)],
    ),
    "vla-eval plays CALVIN": (
        "vla-eval", CALVIN,
        {"images": {"rgb_static": picture(), "rgb_gripper": picture()}, "task_description": "go",
         "states": [1, 2, 3, 0.1, 0.2, 0.3, 0.07, -1]},
        [1, 2, 3, 0.1, 0.2, 0.3, 0.07, -1], [1, 0, 0, -1, 0, 0, 1], [0.02, 0, 0, -0.05, 0, 0, 1],
    ),
    "vla-eval plays SimplerEnv with a WidowX": (
        "vla-eval", views(BRIDGE),
        # the tool points down
        {"images": {"primary": picture()}, "task_description": "go",
         "states": [1, 2, 3, 0.5**0.5, 0, 0.5**0.5, 0, 0.75]},
        [1, 2, 3, 0, 0, 0, 0.75], [1, 2, 3, 0, 0.5, 0, 1], [1, 2, 3, 0, 0.5, 0, 1],
    ),
    "vla-eval plays SimplerEnv with Google's robot": (
        "vla-eval", GOOGLE,
        {"images": {"primary": picture()}, "task_description": "go", "states": [1, 2, 3, 9, 4, 5, 6, 0.75]},
        [1, 2, 3, 4, 5, 6, 9, 0.25], [1, 2, 3, 0, 0.5, 0, 1], [1, 2, 3, 0, 0.5, 0, 1],
    ),
    "GR00T drives a WidowX": (
        "groot", views(BRIDGE), {"video/image_0": picture(), **one, **angles, "state/gripper": 0.75, **language},
        [1, 2, 3, 4, 5, 6, 0.75], [1, 2, 3, 4, 5, 6, 1], [1, 2, 3, 4, 5, 6, 1],
    ),
    "GR00T drives Google's robot": (
        "groot", GOOGLE,
        {"video/image": picture(), **one, "state/rx": 4, "state/ry": 5, "state/rz": 6, "state/rw": 7,
         "state/gripper": 1, **language},
        [1, 2, 3, 4, 5, 6, 7, 1], [1, 2, 3, 4, 5, 6, 1], [1, 2, 3, 4, 5, 6, 1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_mapping_of_the_robots_name_fits_the_clients_of_a_protocol(case: str) -> None:
    protocol, embodiment, sent, proprio, action, theirs = CASES[case]
    translator = Translator(choose_mapping(None, embodiment, protocol), embodiment)
    request = translator.request(sent)
    assert request.instruction == "go"
    assert request.proprio.tolist() == pytest.approx(proprio, abs=1e-6)
    assert set(request.images) == set(embodiment.cameras)
    assert all(pixels.shape == (8, 6, 3) for pixels in request.observation().images.values())
    assert translator.their_actions(np.array(action, np.float32)).tolist() == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_the_cameras_are_not_swapped(case: str) -> None:
    protocol, embodiment, sent, *_ = CASES[case]
    shown = Translator(choose_mapping(None, embodiment, protocol), embodiment).request(sent).observation().images
    wrist = [c for c in embodiment.cameras if c in ("eye_in_hand", "wrist", "gripper", "cam_left_wrist")]
    flat = {f"{k}/{n}": v for k, part in sent.items() if isinstance(part, dict) for n, v in part.items()} | sent
    for camera in wrist:
        (theirs,) = (
            [v for key, v in flat.items() if ("wrist" in key or "rgb_gripper" in key) and "right" not in key]
            if protocol != "starvla"
            else [sent["image"][1]]
        )
        upright = theirs.transpose(1, 2, 0) if theirs.shape[0] == 3 else theirs
        assert np.array_equal(shown[camera], upright)


def test_starvlas_clients_send_no_state_to_policies_without_proprio() -> None:
    for embodiment, images in ((LIBERO, 2), (CALVIN, 2), (views(BRIDGE), 1), (GOOGLE, 1)):
        mapping = choose_mapping(None, embodiment, "starvla")
        sent = {"image": [picture() for _ in range(images)], "lang": "go"}
        assert Translator(mapping, embodiment, reads_proprio=False).request(sent)
        with pytest.raises(ValueError, match="has no 'state', it has image/0"):
            Translator(mapping, embodiment).request(sent)


def test_every_mapping_that_ships_is_used_by_a_test() -> None:
    names = {(name, protocol) for name, mapping in load_mappings().items() for protocol in mapping.clients}
    tested = {(robot.name, protocol) for protocol, robot, *_ in CASES.values()}
    tested |= {(robot.name, "starvla") for robot in (LIBERO, CALVIN, BRIDGE, GOOGLE)}
    for name, protocol in names:
        assert any((robot, protocol) in tested for robot in load_mappings()[name].robots), (name, protocol)


def test_one_robot_has_one_mapping_for_a_protocol() -> None:
    chosen = [(r, p) for m in load_mappings().values() for r in m.robots for p in m.clients]
    assert len(chosen) == len(set(chosen))


def test_a_mapping_is_chosen_by_name_by_robot_or_by_file(tmp_path: Path) -> None:
    other = robot("mine", ["cam_high"], [group("joints", 14)], [group("joints", 14)])
    assert choose_mapping("aloha", other, "openpi").cameras == {"cam_high": "images/cam_high"}
    plain = choose_mapping(None, other, "openpi", OPENPI)
    assert plain == choose_mapping("plain", other, "openpi", OPENPI)
    assert (plain.images, plain.proprio, plain.instruction) == ("observation", "observation/state", "prompt")
    assert choose_mapping(None, other, "vla-eval") == ClientMapping()
    assert choose_mapping("plain", LIBERO, "openpi", OPENPI) == plain
    file = tmp_path / "mine.yaml"
    file.write_text("cameras: {cam_high: top}\nproprio: {joints: q}\n")
    mine = choose_mapping(str(file), other, "openpi", OPENPI)
    assert (mine.cameras, mine.instruction) == ({"cam_high": "top"}, "prompt")


def test_a_mapping_that_ships_leaves_the_protocols_other_keys_as_they_are() -> None:
    for case, restart in {"openpi": "reset", "starvla": "reset", "vla-eval": "episode_restart"}.items():
        mapping = choose_mapping(None, LIBERO, case, load_protocol(case).keys)
        assert mapping.restart == restart
        assert dataclasses.replace(mapping, restart="", images="") == dataclasses.replace(
            choose_mapping(None, LIBERO, case), restart="", images=""
        )


def test_a_robot_without_proprio_needs_no_keys_of_it() -> None:
    blind = robot("r", ["wrist"], [], [group("joints", 7), gripper(0, 1, 1)])
    mapping = choose_mapping("droid", blind, "openpi")
    request = Translator(mapping, blind).request({"observation/wrist_image_left": picture(), "prompt": "go"})
    assert request.proprio.size == 0


def test_a_mapping_that_does_not_fit_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    front = robot("mine", ["wrist_imag"], [group("joints", 7)], [group("joints", 7)])
    with pytest.raises(ConfigError, match="no such file or mapping; did you mean 'droid'"):
        choose_mapping("driod", front, "openpi")
    with pytest.raises(
        ConfigError, match=r"mapping droid .openpi. has no key for the camera 'wrist_imag' .did you mean"
    ):
        choose_mapping("droid", front, "openpi")
    with pytest.raises(ConfigError, match="--mapping droid has keys of openpi, not of groot"):
        choose_mapping("droid", front, "groot")
    fits = robot("r", ["wrist"], [group("joints", 7), group("fingers", 2)], [group("joints", 7), gripper(0, 1, 1)])
    chosen = choose_mapping("droid", fits, "openpi")
    with pytest.raises(ConfigError, match="no key for the proprio group 'fingers', which the policy reads"):
        Translator(chosen, fits)
    bad = tmp_path / "bad.yaml"
    bad.write_text("camreas: {wrist: x}\n")
    with pytest.raises(ConfigError, match="unknown key 'camreas': did you mean 'cameras'"):
        choose_mapping(str(bad), front, "openpi")
