"""Finds the data sets of a named mixture (`mixtures.yaml`) below a folder, with their weights.

The weights come from Octo and OpenVLA and multiply the size of a data set: its share of the samples is weight x steps,
divided by the sum of weight x steps over the mixture, as with `temperature: 1` in the data config.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

import yaml

from anyvla.data.formats.rlds import oxe
from anyvla.registry import suggest


class Member(NamedTuple):
    """One data set of a mixture, found on disk."""

    path: Path  # the folder of one version: dataset_info.json, features.json and the shards
    weight: float  # multiplies the number of its steps
    name: str  # in the table of Open X-Embodiment


@functools.cache
def presets() -> Mapping[str, Mapping[str, float]]:
    """Return name of a mixture -> name of a data set -> weight."""
    text = resources.files("anyvla.data.training").joinpath("mixtures.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def expand(name: str, root: Path, missing: Literal["refuse", "skip"] = "refuse") -> list[Member]:
    """Return the data sets of mixture `name`, found at `root/<data set>/<version>` or `root/<data set>`.

    A folder may also have an alias of the data set as its name. The version is the one of the table, else the highest.
    Raises ValueError for an unknown mixture, and for missing data sets, with the folders that were searched.
    `missing="skip"` leaves missing data sets out, as long as at least one is found.
    """
    if name not in presets():
        raise ValueError(f"there is no mixture {name!r}: {suggest(name, list(presets()))}")
    if not root.is_dir():
        raise ValueError(f"the mixture {name!r} is looked for below {root}, which is no folder")
    weights = presets()[name]
    found = [Member(path, weight, d) for d, weight in weights.items() if (path := _folder(root, d)) is not None]
    absent = [d for d in weights if d not in {m.name for m in found}]
    if not found or (absent and missing == "refuse"):
        raise ValueError(
            f"{len(absent)} of {len(weights)} data sets of the mixture {name!r} are missing below {root}:\n  - "
            + "\n  - ".join(" or ".join(f"{root / n}/{_version(d)}" for n in _names(d)) for d in absent)
            + ("\nput them there, or leave them out with missing: skip" if found else "\nput at least one there")
        )
    return found


def _names(dataset: str) -> list[str]:
    entry = oxe.find_entry(dataset)
    return [dataset, *(entry.aliases if entry else ())]


def _version(dataset: str) -> str:
    entry = oxe.find_entry(dataset)
    return (entry.version if entry else None) or "<version>"


def _folder(root: Path, dataset: str) -> Path | None:
    """Return the folder of the version to read; None if the data set is not below `root`."""
    wanted = _version(dataset)
    for folder in (root / name for name in _names(dataset)):
        paths = folder.glob("*" if wanted == "<version>" else wanted)
        versions = [p for p in paths if _is_complete(p)]
        if versions:
            return max(versions, key=lambda p: ([int(n) for n in re.findall(r"\d+", p.name)], p.name))
        if _is_complete(folder):
            return folder
    return None


def _is_complete(folder: Path) -> bool:
    return (folder / "dataset_info.json").is_file() and (folder / "features.json").is_file()
