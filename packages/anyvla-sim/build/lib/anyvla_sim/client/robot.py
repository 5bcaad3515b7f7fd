"""The robot that a server expects, and the check of observations before they are sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping

import numpy as np

from anyvla_sim.base import Observation
from anyvla_sim.client.errors import ClientError, WrongObservation


@dataclass(frozen=True)
class Group:
    """Consecutive dims of proprio or of an action with one meaning."""

    name: str
    size: int
    meaning: Mapping[str, Any]  # kind, mode, unit, low, high, ...: as in the embodiment of the policy


@dataclass(frozen=True)
class Robot:
    """The description that a server sends of its robot and its policy."""

    name: str
    cameras: Mapping[str, tuple[int, int] | None]  # (H, W) that the policy resizes its images to; None: any one size
    proprio: tuple[Group, ...]
    action: tuple[Group, ...]
    chunk: int  # actions that the policy predicts at once
    execute: int  # actions of a chunk to execute before the next prediction
    control_hz: float  # actions per second
    policy: str = ""  # a hash that other trained policies do not share; "": the server doesn't say

    @staticmethod
    def read(description: Any) -> Robot:
        """Read the description in a server's hello. Raises ClientError for one that is not of this protocol."""
        try:
            return Robot(
                str(description["robot"]),
                {name: size and (int(size[0]), int(size[1])) for name, size in description["cameras"].items()},
                _read_groups(description["proprio"]),
                _read_groups(description["action"]),
                int(description["chunk"]),
                int(description["execute"]),
                float(description["control_hz"]),
                str(description.get("policy", "")),
            )
        except (TypeError, KeyError, ValueError, IndexError, AttributeError) as error:
            raise ClientError(f"the server's description of its robot cannot be read: {error!r}") from None

    @property
    def action_size(self) -> int:
        """Return the number of dims of an action."""
        return sum(group.size for group in self.action)

    def read_observation(self, given: Any) -> Observation:
        """Return an observation that the server will accept.

        `given` is an Observation, or a dict of `images` (camera: uint8 (H, W, 3), RGB, upright) and `proprio` (one
        vector, or a dict with the name of each group). Raises a WrongObservation that names the fault.
        """
        if isinstance(given, Observation):
            images, proprio = given.images, given.proprio
        elif isinstance(given, Mapping):
            if "images" not in given:
                raise WrongObservation(f"the observation has no 'images', it has {_join(given)}")
            images, proprio = given["images"], given.get("proprio", ())
        else:
            raise WrongObservation(f"an observation is an Observation or a dict, not {type(given).__name__}")
        return Observation(self._read_images(images), self._read_proprio(proprio))

    def _read_images(self, images: Any) -> dict[str, np.ndarray]:
        if not isinstance(images, Mapping):
            raise WrongObservation(f"images is a dict of camera: image, not {type(images).__name__}")
        missing = [camera for camera in self.cameras if camera not in images]
        if missing:
            raise WrongObservation(
                f"the observation lacks the camera {missing[0]!r}; the policy reads {_join(self.cameras)} and the "
                f"observation has {_join(images)}"
            )
        read = {camera: _check_image(camera, images[camera]) for camera in self.cameras}
        shapes = {camera: image.shape for camera, image in read.items() if self.cameras[camera] is None}
        if len(set(shapes.values())) > 1:
            raise WrongObservation(f"the images of this policy must have one size, got {shapes}")
        return read

    def _read_proprio(self, proprio: Any) -> np.ndarray:
        if isinstance(proprio, Mapping):
            missing = [group.name for group in self.proprio if group.name not in proprio]
            if missing:
                raise WrongObservation(f"proprio lacks the group {missing[0]!r}, it has {_join(proprio)}")
            parts = [_numbers(f"proprio {group.name!r}", proprio[group.name], group.size) for group in self.proprio]
            return np.concatenate([np.zeros(0, np.float32), *parts])
        groups = ", ".join(f"{group.name} {group.size}" for group in self.proprio) or "none"
        return _numbers(f"proprio ({groups})", proprio, sum(group.size for group in self.proprio))


def _read_groups(groups: Any) -> tuple[Group, ...]:
    rest = [{k: v for k, v in group.items() if k not in ("name", "size")} for group in groups]
    return tuple(Group(str(g["name"]), int(g["size"]), meaning) for g, meaning in zip(groups, rest))


def _check_image(camera: str, image: Any) -> np.ndarray:
    """Return the image of a camera. Raises a WrongObservation that says what to give."""
    if not isinstance(image, np.ndarray):
        got, fix = type(image).__name__, "np.asarray(image)"
    elif image.ndim == 3 and image.shape[2] != 3 and image.shape[0] == 3:
        got, fix = f"{image.dtype} {image.shape}, channels first", "image.transpose(1, 2, 0)"
    elif image.ndim == 3 and image.shape[2] == 4:
        got, fix = f"{image.dtype} {image.shape}, with an alpha channel", "image[..., :3]"
    elif image.ndim != 3 or image.shape[2] != 3 or not image.size:
        got, fix = f"{image.dtype} {image.shape}", "one RGB picture"
    elif image.dtype != np.uint8:
        got, fix = f"{image.dtype} {image.shape}", "its values from 0 to 255 as np.uint8"
    else:
        return np.ascontiguousarray(image)
    raise WrongObservation(f"camera {camera!r}: a uint8 array (H, W, 3) is needed, got {got}; give {fix}")


def _numbers(name: str, given: Any, size: int) -> np.ndarray:
    """Return finite numbers as float32 (size,). Raises WrongObservation for other ones."""
    try:
        with np.errstate(over="ignore"):
            vector = np.asarray(given).astype(np.float32, casting="same_kind")
    except (TypeError, ValueError):
        raise WrongObservation(f"{name} must be numbers, got {str(given)[:60]}") from None
    if vector.size != size:
        raise WrongObservation(f"{name} must have {size} numbers, got {vector.size}")
    if not np.isfinite(vector).all():
        raise WrongObservation(f"{name} has numbers that are not finite: {vector.ravel()[:8].tolist()}")
    return vector.reshape(-1)


def _join(names: Any) -> str:
    return ", ".join(map(str, names)) or "none"
