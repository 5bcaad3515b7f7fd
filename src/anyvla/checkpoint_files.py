"""Checks and reads the files of a checkpoint folder before anything is built from them.

Whoever sends a checkpoint chose its contents, and disks and downloads damage files. Every refusal is one ValueError
that names the file and, where there is one, the key. What can be known only with the model at hand (names, shapes and
kinds of weights) is checked by `anyvla.weights.load`, before the model's parameters change.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from anyvla import weights
from anyvla.actions.normalize import Statistics, StatisticsError, read_statistics
from anyvla.actions.space import ActionSpace
from anyvla.config import ConfigError, build
from anyvla.data.canonical import Robot
from anyvla.data.episode import Embodiment
from anyvla.documents import as_mapping, read_json, read_yaml
from anyvla.inside import inside
from anyvla.limits import VALUE

CONFIG, ROBOTS, STATISTICS, WEIGHTS = "config.yaml", "embodiments.json", "statistics.json", "model.safetensors"
MOST_FILES = 10_000
MOST_ROBOTS = 256
LARGEST_TEXT = 1 << 28  # bytes of a JSON file of a backbone; tokenizers have tens of megabytes
_ASCENDING = ("min", "q01", "q10", "q50", "q90", "q99", "max")
_PER_DIM = (*_ASCENDING, "mean", "std")


def check_checkpoint(folder: Path) -> None:
    """Refuse a folder that lacks a file, or holds one that no checkpoint has.

    Raises ValueError that names every missing file, or the first one that leads out of the folder, is no regular file,
    or is damaged in a way that can be seen without a model.
    """
    lacking = [name for name in (CONFIG, ROBOTS, STATISTICS, WEIGHTS) if not os.path.lexists(folder / name)]
    if CONFIG in lacking:
        raise ValueError(f"{folder} is no checkpoint of anyvla: it has no {CONFIG}")
    if lacking:
        raise ValueError(
            f"{folder} is no whole checkpoint, it lacks {', '.join(lacking)}: copy the folder again, or train anew"
        )
    for name in _names(folder):
        path = inside(folder, name)
        if path.suffix == ".json" and path.is_file() and path.stat().st_size > LARGEST_TEXT:
            raise ValueError(f"{path} has more than {LARGEST_TEXT:,} bytes, too many for such a file")
    with weights.opened(folder / WEIGHTS):
        pass  # the header is whole, and no tensor lies outside of the file
    _check_tokenizers(folder / "backbone")


def read_document(folder: Path) -> dict[str, Any]:
    """Return the recipe that a checkpoint keeps as `config.yaml`. Raises ValueError."""
    path = folder / CONFIG
    document = as_mapping(read_yaml(path) or {}, str(path))
    for section in ("model", "environment", "evaluation"):
        if section in document or section == "model":
            as_mapping(document.get(section), f"{path}, {section}")
    benchmark = document.get("benchmark")
    if benchmark is not None and not isinstance(benchmark, str):
        raise ConfigError(f"{path}, benchmark: expected a name, found {benchmark!r}")
    return document


def read_robots(folder: Path) -> list[Robot]:
    """Return the robots of a checkpoint, with their statistics.

    Raises ConfigError or StatisticsError for a file that is missing, damaged, or does not fit the other.
    """
    path = folder / ROBOTS
    listed = read_json(path)
    if not isinstance(listed, list) or not 0 < len(listed) <= MOST_ROBOTS:
        raise ConfigError(f"{path}: expected a list of 1 to {MOST_ROBOTS} robots")
    embodiments = [build(Embodiment, of, where=f"{path}, robot {i}") for i, of in enumerate(listed, 1)]
    names = [e.name for e in embodiments]
    if len(set(names)) != len(names):
        raise ConfigError(f"{path}: two robots have one name: {', '.join(names)}")
    path = folder / STATISTICS
    statistics = read_statistics(path)
    lacking = [name for name in names if name not in statistics]
    if lacking:
        raise StatisticsError(f"{path} lacks the statistics of {', '.join(lacking)}")
    for robot in embodiments:
        check_statistics(statistics[robot.name], robot, f"{path}, {robot.name}")
    return [Robot(e, statistics[e.name]) for e in embodiments]


def check_statistics(statistics: Statistics, robot: Embodiment, where: str) -> None:
    """Raise StatisticsError for numbers that no data set has, or too many or few of them for the robot."""
    _check_vector(statistics.action, robot.action, f"{where}, action")
    _check_vector(statistics.proprio, robot.proprio, f"{where}, proprio")
    if not isinstance(statistics.fingerprint, str):
        raise StatisticsError(f"{where}, fingerprint: expected text")


def _check_vector(of: Any, space: ActionSpace, where: str) -> None:
    if not isinstance(of, Mapping):
        raise StatisticsError(f"{where}: expected lists of numbers by name")
    for key, values in of.items():
        if not isinstance(values, list) or not all(map(_is_number, values)):
            raise StatisticsError(f"{where}, {key}: expected a list of finite numbers")
        if key not in _PER_DIM:
            continue
        if any(abs(value) > VALUE for value in values):
            raise StatisticsError(f"{where}, {key}: a number lies beyond ±{VALUE:g}, in whatever units")
        if len(values) != space.size:
            raise StatisticsError(f"{where}, {key}: {len(values)} numbers for {space.size} dims")
    if any(value < 0 for value in of.get("std", ())):
        raise StatisticsError(f"{where}, std: a standard deviation is never below 0")
    known = [key for key in _ASCENDING if key in of]
    for dim in range(space.size):
        for lower, upper in pairwise(known):
            if of[lower][dim] > of[upper][dim]:
                raise StatisticsError(
                    f"{where}: dim {dim} has {lower} {of[lower][dim]:g} above {upper} {of[upper][dim]:g}"
                )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _names(folder: Path) -> list[str]:
    """Return the names of all files and folders below a folder, links not followed."""
    names: list[str] = []
    for root, folders, files in os.walk(folder):
        names += [(Path(root) / name).relative_to(folder).as_posix() for name in (*folders, *files)]
        if len(names) > MOST_FILES:
            raise ValueError(f"{folder} holds more than {MOST_FILES:,} files: this is no checkpoint")
    return sorted(names)


def _check_tokenizers(backbone: Path) -> None:
    """Refuse a tokenizer that names its files: transformers would read them, wherever they are."""
    for path in sorted(backbone.rglob("tokenizer_config.json")):
        for key, value in as_mapping(read_json(path), str(path)).items():
            if key.endswith("_file") and isinstance(value, str):
                inside(path.parent, value)
