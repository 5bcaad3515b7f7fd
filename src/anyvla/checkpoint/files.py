"""Check and read the files of a checkpoint folder before anything is built from them.

A checkpoint may come from someone else, and disks and downloads damage files. Every refusal is one ValueError with the
file and, if there is one, the key. `anyvla.files.weights.load` checks names, shapes and types of weights, which needs
the model, before any parameter changes.
"""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Any

from anyvla.checkpoint.of_chain import last_run, list_stages
from anyvla.checkpoint.of_run import FINAL, STATE, find_checkpoint, read_state, step_folders
from anyvla.config import ConfigError, build
from anyvla.files import tensor_files
from anyvla.files.documents import as_mapping, read_json, read_yaml
from anyvla.files.inside import resolve_inside
from anyvla.files.stage_paths import stage_folder
from anyvla.migrations import RECIPE, check_schema, migrate_recipe
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.normalize import StatisticsError, read_statistics
from anyvla.robot.shared_layout import Robot
from anyvla.robot.statistics_check import check_size

CONFIG, ROBOTS, STATISTICS, WEIGHTS = "config.yaml", "embodiments.json", "statistics.json", "model.safetensors"
MOST_FILES = 10_000
MOST_ROBOTS = 256
LARGEST_TEXT = 1 << 28  # bytes of a JSON file of a backbone; tokenizers have tens of megabytes


def checkpoint_of(run: Path, which: str | None = None) -> Path:
    """Return a checkpoint of a run folder, or `run` itself, which may be a checkpoint or a name on the hub.

    `which`: "last", "best" or a number of steps; None: the finished one. Raises ConfigError if there is no such
    checkpoint, or if the run was not trained to its end and `which` is None. A chain of stages has those of its last
    stage.
    """
    if (stages := list_stages(run)) and not (run / FINAL).is_dir():
        trained = [stage for stage in stages if (stage_folder(run, stage) / FINAL).is_dir()]
        raise ConfigError(
            f"{run} is a chain of stages that is not trained to its end: run the same `anyvla train` to resume, or "
            f"give the folder of a stage, as {stage_folder(run, (trained or stages)[-1])}"
        )
    run = last_run(run)
    if which is not None:
        return find_checkpoint(run, which)
    if (run / FINAL).is_dir():
        return run / FINAL
    steps = [folder for folder in step_folders(run) if (folder / CONFIG).is_file()]
    if steps and not (run / CONFIG).is_file():
        raise ConfigError(
            f"{run} holds no checkpoint yet, its training was stopped: run the same `anyvla train` to resume. To use "
            f"the policy as it is now, give {steps[-1]}"
        )
    return run


def check_checkpoint(folder: Path) -> None:
    """Refuse a folder that lacks a file, or holds one that no checkpoint has.

    Raises a ValueError that names every missing file, or the first one that leads out of the folder, is no regular
    file, or is damaged in a way that can be seen without a model.
    """
    check_schemas(folder)
    lacking = [name for name in (CONFIG, ROBOTS, STATISTICS) if not os.path.lexists(folder / name)]
    lacking += [] if tensor_files.exist(folder / WEIGHTS) else [WEIGHTS]
    if CONFIG in lacking:
        raise ValueError(f"{folder} is no checkpoint of anyvla: it has no {CONFIG}")
    if lacking:
        raise ValueError(
            f"{folder} is no whole checkpoint, it lacks {', '.join(lacking)}: copy the folder again, or train anew"
        )
    below = list(islice(folder.rglob("*"), MOST_FILES + 1))
    if len(below) > MOST_FILES:
        raise ValueError(f"{folder} holds more than {MOST_FILES:,} files: this is no checkpoint")
    for name in sorted(path.relative_to(folder).as_posix() for path in below):
        path = resolve_inside(folder, name)
        if path.suffix == ".json" and path.is_file() and path.stat().st_size > LARGEST_TEXT:
            raise ValueError(f"{path} has more than {LARGEST_TEXT:,} bytes, too many for such a file")
    with tensor_files.opened(folder / WEIGHTS):
        pass  # the headers are complete, and no tensor is outside of its file
    _check_tokenizers(folder / "backbone")


def check_schemas(folder: Path) -> None:
    """Raise ValueError for a checkpoint that a later version of anyvla wrote, whichever files that one needs."""
    path = folder / CONFIG
    if path.is_file():
        check_schema(as_mapping(read_yaml(path) or {}, str(path)), RECIPE, str(path))
    if (folder / STATE).is_file():
        read_state(folder)


def read_document(folder: Path) -> dict[str, Any]:
    """Return the recipe that a checkpoint keeps as `config.yaml`, under today's names. Raises ValueError."""
    path = folder / CONFIG
    document = migrate_recipe(as_mapping(read_yaml(path) or {}, str(path)), str(path))
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
        of = statistics[robot.name]
        try:
            check_size(of.action, robot.action.size, f"{path}, {robot.name}, action")
            check_size(of.proprio, robot.proprio.size, f"{path}, {robot.name}, proprio")
        except ValueError as error:
            raise StatisticsError(str(error)) from None
    return [Robot(e, statistics[e.name]) for e in embodiments]


def download_checkpoint(name: str) -> Path:
    """Return the folder of a checkpoint of the hub. Raises ValueError if there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"no checkpoint at {name!r}: it is no folder here, and the hub gave none ({type(error).__name__})"
        ) from None


def _check_tokenizers(backbone: Path) -> None:
    """Refuse a tokenizer that names its files: transformers would read them, wherever they are."""
    for path in sorted(backbone.rglob("tokenizer_config.json")):
        for key, value in as_mapping(read_json(path), str(path)).items():
            if key.endswith("_file") and isinstance(value, str):
                resolve_inside(path.parent, value)
