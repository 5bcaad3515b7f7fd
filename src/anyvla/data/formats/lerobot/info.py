"""Reads `meta/info.json` of a LeRobot data set of any version and compares it with a declared embodiment."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anyvla.config import build
from anyvla.data.formats.json_records import read_json_text
from anyvla.data.undeclared import UndeclaredError, plain_embodiment
from anyvla.files.inside import resolve_inside
from anyvla.registry import suggest
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.space import ActionSpace

OWN_KEY = "anyvla"  # facts of anyvla, in info.json and as a prefix of columns; LeRobot ignores them
TIME = "anyvla.timestamp"  # a feature for steps at an uneven rate, which LeRobot's own timestamps cannot hold
CAMERA_PREFIX = "observation.images."
_READERS = {"v2.0": "lerobot_v2", "v2.1": "lerobot_v2", "v3.0": "lerobot"}  # version -> name of the format
_MOST = 1 << 40  # bound of counts, sizes and numbers of episodes
_CODECS = {"libsvtav1": "av1", "libx264": "h264", "libx265": "hevc", "h265": "hevc", "avc1": "h264", "hvc1": "hevc"}
Features = str | tuple[str, ...]  # a feature, or several joined in this order
# Names of proprio and actions in data sets that other programs converted.
_USUAL_STATES: tuple[Features, ...] = (
    "observation.state",
    "state",
    "observation.qpos",
    "qpos",
    ("observation.joint_position", "observation.gripper_position"),
    ("joint_position", "gripper_position"),
    "observation.joint_position",
    "joint_position",
)
_USUAL_ACTIONS: tuple[Features, ...] = ("action", "actions")


class DatasetInfo:
    """The contents of `meta/info.json`."""

    def __init__(self, root: Path) -> None:
        """Read it. Raises ValueError for a folder without a data set, and for a partial or damaged data set."""
        self.root = root
        self.facts = _read(root)
        _check_facts(self.facts, f"{root}/meta/info.json")
        self.version = _version(self.facts.get("codebase_version", "unknown"))
        self.fps = float(self.facts["fps"])
        self.features: Mapping[str, Any] = self.facts["features"]
        self.own: Mapping[str, Any] = self.facts.get(OWN_KEY, {})

    def check_version(self, *read: str) -> None:
        """Raise ValueError unless the data set has one of these versions."""
        if self.version not in read:
            way_out = (
                f"declare format: {{name: {_READERS[self.version]}}}, or leave it out"
                if self.version in _READERS
                else f"versions {', '.join(_READERS)} are read; convert it with the scripts that come with lerobot"
            )
            raise ValueError(f"{self.root} is a LeRobot dataset of version {self.version}, not {read[-1]}: {way_out}")

    def embodiment(self, format: str, state: Features, action: Features) -> Embodiment:
        """Return the embodiment that anyvla wrote into the data set. Raises UndeclaredError if there is none."""
        if "embodiment" not in self.own:
            raise self._undeclared(format, state, action)
        return build(Embodiment, self.own["embodiment"], where=f"{self.root}/meta/info.json, embodiment")

    def _undeclared(self, format: str, state: Features, action: Features) -> UndeclaredError:
        """Return an error that proposes an embodiment without meaning. Raises ValueError without a likely action."""
        keys = {"state": self._find_vectors(state, _USUAL_STATES), "action": self._find_vectors(action, _USUAL_ACTIONS)}
        if not keys["action"]:
            self._check_size(action, ActionSpace(groups=()), "action")
        dims: dict[str, dict[str, int | Sequence[str]]] = {
            part: {key: dim_names(self.features[key]) or self.size(key) for key in found}
            for part, found in keys.items()
        }
        options = {
            part: found[0] if len(found) == 1 else list(found)
            for part, found in keys.items()
            if found and found not in (as_keys(state), as_keys(action))
        }
        name = str(self.facts.get("robot_type") or "robot")
        plain = plain_embodiment(name, list(self.cameras()), self.fps, dims["state"], dims["action"])
        return UndeclaredError(self.root, plain, {"name": format, **options} if options else {})

    def _find_vectors(self, asked: Features, usual: Sequence[Features]) -> tuple[str, ...]:
        """Return the requested features if all are vectors of numbers, else the first usual one, else its parts.

        DROID has `action.joint_position`, `action.gripper_position` and more instead of `action`.
        """
        for keys in (as_keys(asked), *map(as_keys, usual)):
            if all(self.is_vector(key) for key in keys):
                return keys
        for whole in (key for key in usual if isinstance(key, str)):
            parts = tuple(key for key in self.features if key.startswith(f"{whole}.") and self.is_vector(key))
            joints = tuple(key for key in parts if key.endswith((".joint_position", ".gripper_position")))
            if parts:
                return joints if len(joints) == 2 else parts
        return ()

    def is_vector(self, key: str) -> bool:
        """Return whether a feature is a vector of numbers."""
        feature = self.features.get(key) or {}
        return len(feature.get("shape") or []) == 1 and str(feature.get("dtype")).startswith(("float", "int"))

    def size(self, key: str) -> int:
        """Return the dims of a feature that `check` found to be a vector."""
        return int(self.features[key]["shape"][0])

    def check(self, embodiment: Embodiment, state: Features, action: Features) -> None:
        """Raise a ValueError that says what contradicts the features if the embodiment does not fit."""
        if abs(embodiment.control_hz / self.fps - 1) > 0.01:
            raise ValueError(
                f"{self.root} was recorded at {self.fps:g} steps per second, the embodiment declares control_hz="
                f"{embodiment.control_hz:g}: declare the rate of the data"
            )
        self._check_size(action, embodiment.action, "action")
        if embodiment.proprio.size:  # size 0: the data may have no proprio, or it is not wanted
            self._check_size(state, embodiment.proprio, "state")

    def with_dim_names(self, embodiment: Embodiment, state: Features, action: Features) -> Embodiment:
        """Return the embodiment with the features' names of dims where it has none."""

        def names(keys: Features) -> list[str]:
            return [name for key in as_keys(keys) for name in dim_names(self.features.get(key) or {})]

        proprio, actions = embodiment.proprio.with_names(names(state)), embodiment.action.with_names(names(action))
        return replace(embodiment, proprio=proprio, action=actions)

    def camera_key(self, name: str) -> str:
        """Return the feature of a camera, named with or without LeRobot's prefix. Raises ValueError without one."""
        for key in (CAMERA_PREFIX + name, f"observation.{name}", name):
            if key in self.features and self.features[key]["dtype"] in ("video", "image"):
                return key
        known = list(self.cameras())
        raise ValueError(
            f"{self.root} has no camera {name!r}: {suggest(name, known) if known else 'it holds no videos or images'}"
        )

    def cameras(self) -> dict[str, str]:
        """Return camera name -> feature for all color cameras."""
        found = {}
        for key, feature in self.features.items():
            if feature["dtype"] in ("video", "image") and not _video_facts(feature).get("video.is_depth_map"):
                found[key.removeprefix(CAMERA_PREFIX).removeprefix("observation.")] = key
        return found

    def codec(self, key: str) -> str | None:
        """Return the declared codec of a camera's videos by FFmpeg's name, or None."""
        codec = _video_facts(self.features[key]).get("video.codec")
        return None if codec is None else _CODECS.get(str(codec), str(codec))

    def columns(self) -> dict[str, str]:
        """Return a one-line description of each feature, for people."""
        return {key: _describe_feature(feature) for key, feature in self.features.items()}

    def image_size(self, key: str) -> tuple[int, int]:
        """Return (H, W) of a camera's frames."""
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

    def _check_size(self, keys: Features, space: ActionSpace, option: str) -> None:
        sizes = []
        for key in as_keys(keys):
            feature = self.features.get(key)
            if feature is None:
                vectors = [k for k in self.features if self.is_vector(k)]
                known = suggest(key, vectors) if vectors else "it holds no vectors"
                raise ValueError(
                    f"{self.root} has no feature {key!r}: {known}; declare it, as in format: {{name: "
                    f"{_READERS.get(self.version, 'lerobot')}, {option}: NAME}}, or {option}: [NAME, NAME] for several "
                    "that are joined"
                )
            if len(feature["shape"]) != 1:
                raise ValueError(f"{self.root}: {key!r} has shape {list(feature['shape'])}, a vector has one dim")
            sizes.append(self.size(key))
        if sum(sizes) != space.size:
            names = ", ".join(map(repr, as_keys(keys))) or f"{option}: []"
            raise ValueError(f"{self.root}: {names} has shape {sizes}, the embodiment declares {space.size} dims")


