"""Reads keys, shapes and shards of an RLDS data set from `features.json` and `dataset_info.json`."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyvla.files.documents import read_object
from anyvla.files.inside import resolve_inside


@dataclass(frozen=True)
class FeatureSpec:
    """One feature of a step, or of an episode, as a record holds it."""

    kind: str  # "image" | "text" | "tensor"
    shape: tuple[int | None, ...]  # in one step
    dtype: str
    encoding: str  # of tensors: "none" | "bytes" | "zlib"
    ragged: bool  # a list within the list of steps, which is not supported


@dataclass(frozen=True)
class DatasetVersion:
    """A version of a data set on disk."""

    folder: Path
    name: str  # "bridge_orig"
    version: str
    splits: dict[str, list[int]]  # split -> records of each shard
    steps: dict[str, FeatureSpec]  # by key below `steps`
    episode: dict[str, FeatureSpec]  # by key beside `steps`

    def shard_paths(self, split: str) -> list[Path]:
        """Return the files of a split, in order. Raises ValueError for an unknown split and for missing files."""
        if split not in self.splits:
            raise ValueError(f"{self.folder} has no split {split!r}: it has {', '.join(self.splits)}")
        count = len(self.splits[split])
        pattern = re.compile(rf"{re.escape(self.name)}-{re.escape(split)}\.(\w+)-(\d+)-of-(\d+)")
        found: dict[int, Path] = {}
        for path in self.folder.iterdir():
            if match := pattern.fullmatch(path.name):
                if match[1] != "tfrecord":
                    raise ValueError(f"{path} has file format {match[1]}; only tfrecord is read")
                found[int(match[2])] = resolve_inside(self.folder, path.name)
        missing = [i for i in range(count) if i not in found]
        if missing:
            raise ValueError(
                f"{self.folder} lacks {len(missing)} of {count} files of split {split!r}, the first "
                f"{self.name}-{split}.tfrecord-{missing[0]:05d}-of-{count:05d}: copy them again"
            )
        return [found[i] for i in range(count)]


def is_version_folder(folder: Path) -> bool:
    """Return whether a folder directly holds a version of a data set."""
    return (folder / "features.json").is_file() and (folder / "dataset_info.json").is_file()


def find_version(root: Path) -> Path:
    """Return the folder of the version: `root`, or its only version. Raises ValueError if there are several."""
    if is_version_folder(root):
        return root
    versions = sorted(resolve_inside(root, p.name) for p in root.iterdir() if p.is_dir() and is_version_folder(p))
    if len(versions) != 1:
        raise ValueError(f"{root} holds {len(versions)} versions ({', '.join(p.name for p in versions)}): name one")
    return versions[0]


def read_version(folder: Path) -> DatasetVersion:
    """Read the description of a version. Raises ValueError for damaged files, and for a data set without steps."""
    features, info = (read_object(resolve_inside(folder, name)) for name in ("features.json", "dataset_info.json"))
    try:
        top = features.get("featuresDict", {}).get("features", {})
        if "sequence" not in top.get("steps", {}):
            raise ValueError(
                f"{folder} is a data set of tensorflow-datasets, but no RLDS data set: its records have no steps"
            )
        splits = {str(s["name"]): [int(n) for n in s.get("shardLengths", [])] for s in info.get("splits", [])}
        steps = dict(_feature_specs(top["steps"]["sequence"]["feature"], "", ragged=False))
        rest = {name: value for name, value in top.items() if name != "steps"}
        episode = dict(_feature_specs({"featuresDict": {"features": rest}}, "", ragged=False))
        return DatasetVersion(folder, str(info["name"]), info.get("version", folder.name), splits, steps, episode)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{folder}/features.json or dataset_info.json is damaged ({reason}); copy the data set again"
        ) from None


def _feature_specs(feature: dict[str, Any], path: str, *, ragged: bool) -> list[tuple[str, FeatureSpec]]:
    if "featuresDict" in feature:
        parts = feature["featuresDict"].get("features", {}).items()
        specs = (_feature_specs(part, f"{path}/{name}".strip("/"), ragged=ragged) for name, part in parts)
        return list(itertools.chain.from_iterable(specs))
    if "sequence" in feature:
        return _feature_specs(feature["sequence"]["feature"], path, ragged=True)
    if "image" in feature:
        kind = str(feature["image"].get("dtype") or "uint8")  # depth is uint16 or float32
        return [(path, FeatureSpec("image", _shape(feature["image"]), kind, "none", ragged))]
    # others are text, or for example a class label: one integer
    tensor = feature.get("tensor") or {"dtype": "string" if "text" in feature else "int64"}
    kind = "text" if tensor.get("dtype") == "string" else "tensor"
    encoding = str(tensor.get("encoding") or "none").lower()
    return [(path, FeatureSpec(kind, _shape(tensor), str(tensor.get("dtype", "float32")), encoding, ragged))]


def _shape(feature: dict[str, Any]) -> tuple[int | None, ...]:
    sizes = [int(n) for n in (feature.get("shape") or {}).get("dimensions", [])]
    return tuple(None if n < 0 else n for n in sizes)
