"""Recorded observations that are written for a client are read back by the server's translator."""

from __future__ import annotations

import numpy as np
import pytest

from anyvla.config import build
from anyvla.doctor.observation_writer import ObservationWriter
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.space import ActionSpace, Group
from anyvla.serving.mapping import ClientMapping, Translator
from anyvla.serving.mapping_files import choose_mapping, load_mappings
from anyvla.types import Observation
from tests.doctor import recordings

FACTS = {
    "position": {"kind": "position", "size": 3, "unit": "m"},
    "rotation": {"kind": "rotation", "size": 3, "rotation": "euler", "unit": "rad"},
    "quaternion": {"kind": "rotation", "size": 4, "rotation": "quaternion_xyzw"},
    "gripper": {"kind": "gripper", "size": 1, "low": 0, "high": 1, "open": 1, "unit": "m"},
    "gripper_command": {"kind": "gripper", "size": 1, "low": -1, "high": 1, "open": 1},
    "fingers": {"size": 2},
    "joints": {"kind": "joints", "size": 7, "unit": "rad"},
}
OTHER_NAMES = ("joint_position", "gripper_position")  # of groups with the same keys


def seen(robot: Embodiment) -> Observation:
    rng = np.random.default_rng(0)
    images = {c: rng.integers(0, 255, (24, 32, 3), np.uint8) for c in robot.cameras}
    proprio = rng.uniform(0.1, 0.9, robot.proprio.size).astype(np.float32)
    for group, place in robot.proprio.slices().items():
        if group == "quaternion":
            proprio[place] /= np.linalg.norm(proprio[place])
    return Observation(images, proprio)


def check(mapping: ClientMapping, robot: Embodiment, flat: str | None = None) -> None:
    given = seen(robot)
    values = ObservationWriter(mapping, robot).write(given, "open the drawer", flat=flat)
    request = Translator(mapping, robot).request(values)
    read = request.observation()
    assert request.instruction == "open the drawer"
    np.testing.assert_allclose(read.proprio, given.proprio, atol=1e-5)
    for camera, image in given.images.items():
        np.testing.assert_array_equal(read.images[camera], image)


SHIPPED = [(n, p) for n, m in load_mappings().items() for p in m.clients if p in ("vla-eval", "openpi", "groot")]


@pytest.mark.parametrize(("name", "protocol"), SHIPPED)
def test_every_mapping_that_ships_is_inverted(name: str, protocol: str) -> None:
    mapping = load_mappings()[name].clients[protocol]
    groups = ["position"] if isinstance(mapping.proprio, str) else [g for g in mapping.proprio if g not in OTHER_NAMES]
    groups = [g for g in groups if g != "quaternion" or "rotation" not in groups]
    robot = Embodiment(
        name="robot",
        cameras=tuple(mapping.cameras)[:1],
        control_hz=10,
        proprio=ActionSpace(groups=tuple(build(Group, {"name": g, **FACTS[g]}) for g in groups)),
        action=ActionSpace(
            groups=tuple(build(Group, {"name": g, **FACTS[g]}) for g in ("position", "rotation", "gripper"))
        ),
    )
    mapping = choose_mapping(name, robot, protocol)
    check(mapping, robot, "observation" if protocol == "openpi" else None)


def test_units_rotations_and_grippers_of_a_client_are_inverted() -> None:
    mapping = build(
        ClientMapping,
        {
            "proprio": {
                "position": {"key": "state[4:7]", "unit": "mm"},
                "rotation": {"key": "pose/turn", "rotation": "quaternion_wxyz", "tool": [0.5, 0.5, 0.5, 0.5]},
                "gripper": {"key": "state[0]", "gripper": [0, 255]},
            }
        },
    )
    check(mapping, recordings.embodiment())
