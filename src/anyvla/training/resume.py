"""Decide whether a run may resume from a checkpoint: with the same recipe, on the same data, wherever they are now.

Data sets are compared by their contents, paths by the file they lead to, and sections with their defaults filled in. A
run may be moved, and settings that change no result may change.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anyvla.checkpoint.files import CONFIG, STATISTICS, read_document
from anyvla.checkpoint.of_run import FINAL
from anyvla.config import ConfigError, build, to_dict
from anyvla.data.robot_statistics import is_same_data
from anyvla.files import differences
from anyvla.robot.normalize import read_statistics
from anyvla.robot.shared_layout import Robot
from anyvla.training import checkpoint
from anyvla.training.config import TrainingRecipe
from anyvla.training.kept import remove_surplus
from anyvla.training.processes import Processes
from anyvla.training.resume_rules import ROUNDING, find_rule, may_change
from anyvla.training.schedules import describe_other_steps
from anyvla.training.warm_start.record import read_record

logger = logging.getLogger(__name__)

_SHARED_WITHIN_S = 30.0  # in which a network file system shows a new folder to the other machines


def find_checkpoint_to_resume(run: Path, recipe: TrainingRecipe, robots: Sequence[Robot]) -> tuple[Path | None, bool]:
    """Return the checkpoint of a run folder to resume from, and whether all steps are done.

    Removes incomplete checkpoints, and those that `training.keep` does not ask for. Raises ValueError for an incomplete
    checkpoint, ConfigError for one of another recipe (see `check_same_recipe`), other data or too many steps.
    """
    begun, done = checkpoint.latest(run), False
    if begun is not None:
        checkpoint.check_whole(run, begun)
        changed = check_same_recipe(begun, recipe)
        check_same_data(begun, robots)
        done = check_steps(run, begun, recipe.training.steps)
        if done and begun != run / FINAL:
            begun = checkpoint.close(run, begun)
        if not done:
            _report(changed, begun, recipe)
    checkpoint.tidy(run)
    remove_surplus(run, recipe.training.keep)
    return begun, done


def share_checkpoint_to_resume(
    run: Path, recipe: TrainingRecipe, robots: Sequence[Robot], processes: Processes
) -> tuple[Path | None, bool]:
    """Return the result of `find_checkpoint_to_resume`, which the first process finds, in all processes.

    Raises ConfigError in a process that does not see the folder of the run.
    """

    def find() -> tuple[str | None, bool]:
        begun, complete = find_checkpoint_to_resume(run, recipe, robots)
        return None if begun is None else str(begun), complete

    folder, complete = processes.on_main(find)
    begun = None if folder is None else Path(folder)
    end = time.monotonic() + _SHARED_WITHIN_S
    while begun is not None and not begun.is_dir():
        if time.monotonic() > end:
            raise ConfigError(
                f"{begun}, from which the run resumes, is not on this machine: give --out a folder that all machines "
                "share"
            )
        time.sleep(0.5)
    return begun, complete


def check_steps(run: Path, begun: Path, steps: int) -> bool:
    """Return whether a checkpoint has all of `steps` steps and was trained for so many.

    Raises ConfigError if it has as many or more but was to be trained longer, ValueError if it lacks a file to resume.
    """
    training = read_document(begun).get("training")
    then = training.get("steps", steps) if isinstance(training, Mapping) else steps
    finished = begun == run / FINAL
    if finished and then == steps:
        return True
    checkpoint.check_resumable(begun)
    step = checkpoint.read_step(begun)
    if not finished and begun.name != f"step-{step:08d}":
        raise ValueError(
            f"{begun / checkpoint.STATE}, step: {step} is not the step of {begun.name}: the file is damaged"
        )
    if step == steps == then:  # opened again for more steps, which are no longer wanted
        return True
    if step >= steps:
        raise ConfigError(
            f"{begun} has {step} steps already, and training.steps is {steps}: give more steps, or choose another "
            f"output folder. To use the policy as it is: anyvla eval {begun}"
        )
    return False


def check_same_recipe(folder: Path, recipe: TrainingRecipe) -> list[differences.Difference]:
    """Refuse a checkpoint of another recipe, by the rules of `resume_rules`. Return the changes that are allowed.

    Raises ConfigError with the keys that differ, and both values of each.
    """
    stored = read_document(folder)
    sections: dict[str, Any] = {"model": recipe.model, "data": recipe.data, "training": recipe.training}
    found = differences.find_differences(
        {key: _with_defaults(type(of), stored.get(key)) for key, of in sections.items()},
        {key: to_dict(of) for key, of in sections.items()},
    )
    if refused := [one for one in found if not may_change(one.key) and not _same_place(one.old, one.new)]:
        listed = differences.format_differences(refused, "there", "now")
        raise ConfigError(f"{folder} was made by another recipe ({listed}). {_way_out(folder)}")
    return found


def _report(changed: Sequence[differences.Difference], begun: Path, recipe: TrainingRecipe) -> None:
    """Log a warning for each key that changes later steps or rounds differently."""
    for one in changed:
        rule = find_rule(one.key)
        if rule is not None and rule.verdict == ROUNDING:
            logger.warning(
                "%s was %r and is %r: %s. Results differ by rounding from those of a run without the change",
                *(one.key, one.old, one.new, rule.reason),
            )
        elif one.key == "training.steps":
            step = checkpoint.read_step(begun)
            logger.warning("%s", describe_other_steps(recipe.training.optim, step, one.old, one.new))


def check_same_data(folder: Path, robots: Sequence[Robot]) -> None:
    """Refuse a checkpoint that was trained on other data. Raises ConfigError with the fingerprints."""
    then, record = read_statistics(folder / STATISTICS), read_record(folder)
    if record is not None:  # a policy may use the statistics of other data than it learns from
        then |= record.statistics_of_data()
    now = {r.embodiment.name: r.statistics for r in robots}
    if then.keys() != now.keys() or not all(is_same_data(then[name], now[name]) for name in now):
        old, new = (", ".join(f"{name} {of.fingerprint[:12]}" for name, of in all_.items()) for all_ in (then, now))
        raise ConfigError(f"{folder} was trained on other data ({old}, now {new}). {_way_out(folder)}")


def _way_out(folder: Path) -> str:
    run = folder.parent if folder.name == FINAL else folder.parent.parent
    return (
        f"Resume with the settings of {folder / CONFIG}, choose another output folder, or remove {run / FINAL} and "
        f"{run / 'train'} to train anew"
    )


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
