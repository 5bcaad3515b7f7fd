"""Mixtures by name (`mixtures.yaml`): which folders below a root hold their data sets, and with what weight.

The weights are those of Octo and OpenVLA: they multiply the size of a data set. The share of its samples is
weight x steps, divided by the sum over the mixture; `temperature: 1` of the data config means that.
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
    """One data set of a mixture that was found."""

    path: Path  # the folder of one version: dataset_info.json, features.json and the shards
    weight: float  # multiplies the number of its steps
    name: str  # of its entry in the table of Open X-Embodiment


@functools.cache
def presets() -> Mapping[str, Mapping[str, float]]:
    """Name of a mixture -> name of a data set -> weight."""
    text = resources.files("anyvla.data.training").joinpath("mixtures.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def expand(name: str, root: Path, missing: Literal["refuse", "skip"] = "refuse") -> list[Member]:
    """The data sets of mixture `name` as they lie below `root`: `root/<data set>/<version>`, or without the version.

    A data set may also lie under one of its aliases. Of several versions the one that the table asks for is taken, else
    the highest. Raises ValueError for an unknown mixture, and for data sets that are not there, with where they are
    looked for; `missing="skip"` leaves those out, if any is there at all.
    """
    if name not in presets():
        raise ValueError(f"there is no mixture {name!r}: {suggest(name, list(presets()))}")
    if not root.is_dir():
        raise ValueError(f"the mixture {name!r} is looked for below {root}, which is no folder")
    found = [Member(path, weight, d) for d, weight in presets()[name].items() if (path := _folder(root, d)) is not None]
    absent = [d for d in presets()[name] if d not in {m.name for m in found}]
    if not found or (absent and missing == "refuse"):
        raise ValueError(
            f"{len(absent)} of {len(presets()[name])} data sets of the mixture {name!r} are missing below {root}:\n  - "
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
    """The folder of the version to read; None if the data set does not lie below `root`."""
    wanted = _version(dataset)
    for folder in (root / name for name in _names(dataset)):
        versions = [p for p in folder.iterdir() if _complete(p)] if folder.is_dir() else []
        versions = [p for p in versions if wanted in ("<version>", p.name)]
        if versions:
            return max(versions, key=lambda p: ([int(n) for n in re.findall(r"\d+", p.name)], p.name))
        if _complete(folder):
            return folder
    return None


def _complete(folder: Path) -> bool:
    return (folder / "dataset_info.json").is_file() and (folder / "features.json").is_file()
