"""Checks that need neither data nor weights, so that a mistake is reported within a second of the command."""

from __future__ import annotations

from pathlib import Path

from anyvla.checkpoint.files import CONFIG, WEIGHTS
from anyvla.config import ConfigError
from anyvla.files import tensor_files
from anyvla.training import checkpoint
from anyvla.training.config import TrainingRecipe
from anyvla.training.device import pick_device
from anyvla.training.launchers import check_one_process
from anyvla.training.resume import check_same_recipe, check_steps


def check_before_data(recipe: TrainingRecipe, run: Path) -> None:
    """Check the launcher, the measurements, the device, and that the output folder is free or holds this recipe's run.

    Raises ConfigError, or ValueError for an incomplete checkpoint or one of a later version of anyvla.
    """
    check_one_process("train")
    _check_measurements(recipe)
    pick_device(recipe.training.device)
    _check_run_folder(recipe, run)
    begun = checkpoint.latest(run)
    if begun is not None:
        checkpoint.check_whole(run, begun)
        check_same_recipe(begun, recipe)
        check_steps(run, begun, recipe.training.steps)


def _check_measurements(recipe: TrainingRecipe) -> None:
    """Raise ConfigError for settings of measurements that nothing makes."""
    training, held_out = recipe.training, recipe.data.validation is not None
    remedy = "hold out episodes with data.validation, as in --data.validation.fraction 0.05"
    if training.validate_every is not None and not held_out:
        raise ConfigError(f"training.validate_every is {training.validate_every}, but there is no validation: {remedy}")
    if training.best is not None and not held_out and training.evaluate is None:
        raise ConfigError(
            f"training.best is {training.best!r}, but nothing is measured: {remedy}, or play the policy with "
            "training.evaluate"
        )


def _check_run_folder(recipe: TrainingRecipe, run: Path) -> None:
    """Raise ConfigError for an output folder that is something other than a run."""
    if run.exists() and not run.is_dir():
        raise ConfigError(f"--out {run} is a file: give the folder of a run, such as outputs/{recipe.name}")
    found = None
    if (run / CONFIG).is_file() and tensor_files.exist(run / WEIGHTS):
        found = "a checkpoint"
    elif (run / "meta" / "info.json").is_file() or any(_same_folder(Path(s.path), run) for s in recipe.data.sources):
        found = "a data set"
    if found:
        raise ConfigError(f"--out {run} is {found}, not the folder of a run: choose another, such as {run}-run")


def _same_folder(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
