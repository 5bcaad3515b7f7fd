"""Finds the actions, the proprio and the cameras of an episode in an HDF5 file, as declared or by known layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass as config_dataclass

from anyvla.config import STRICT
from anyvla.data.formats.hdf5.file import SUFFIXES, find_arrays, has_key
from anyvla.data.formats.hdf5.frames import Orientation, holds_encoded_images
from anyvla.registry import suggest


@config_dataclass(frozen=True, kw_only=True, config=STRICT)
class Hdf5Config:
    """Options of reading HDF5 files of any layout. Keys are relative to an episode: observations/qpos."""

    episodes: str = ""  # the group that holds one group per episode ("data"); "": each file is one episode
    actions: tuple[str, ...] = ()  # joined in this order; (): as in a known layout
    proprio: tuple[str, ...] | None = None  # joined in this order; None: as in a known layout, or none
    cameras: Mapping[str, str] | None = None  # camera -> key; None: every array of images
    instruction: str = ""  # of all episodes
    instruction_key: str = ""  # an array or an attribute of each episode with its instruction
    channels: Literal["last", "first"] = "last"  # first: images are (T, C, H, W)
    # None: rgb, or as in a known layout. bgr: RGB images that were encoded by OpenCV, which expects BGR
    colors: Literal["rgb", "bgr"] | None = None
    images: Orientation = "recorded"  # how to make them upright: flip top and bottom, or turn by 180 degrees
    # the action of a step is recorded this many steps later, and the last steps are dropped; None: 0, or as in a
    # known layout
    ahead: int | None = Field(default=None, ge=0, le=100)


@dataclass(frozen=True)
class Hdf5Layout:
    """The keys of an episode."""

    robot: str = "robot"  # a name for the proposed embodiment
    actions: tuple[str, ...] = ()
    proprio: tuple[str, ...] = ()
    colors: Literal["rgb", "bgr"] = "rgb"
    ahead: int = 0
    cameras: Mapping[str, str] = field(default_factory=dict)


# ALOHA: github.com/tonyzhaozh/act, record_sim_episodes.py. RoboTwin: github.com/RoboTwin-Platform/RoboTwin. Its files
# hold only the current joints; the action is the joints of the next step, as in its own training code.
_KNOWN_LAYOUTS = (
    Hdf5Layout("aloha", ("action",), ("observations/qpos",)),
    Hdf5Layout("robotwin", ("joint_action/vector",), ("joint_action/vector",), "bgr", 1),
)
_IMAGE_NAMES = ("rgb", "image", "color", "images")  # last parts of a key that do not name a camera


def is_episode_file(path: Path) -> bool:
    """Return whether a file is named like a file of one episode: episode_0.hdf5, episode12.hdf5."""
    return path.suffix in SUFFIXES and path.stem.removeprefix("episode").lstrip("_-").isdigit() and path.stem[0] == "e"


def find_layout(config: Hdf5Config, path: Path, episode: str) -> Hdf5Layout:
    """Return the keys of an episode. Raises a ValueError that says what to declare if they are unknown."""
    found = find_arrays(path, episode)
    matching = (k for k in _KNOWN_LAYOUTS if {*k.actions, *k.proprio} <= found.keys())
    known = next(matching, Hdf5Layout())
    actions = config.actions or known.actions
    proprio = config.proprio if config.proprio is not None else known.proprio
    if not actions:
        raise ValueError(undeclared_layout_message(path))
    for key in (*actions, *proprio, *(config.cameras or {}).values()):
        if key not in found and not has_key(path, f"{episode}/{key}"):
            where = f" in {episode}" if episode else ""
            raise ValueError(f"{path} has no {key!r}{where}: {suggest(key, list(found) or ['nothing'])}")
    return Hdf5Layout(
        robot=known.robot,
        actions=actions,
        proprio=proprio,
        colors=config.colors or known.colors,
        ahead=config.ahead if config.ahead is not None else known.ahead,
        cameras=dict(config.cameras) if config.cameras is not None else _find_cameras(found, config.channels),
    )


def undeclared_layout_message(path: Path) -> str:
    """Return an error message for a file of unknown layout, with its names and an example of what to declare."""
    found = find_arrays(path, "")
    names = ", ".join(f"{name} {list(value.shape or ())}" for name, value in list(found.items())[:12])
    return (
        f"{path} has an unknown layout (known: robomimic, LIBERO, ALOHA, RoboTwin): declare its keys, as "
        "in format: {name: hdf5, episodes: GROUP, actions: [KEY], proprio: [KEY], cameras: {NAME: KEY}}, without "
        f"episodes if a file is one episode; it holds {names or 'no arrays'}{' and more' if len(found) > 12 else ''}"
    )


def _find_cameras(found: Mapping[str, Any], channels: str) -> dict[str, str]:
    """Return the arrays of color images by camera name."""
    keys = [key for key, value in found.items() if "depth" not in key.lower() and _is_image(value, channels)]
    short = {key: _camera_name(key) for key in keys}
    unique = len(set(short.values())) == len(keys)
    return {short[key] if unique else key: key for key in keys}


def _is_image(value: Any, channels: str) -> bool:
    if value.ndim == 4:
        return value.dtype == np.uint8 and value.shape[3 if channels == "last" else 1] in (1, 3, 4)
    return holds_encoded_images(value) and (value.ndim == 2 or len(value) > 1)


def _camera_name(key: str) -> str:
    *before, last = key.split("/")
    return before[-1] if before and last.lower() in _IMAGE_NAMES else last
