"""Check before the first step that the processes of a training agree: on versions, recipe and data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from anyvla.config import ConfigError, to_dict
from anyvla.files import differences
from anyvla.training.card import versions
from anyvla.training.config import TrainingConfig, TrainingRecipe
from anyvla.training.processes import Processes


def check_batch_divides(config: TrainingConfig, processes: Processes) -> None:
    """Raise ConfigError for a batch that the processes and their parts cannot share equally."""
    pieces = processes.count * config.accumulate
    if config.batch_size % pieces:
        below = config.batch_size // pieces * pieces
        raise ConfigError(
            f"training.batch_size is {config.batch_size}, the windows of one step over all {processes.count} "
            f"processes, each in {config.accumulate} part{'s' * (config.accumulate > 1)} (training.accumulate): it "
            f"must be a multiple of {pieces}, such as {f'{below} or ' if below else ''}{below + pieces}"
        )


def check_same_program(recipe: TrainingRecipe, processes: Processes) -> None:
    """Raise ConfigError if a process has other versions of the packages, or another recipe, than process 0."""
    check_same("versions", versions(), "install the same ones on each machine", processes)
    sections = {"model": recipe.model, "data": recipe.data, "training": recipe.training}
    document = json.loads(json.dumps({key: to_dict(of) for key, of in sections.items()}, default=str))
    check_same("recipe", document, "give each process the same file and the same options", processes, _is_path)


def check_same_data(fingerprints: Mapping[str, str], processes: Processes) -> None:
    """Raise ConfigError if a process has other data than process 0. `fingerprints`: of the data of each robot."""
    check_same("data", dict(fingerprints), "copy the same files to each machine", processes)


def check_same(
    what: str,
    own: dict[str, Any],
    remedy: str,
    processes: Processes,
    may_differ: Callable[[differences.Difference], bool] = lambda _: False,
) -> None:
    """Raise ConfigError, in every process, if the documents of JSON differ."""
    every = processes.gather(own)
    for rank, other in enumerate(every):
        refusal = f"{processes.describe(0)} and {processes.describe(rank)} have different {what} ({{}}): {remedy}"
        names = ("in process 0", f"in process {rank}")
        differences.check_same(every[0], other, refusal, may_differ=may_differ, names=names, error=ConfigError)


def _is_path(difference: differences.Difference) -> bool:
    """Return whether a key is the path of data, which each machine may keep in a place of its own."""
    return re.fullmatch(r"data\.(root|sources\.\d+\.path)", difference.key) is not None
