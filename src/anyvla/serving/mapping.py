"""Map the observations of a client to the robot's cameras and proprio, and actions to the client's convention.

The mapping is declared, never guessed: a missing camera or proprio is an error that names the keys that were sent. The
images are those that the client sent: the policy brings them to its own size when it acts, with the resize of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32
from pydantic import Field
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT, ConfigError
from anyvla.registry import suggest
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.space import Rotation
from anyvla.serving.actions import ActionWriter
from anyvla.serving.arrays import EncodedImage, Layout, is_image, read_image, read_scalar
from anyvla.serving.limits import ServerLimits
from anyvla.serving.naming import quote
from anyvla.serving.observation_keys import MISSING, MissingKeyError, find
from anyvla.serving.proprio import ProprioKeys, ProprioReader, Value, split_key
from anyvla.text import check_instruction
from anyvla.types import Observation


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClientMapping:
    """The names that a client gives to the parts of an observation; the file of `--mapping`.

    A key is a path: "observation/image" is the key of that name, or else `image` in the map `observation`.
    """

    cameras: dict[str, str] = Field(default_factory=dict)  # ours: theirs; none: the same names
    images: str = "images"  # the map in which the key of a camera is looked for, too
    layout: Layout | None = None  # of arrays that are images; None: by their shape, if it is clear
    proprio: ProprioKeys = "states"  # one key, in the order of the robot's groups, or the key of each group
    instruction: str = "task_description"
    default_instruction: str | None = None  # for clients that send none; None: then it is an error
    restart: str = "episode_restart"  # a true value begins a new rollout, as an observation of vla-eval's CALVIN may
    gripper: tuple[Value, Value] | None = None  # the client's values for open and closed; None: as the robot
    action_units: dict[str, str] = Field(default_factory=dict)  # of groups of the action; none: as the robot
    action_rotation: Rotation | None = None  # how the client writes rotations of an action; None: as the robot
    # The parts of an action where the protocol names them: "x": "position[0]"; none: the robot's groups.
    actions: dict[str, str] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.gripper is not None and self.gripper[0] == self.gripper[1]:
            raise ValueError(f"gripper: open and closed are both {self.gripper[0]}")


@plain_dataclass(frozen=True)
class Request:
    """A checked observation of a client. Its images are not decoded yet."""

    instruction: str
    images: Mapping[str, EncodedImage]  # of the cameras that the policy reads
    proprio: Float32[np.ndarray, "P"]
    restart: bool = False  # whether it begins a new rollout

    def observation(self) -> Observation:
        """Return the observation with its images decoded. Raises ValueError for damaged ones."""
        return Observation({camera: image.decode() for camera, image in self.images.items()}, self.proprio)


class Translator:
    """Convert the observations of a client, and the actions for it."""

    def __init__(
        self,
        mapping: ClientMapping,
        robot: Embodiment,
        limits: ServerLimits | None = None,
        *,
        reads_proprio: bool = True,
    ) -> None:
        """Without `reads_proprio`, the policy ignores proprio, and clients need not send it.

        Raises ConfigError for a mapping that does not fit the robot.
        """
        for camera in sorted(set(mapping.cameras) - set(robot.cameras)):
            near = suggest(camera, robot.cameras)
            raise ConfigError(f"the mapping names the camera {camera!r}, which the policy has not: {near}")
        self.mapping, self.robot, self._limits = mapping, robot, limits or ServerLimits()
        self.reads_proprio = reads_proprio
        self._cameras = {camera: mapping.cameras.get(camera, camera) for camera in robot.cameras}
        self._proprio = ProprioReader(mapping.proprio, robot.proprio, self._limits) if reads_proprio else None
        self._actions = ActionWriter(
            robot.action, mapping.gripper, mapping.action_units, mapping.action_rotation, mapping.actions
        )

    def request(self, values: Mapping[str, Any]) -> Request:
        """Return the parts of an observation that the policy reads. Raises ValueError with the faulty key.

        `values`: nested maps of arrays, `EncodedImage`, maps that write one of them (`anyvla.serving.arrays`), numbers
        and text. Keys that the mapping doesn't name are not read.
        """
        unread = np.zeros(self.robot.proprio.size, np.float32)
        proprio = unread if self._proprio is None else self._proprio.read(values)
        restart = read_scalar(find(values, self.mapping.restart)) is True
        return Request(self._instruction(values), self._images(values), proprio, restart)

    def _instruction(self, values: Mapping[str, Any]) -> str:
        key, most = self.mapping.instruction, self._limits.instruction_characters
        text = read_scalar(find(values, key))
        if text is MISSING and self.mapping.default_instruction is not None:
            text = self.mapping.default_instruction
        if text is MISSING:
            raise MissingKeyError("instruction", quote(key), values, "it must say what to do, in text")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"the observation has no {key}: it must say what to do, in text; got {quote(text)}")
        if len(text) > most:
            raise ValueError(
                f"{key!r} has {len(text)} characters; at most {most} are accepted (--limits.instruction_characters)"
            )
        return check_instruction(text)

    def _images(self, values: Mapping[str, Any]) -> dict[str, EncodedImage]:
        several = values.get(self.mapping.images)
        entries = list(several.values()) if isinstance(several, Mapping) else several
        count = sum(map(is_image, entries)) if isinstance(entries, list) else 0
        if count > self._limits.cameras:
            raise ValueError(f"{self.mapping.images!r} has {count} images; at most {self._limits.cameras} are accepted")
        return {ours: self._image(values, ours, theirs) for ours, theirs in self._cameras.items()}

    def _image(self, values: Mapping[str, Any], camera: str, key: str) -> EncodedImage:
        found = find(values, f"{self.mapping.images}/{key}")
        if found is MISSING:
            found = find(values, key)
        if found is MISSING:
            raise MissingKeyError("camera", f"image {quote(key)}", values, f"the policy reads its camera {camera!r}")
        return read_image(found, key, self._limits, self.mapping.layout)

    def their_actions(self, own: Float32[np.ndarray, "*b A"]) -> Float32[np.ndarray, "*b A"]:
        """Return actions of the robot in the client's convention. Raises ValueError if one is not finite."""
        return self._actions.convert(own)

    def own_actions(self, theirs: Float32[np.ndarray, "K A"]) -> Float32[np.ndarray, "K A"]:
        """Return actions of a client as the robot writes them, the inverse of `their_actions`. Raises ValueError."""
        return self._actions.invert(theirs)

    @property
    def client_keys(self) -> dict[str, list[str]]:
        """Return the client's keys of images, of proprio and of the instruction, and its names of actions."""
        proprio = self.mapping.proprio
        if isinstance(proprio, str):
            groups = [f"{proprio}/{group.name}" for group in self.robot.proprio.groups]
        else:
            sources = [source.key for source in proprio.values()]
            groups = [key for keys in sources for key in ((keys,) if isinstance(keys, str) else keys)]
        return {
            "images": list(self._cameras.values()),
            "proprio": list(dict.fromkeys(split_key(key)[0] for key in groups)),
            "instruction": [self.mapping.instruction],
            "actions": list(self._actions.parts),
        }

    def split(self, actions: Float32[np.ndarray, "N A"]) -> dict[str, Float32[np.ndarray, "N G"]]:
        """Return actions in the client's convention by the names that the client has for their parts."""
        return {name: actions[:, dims] for name, dims in self._actions.parts.items()}
