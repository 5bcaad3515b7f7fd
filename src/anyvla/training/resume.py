"""Decide whether a run may resume from a checkpoint: with the same recipe, on the same data, wherever they are now.

Data sets are compared by their contents, paths by the file they lead to, and sections with their defaults filled in. A
run may be moved, and settings that change no result may change.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from anyvla.checkpoint.files import STATISTICS, read_document
from anyvla.config import ConfigError, build, to_dict
from anyvla.data.robot_statistics import is_same_data
from anyvla.files import differences
from anyvla.robot.normalize import read_statistics
from anyvla.robot.shared_layout import Robot
from anyvla.training import checkpoint
from anyvla.training.config import TrainingRecipe

logger = logging.getLogger(__name__)

# Settings that change no result, the number of steps, and places: the data there are compared by their contents.
_MAY_CHANGE = (
    "data.workers",
    "data.worker_timeout_s",
    "data.cache_gb",
    "data.root",
    "data.sources.*.path",
    "data.sources.*.format.list",
    "training.steps",
    "training.device",
    "training.log_every",
    "training.checkpoint_every",
)


def find_checkpoint_to_resume(run: Path, recipe: TrainingRecipe, robots: Sequence[Robot]) -> tuple[Path | None, bool]:
    """Return the checkpoint of a run folder to resume from, and whether all steps are done.

    Removes incomplete checkpoints beside it. Raises ValueError for an incomplete checkpoint, ConfigError for one of
    another recipe (see `check_same`) or of more steps than the recipe has.
    """
    begun, done = checkpoint.latest(run), False
    if begun is not None:
        checkpoint.check_whole(run, begun)
        check_same(begun, recipe, robots)
        begun, done = _for_steps(run, begun, recipe.training.steps)
    checkpoint.tidy(run, begun)
    return begun, done


def _for_steps(run: Path, begun: Path, steps: int) -> tuple[Path, bool]:
    """Return the checkpoint from which to resume for `steps` steps in all, and whether it has them."""
    training = read_document(begun).get("training")
    then = training.get("steps", steps) if isinstance(training, Mapping) else steps
    finished = begun == run / "checkpoint"
    if finished and then == steps:
        return begun, True
    checkpoint.check_resumable(begun)
    step = checkpoint.read_step(begun)
    if not finished and begun.name != f"step-{step:08d}":
        raise ValueError(
            f"{begun / checkpoint.STATE}, step: {step} is not the step of {begun.name}: the file is damaged"
        )
    if step == steps == then:  # opened again for more steps, which are no longer wanted
        return checkpoint.close(run, begun), True
    if step >= steps:
        raise ConfigError(
            f"{begun} has {step} steps already, and training.steps is {steps}: give more steps, or choose another "
            "output folder"
        )
    if then != steps:
        logger.warning(
            "training.steps was %d and is %d: from step %d on the learning rate follows the schedule of %d steps, so "
            "the result differs from that of a run that had them from the start",
            *(then, steps, step + 1, steps),
        )
    return begun, False


def check_same(folder: Path, recipe: TrainingRecipe, robots: Sequence[Robot]) -> None:
    """Refuse a checkpoint of another recipe or other data. Raises ConfigError with the differences."""
    stored = read_document(folder)
    sections: dict[str, Any] = {"model": recipe.model, "data": recipe.data, "training": recipe.training}
    way_out = (
        f"Resume with the settings of {folder / 'config.yaml'}, choose another output folder, or remove "
        f"{folder.parent} to train anew"
    )
    differences.check_same(
        {key: _with_defaults(type(of), stored.get(key)) for key, of in sections.items()},
        {key: to_dict(of) for key, of in sections.items()},
        f"{folder} was made by another recipe ({{}}). {way_out}",
        may_differ=lambda found: (
            any(fnmatchcase(found.key, pattern) for pattern in _MAY_CHANGE) or _same_place(found.old, found.new)
        ),
        names=("there", "now"),
        error=ConfigError,
    )
    then = read_statistics(folder / STATISTICS)
    now = {r.embodiment.name: r.statistics for r in robots}
    if then.keys() != now.keys() or not all(is_same_data(then[name], now[name]) for name in now):
        old, new = (", ".join(f"{name} {of.fingerprint[:12]}" for name, of in all_.items()) for all_ in (then, now))
        raise ConfigError(f"{folder} was trained on other data ({old}, now {new}). {way_out}")


def _with_defaults(cls: type[Any], section: Any) -> Any:
    """Return a section with its defaults, so that a key that is newer than the checkpoint makes no difference."""
    try:
        return to_dict(build(cls, section or {}))
    except ConfigError:  # of an older version, or of a test
        return section


def _same_place(old: Any, new: Any) -> bool:
    """Return whether two texts are paths to one file or folder, as `data/a` and `/home/me/data/a`."""
    try:
        return isinstance(old, str) and isinstance(new, str) and Path(old).samefile(new)
    except (OSError, ValueError):
        return False
