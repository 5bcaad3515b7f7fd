"""Which part of a client's observation is which of the robot's, and what the client takes as an action.

Declared, never guessed: a camera or a state that the client does not send is an error that names what it did send.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT, ConfigError
from anyvla.data.episode import Embodiment
from anyvla.limits import VALUE
from anyvla.text import clean_instruction
from anyvla.types import Observation

Value = Annotated[float, Field(ge=-VALUE, le=VALUE)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClientMapping:
    """What a client calls the parts of an observation; the file of `--mapping`."""

    cameras: dict[str, str] = Field(default_factory=dict)  # ours: theirs; none: the same names
    proprio: str = "states"  # where the proprio is, in the order of the robot's groups
    instruction: str = "task_description"
    gripper: tuple[Value, Value] | None = None  # what the client takes for open and for closed; None: as the robot


# LIBERO, as vla-eval's benchmark sends it with send_wrist_image, send_state and quat_no_antipodal.
DEFAULTS = {"libero_panda": ClientMapping(cameras={"agentview": "agentview", "eye_in_hand": "wrist"})}


class Translator:
    """Between a client's messages and a robot."""

    def __init__(self, mapping: ClientMapping, robot: Embodiment) -> None:
        """Raises ConfigError for a mapping that does not fit the robot."""
        unknown = set(mapping.cameras) - set(robot.cameras)
        if unknown:
            raise ConfigError(
                f"the mapping names the camera {sorted(unknown)[0]!r}; the policy has {', '.join(robot.cameras)}"
            )
        self._mapping, self.robot = mapping, robot
        self._cameras = {camera: mapping.cameras.get(camera, camera) for camera in robot.cameras}
        self._gripper = self._own_gripper() if mapping.gripper is not None else None

    def _own_gripper(self) -> tuple[slice, float, float]:
        """Where the gripper is in an action, and what is open and closed to the robot."""
        grippers = [g for g in self.robot.action.groups if g.kind == "gripper"]
        if len(grippers) != 1 or grippers[0].open is None:
            raise ConfigError(
                "the mapping converts a gripper; the robot has none that says which end is open, or several"
            )
        (group,) = grippers
        assert group.low is not None
        assert group.high is not None
        assert group.open is not None
        return self.robot.action.slices()[group.name], group.open, group.low + group.high - group.open

    def instruction(self, payload: Mapping[str, Any]) -> str:
        """The words of an observation. Raises ValueError without any."""
        said = payload.get(self._mapping.instruction)
        if not isinstance(said, str) or not clean_instruction(said):
            raise ValueError(f"the observation has no {self._mapping.instruction}: it must say what to do")
        return clean_instruction(said)

    def observation(self, payload: Mapping[str, Any]) -> Observation:
        """Raises ValueError for a camera or a state that is missing or has the wrong form."""
        images = payload.get("images")
        if not isinstance(images, Mapping):
            raise ValueError("the observation has no images")
        return Observation(
            {ours: _image(images, theirs) for ours, theirs in self._cameras.items()}, self._state(payload)
        )

    def _state(self, payload: Mapping[str, Any]) -> np.ndarray:
        size, key = self.robot.proprio.size, self._mapping.proprio
        if not size:
            return np.zeros(0, np.float32)
        if key not in payload:
            groups = ", ".join(g.name for g in self.robot.proprio.groups)
            raise ValueError(
                f"the observation has no {key!r}, it has {', '.join(map(str, payload))}: the policy reads its state, "
                f"{groups}; have the client send it (vla-eval: send_state)"
            )
        state = np.asarray(payload[key], np.float32).ravel()
        if state.shape != (size,) or not np.isfinite(state).all():
            groups = ", ".join(f"{g.name} {g.size}" for g in self.robot.proprio.groups)
            raise ValueError(f"{key!r} has {state.size} numbers, {size} finite ones are needed: {groups}")
        return state

    def action(self, action: np.ndarray) -> np.ndarray:
        """An action (A,) as the client takes it. Raises ValueError for one that is not finite."""
        if not np.isfinite(action).all():
            raise ValueError("the policy gave an action that is not finite; it is not sent")
        if self._gripper is None or self._mapping.gripper is None:
            return action
        where, opened, closed = self._gripper
        share = (action[where] - closed) / (opened - closed)  # 1 open, 0 closed
        theirs = np.array(action, np.float32)
        theirs[where] = self._mapping.gripper[1] + share * (self._mapping.gripper[0] - self._mapping.gripper[1])
        return theirs


def _image(images: Mapping[str, Any], name: str) -> np.ndarray:
    if name not in images:
        raise ValueError(
            f"the observation has no image {name!r}, it has {', '.join(map(str, images)) or 'none'}; name the client's "
            "cameras in --mapping, or have it send that one (vla-eval: send_wrist_image)"
        )
    image = np.asarray(images[name])
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image {name!r} is {image.dtype} {image.shape}; uint8 (H, W, 3) is needed")
    return image