def as_keys(keys: Features) -> tuple[str, ...]:
    """Return the features that are joined to a vector, in order."""
    return (keys,) if isinstance(keys, str) else tuple(keys)


def dim_names(feature: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a vector's dims in any of LeRobot's notations, or none if they do not fit.

    The notations: a list, a list of lists, a map of a title to a list ({"motors": [...]}, {"axes": [...]}), or of a
    name to its index.
    """
    names = feature.get("names")
    if isinstance(names, Mapping) and names and all(isinstance(v, int) for v in names.values()):
        names = [name for name, _ in sorted(names.items(), key=lambda pair: pair[1])]
    found = list(_flat(names))
    shape = list(feature.get("shape") or [])
    fits = len(shape) == 1 and len(found) == shape[0] and all(isinstance(n, str) and n.strip() for n in found)
    return tuple(found) if fits else ()


def _video_facts(feature: Mapping[str, Any]) -> dict[str, Any]:
    return {**(feature.get("video_info") or {}), **(feature.get("info") or {})}


def _describe_feature(feature: Mapping[str, Any]) -> str:
    shape = "x".join(map(str, feature.get("shape") or []))
    facts = _video_facts(feature)
    parts = [str(feature.get("dtype")), shape, *(str(facts[k]) for k in ("video.codec", "video.fps") if k in facts)]
    names = dim_names(feature)
    return " ".join(p for p in parts if p) + (f": {', '.join(names)}" if names else "")


def _flat(names: Any) -> Iterator[Any]:
    if not isinstance(names, list | tuple | Mapping):
        yield names
        return
    for value in names.values() if isinstance(names, Mapping) else names:
        yield from _flat(value)


def _version(text: Any) -> str:
    """Return "v2.1" for "v2.1", "2.1", 2.1 and "2.1.0"."""
    found = re.fullmatch(r"[vV]?(\d+\.\d+)(\.\d+)*", str(text).strip())
    return f"v{found[1]}" if found else str(text)


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
    path = resolve_inside(root, "meta/info.json")
    try:
        return json.loads(read_json_text(path))
    except (ValueError, RecursionError) as error:  # from JSON or UTF-8
        raise ValueError(f"{path} is damaged ({error}); copy the dataset again") from None


def _check_facts(facts: Any, where: str) -> None:
    """Raise a ValueError that names the key if a fact is missing or has another type than in LeRobot."""
    if not isinstance(facts, Mapping):
        raise ValueError(f"{where} holds no keys and values; copy the dataset again")
    for key in ("fps", "features", "total_episodes", "data_path"):
        if key not in facts:
            raise ValueError(f"{where} lacks {key!r}; copy the dataset again")
    if not _number(facts["fps"]) or not 0 < facts["fps"] < _MOST:
        raise _wrong(where, "fps", "a rate above 0", facts["fps"])
    if not _count(facts["total_episodes"]):
        raise _wrong(where, "total_episodes", "a whole number", facts["total_episodes"])
    if not isinstance(facts["features"], Mapping):
        raise _wrong(where, "features", "keys and values", facts["features"])
    for name, feature in facts["features"].items():
        _check_feature(feature, where, f"features, {name}")
    own = facts.get("anyvla", {})
    if not isinstance(own, Mapping) or not all(isinstance(own.get(k, {}), Mapping) for k in ("provenance", "notes")):
        raise _wrong(where, "anyvla", "keys and values", own)


def _check_feature(feature: Any, where: str, key: str) -> None:
    if not isinstance(feature, Mapping):
        raise _wrong(where, key, "keys and values", feature)
    shape, parts = feature.get("shape"), ("info", "video_info")
    for part, right, expected in (
        ("dtype", isinstance(feature.get("dtype"), str), "the name of a type"),
        ("shape", isinstance(shape, list) and all(map(_count, shape)), "a list of whole numbers"),
        ("names", isinstance(feature.get("names"), list | Mapping | None), "a list, or keys and values"),
        *((part, isinstance(feature.get(part), Mapping | None), "keys and values") for part in parts),
    ):
        if not right:
            raise _wrong(where, f"{key}, {part}", expected, feature.get(part))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _count(value: Any) -> bool:
    return _number(value) and value == int(value) and 0 <= value < _MOST


def _wrong(where: str, key: str, expected: str, value: Any) -> ValueError:
    return ValueError(
        f"{where}: {key} is {str(value)[:60]!r}, expected {expected}; correct it, or copy the dataset again"
    )
