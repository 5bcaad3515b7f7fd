"""Map the observations of a client to the robot's cameras and proprio, and actions to the client's convention.

The mapping is declared, never guessed: a missing camera or proprio is an error that names the keys that were sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float32
from pydantic import Field
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT, ConfigError
from anyvla.limits import VALUE
from anyvla.robot.embodiment import Embodiment
from anyvla.serving.arrays import EncodedImage, read_image, read_vector
from anyvla.serving.limits import ServerLimits
from anyvla.serving.naming import join_names, quote
from anyvla.text import check_instruction
from anyvla.types import Observation

Value = Annotated[float, Field(ge=-VALUE, le=VALUE)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClientMapping:
    """The names that a client gives to the parts of an observation; the file of `--mapping`."""

    cameras: dict[str, str] = Field(default_factory=dict)  # ours: theirs; none: the same names
    proprio: str = "states"  # the key of the proprio, in the order of the robot's groups
    instruction: str = "task_description"
    gripper: tuple[Value, Value] | None = None  # the client's values for open and closed; None: as the robot

    def __post_init__(self) -> None:
        if self.gripper is not None and self.gripper[0] == self.gripper[1]:
            raise ValueError(f"gripper: open and closed are both {self.gripper[0]}")


# LIBERO, as vla-eval's benchmark sends it with send_wrist_image, send_state and quat_no_antipodal.
DEFAULTS = {"libero_panda": ClientMapping(cameras={"agentview": "agentview", "eye_in_hand": "wrist"})}


@plain_dataclass(frozen=True)
class Request:
    """A checked observation of a client. Its images are not decoded yet."""

    instruction: str
    images: Mapping[str, EncodedImage]  # of the cameras that the policy reads
    proprio: Float32[np.ndarray, "P"]

    def observation(self) -> Observation:
        """Return the observation with its images decoded. Raises ValueError for damaged ones."""
        return Observation({camera: image.decode() for camera, image in self.images.items()}, self.proprio)


class Translator:
    """Convert the observations of a client, and the actions for it."""

    def __init__(self, mapping: ClientMapping, robot: Embodiment, limits: ServerLimits | None = None) -> None:
        """Raise ConfigError for a mapping that does not fit the robot."""
        unknown = set(mapping.cameras) - set(robot.cameras)
        if unknown:
            raise ConfigError(
                f"the mapping names the camera {sorted(unknown)[0]!r}; the policy has {', '.join(robot.cameras)}"
            )
        self._mapping, self.robot, self._limits = mapping, robot, limits or ServerLimits()
        self._cameras = {camera: mapping.cameras.get(camera, camera) for camera in robot.cameras}
        self._gripper = self._own_gripper() if mapping.gripper is not None else None

    def _own_gripper(self) -> tuple[slice, float, float]:
        """Return the dims of the gripper in an action, and its values for open and closed."""
        ends = [(g.name, g.open, g.low, g.high) for g in self.robot.action.groups if g.kind == "gripper"]
        match ends:
            case [(name, float(opened), float(low), float(high))]:
                return self.robot.action.slices()[name], opened, low + high - opened
        raise ConfigError(
            "the mapping converts a gripper, but the robot has several grippers, or none with a declared open end"
        )

    def request(self, payload: Mapping[str, Any]) -> Request:
        """Return the parts of an observation that the policy reads. Raises ValueError with the faulty key."""
        return Request(self._instruction(payload), self._images(payload), self._proprio(payload))

    def _instruction(self, payload: Mapping[str, Any]) -> str:
        key, most = self._mapping.instruction, self._limits.instruction_characters
        text = payload.get(key)
        if not isinstance(text, str) or not text.strip():
            got = "nothing" if key not in payload else quote(text)
            raise ValueError(f"the observation has no {key}: it must say what to do, in text; got {got}")
        if len(text) > most:
            raise ValueError(
                f"{key!r} has {len(text)} characters; at most {most} are accepted (--limits.instruction_characters)"
            )
        return check_instruction(text)

    def _images(self, payload: Mapping[str, Any]) -> dict[str, EncodedImage]:
        images = payload.get("images")
        if not isinstance(images, Mapping):
            raise ValueError(f"the observation has no 'images' in a map; it has {join_names(payload) or 'nothing'}")
        if len(images) > self._limits.cameras:
            raise ValueError(f"'images' has {len(images)} cameras; at most {self._limits.cameras} are accepted")
        lacking = [theirs for theirs in self._cameras.values() if theirs not in images]
        if lacking:
            raise ValueError(
                f"the observation has no image {lacking[0]!r}, it has {join_names(images) or 'none'}; name the "
                "client's cameras in --mapping, or have it send that one (vla-eval: send_wrist_image)"
            )
        return {ours: read_image(images[theirs], theirs, self._limits) for ours, theirs in self._cameras.items()}

    def _proprio(self, payload: Mapping[str, Any]) -> Float32[np.ndarray, "P"]:
        size, key = self.robot.proprio.size, self._mapping.proprio
        if not size:
            return np.zeros(0, np.float32)
        if key not in payload:
            groups = ", ".join(g.name for g in self.robot.proprio.groups)
            raise ValueError(
                f"the observation has no {key!r}, it has {join_names(payload)}: the policy reads its proprio, "
                f"{groups}; have the client send it (vla-eval: send_state)"
            )
        with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite, which is refused
            proprio = read_vector(payload[key], key, self._limits).astype(np.float32)
        if proprio.shape != (size,) or not np.isfinite(proprio).all():
            groups = ", ".join(f"{g.name} {g.size}" for g in self.robot.proprio.groups)
            raise ValueError(f"{key!r} has {proprio.size} numbers, {size} finite ones are needed: {groups}")
        return proprio

    def action(self, action: Float32[np.ndarray, "A"]) -> Float32[np.ndarray, "A"]:
        """Return an action in the client's convention. Raises ValueError if it is not finite."""
        theirs = np.array(action, np.float32)
        if self._gripper is not None and self._mapping.gripper is not None:
            where, opened, closed = self._gripper
            share = (action[where] - closed) / (opened - closed)  # 1 open, 0 closed
            theirs[where] = self._mapping.gripper[1] + share * (self._mapping.gripper[0] - self._mapping.gripper[1])
        if not np.isfinite(theirs).all():
            raise ValueError("the policy returned an action that is not finite; it is not sent")
        return theirs
