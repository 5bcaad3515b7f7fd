"""`meta/info.json` of a LeRobot dataset of any version: what it holds, and whether a declared embodiment fits it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anyvla.actions.space import ActionSpace
from anyvla.config import build
from anyvla.data.episode import Embodiment
from anyvla.registry import nearest

OWN_KEY = "anyvla"  # what anyvla alone knows, in info.json and as a prefix of columns; LeRobot ignores it
TIME = "anyvla.timestamp"  # a feature, where steps are not at a constant rate: LeRobot's own timestamps always are
CAMERA_PREFIX = "observation.images."
READ_VERSIONS = ("v2.0", "v2.1", "v3.0")
_CODECS = {"libsvtav1": "av1", "libx264": "h264", "libx265": "hevc", "h265": "hevc", "avc1": "h264", "hvc1": "hevc"}


class Info:
    """Raises ValueError with the way out for a folder that holds no dataset, a half written or a damaged one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.facts = _read(root)
        self.version = str(self.facts.get("codebase_version", "unknown"))
        for key in ("fps", "features", "total_episodes", "data_path"):
            if key not in self.facts:
                raise ValueError(f"{root}/meta/info.json lacks {key!r}; copy the dataset again")
        self.fps = float(self.facts["fps"])
        self.features: Mapping[str, Any] = self.facts["features"]
        self.own: Mapping[str, Any] = self.facts.get(OWN_KEY, {})

    def check_version(self, *read: str) -> None:
        """Raises ValueError if this is none of the versions that the reader knows."""
        if self.version not in read:
            way_out = (
                "this version has a reader of its own: leave the format out, and it is found"
                if self.version in READ_VERSIONS
                else f"versions {', '.join(READ_VERSIONS)} are read; convert it with the scripts that come with lerobot"
            )
            raise ValueError(f"{self.root} is a LeRobot dataset of version {self.version}, not {read[-1]}: {way_out}")

    def embodiment(self, state: str, action: str) -> Embodiment:
        """What the dataset itself says. Raises ValueError that shows what to declare if it does not."""
        if "embodiment" not in self.own:
            raise ValueError(self._to_declare(state, action))
        return build(Embodiment, self.own["embodiment"], where=f"{self.root}/meta/info.json, embodiment")

    def check(self, embodiment: Embodiment, state: str, action: str) -> None:
        """Raises ValueError that says what of the embodiment does not fit the features."""
        if abs(embodiment.control_hz / self.fps - 1) > 0.01:
            raise ValueError(
                f"{self.root} was recorded at {self.fps:g} steps per second, the embodiment declares control_hz="
                f"{embodiment.control_hz:g}: declare the rate of the data"
            )
        self._check_size(action, embodiment.action, "action")
        if embodiment.proprio.size:  # none: the data may have no state, or it is not wanted
            self._check_size(state, embodiment.proprio, "state")

    def camera_key(self, name: str) -> str:
        """The feature of a camera: its name as it is, or without LeRobot's prefix."""
        for key in (CAMERA_PREFIX + name, f"observation.{name}", name):
            if key in self.features and self.features[key]["dtype"] in ("video", "image"):
                return key
        known = list(self.cameras())
        raise ValueError(
            f"{self.root} has no camera {name!r}: {nearest(name, known) if known else 'it holds no videos or images'}"
        )

    def cameras(self) -> dict[str, str]:
        """Camera name -> feature, of all that show colour."""
        found = {}
        for key, feature in self.features.items():
            facts = {**(feature.get("info") or {}), **(feature.get("video_info") or {})}
            if feature["dtype"] in ("video", "image") and not facts.get("video.is_depth_map"):
                found[key.removeprefix(CAMERA_PREFIX).removeprefix("observation.")] = key
        return found

    def codec(self, key: str) -> str | None:
        """Return the codec that the videos of a camera are said to have, by FFmpeg's name; None if it is not said."""
        feature = self.features[key]
        facts = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
        said = facts.get("video.codec")
        return None if said is None else _CODECS.get(str(said), str(said))

    def image_size(self, key: str) -> tuple[int, int]:
        """(H, W) of a camera's frames."""
        feature = self.features[key]
        shape = [int(n) for n in feature["shape"]]
        names = [str(n).rstrip("s") for n in feature.get("names") or []]
        if len(shape) == 3 and "height" in names and "width" in names:
            return shape[names.index("height")], shape[names.index("width")]
        if len(shape) == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3):
            return shape[1], shape[2]
        if len(shape) != 3:
            raise ValueError(f"{self.root}/meta/info.json: {key!r} has shape {shape}, an image has three dims")
        return shape[0], shape[1]

    def _check_size(self, key: str, space: ActionSpace, option: str) -> None:
        feature = self.features.get(key)
        if feature is None:
            vectors = [k for k, f in self.features.items() if f["dtype"].startswith("float")]
            raise ValueError(
                f"{self.root} has no feature {key!r}: {nearest(key, vectors) if vectors else 'it holds no vectors'}; "
                f"say which it is, as in format: {{name: lerobot, {option}: NAME}}"
            )
        if list(feature["shape"]) != [space.size]:
            raise ValueError(
                f"{self.root}: {key!r} has shape {list(feature['shape'])}, the embodiment declares {space.size} dims"
            )

    def _to_declare(self, state: str, action: str) -> str:
        """The error with an embodiment to paste, in which only the meaning is to be filled in."""
        lines = [
            f"{self.root} does not say what its numbers mean. Declare it beside the path of the data, with groups that "
            "say what each dim is (kind, mode, unit; a gripper with low, high and open):",
            "embodiment:",
            f"  name: {json.dumps(str(self.facts.get('robot_type') or 'robot'))}",
            f"  cameras: [{', '.join(json.dumps(name) for name in self.cameras())}]",
            f"  control_hz: {self.fps:g}",
        ]
        for part, key in (("proprio", state), ("action", action)):
            feature = self.features.get(key)
            shape = list(feature["shape"]) if feature else []
            if len(shape) == 1:
                names = json.dumps(feature.get("names")) if feature and feature.get("names") else "not named"
                group = f"{{name: joints, size: {shape[0]}, kind: joints, mode: absolute, unit: rad}}"
                lines.append(f"  {part}: {{groups: [{group}]}}  # {key}: {names}")
            else:
                lines.append(f"  {part}: {{groups: []}}  # there is no {key} of one dim")
        return "\n".join(lines)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file. Raises ValueError that names it if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(f"{path} is damaged ({error}); copy the dataset again") from None


def _read(root: Path) -> dict[str, Any]:
    if root.name.endswith(".partial"):
        raise ValueError(f"{root} is a dataset still being written: run the same command to finish it")
    path = root / "meta/info.json"
    if not path.is_file():
        if root.with_name(root.name + ".partial").is_dir():
            raise ValueError(f"{root} is half written ({root.name}.partial exists): run the same command to finish it")
        if not root.is_dir():
            raise ValueError(f"there is no dataset at {root}: no such folder")
        raise ValueError(f"{root} is not a LeRobot dataset, or half written: it has no meta/info.json")
    return read_json(path)
