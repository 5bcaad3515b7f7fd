"""Checks that need neither data nor weights, so that a mistake is reported within a second of the command."""

from __future__ import annotations

from pathlib import Path

from anyvla.checkpoint.files import CONFIG, WEIGHTS
from anyvla.config import ConfigError
from anyvla.files import tensor_files
from anyvla.training import checkpoint
from anyvla.training.accelerate_options import check_accelerate_options
from anyvla.training.agreement import check_batch_divides, check_same_program
from anyvla.training.config import TrainingRecipe
from anyvla.training.device import pick_own_device, pick_precision
from anyvla.training.machine_limits import check_file_descriptors, check_shared_memory
from anyvla.training.processes import Processes
from anyvla.training.resume import check_same_recipe, check_steps
from anyvla.training.shard_rules import check_shardable


def check_before_data(recipe: TrainingRecipe, run: Path, processes: Processes) -> None:
    """Check the processes, the measurements, the device, and that the output folder is free or holds this recipe's run.

    Raises ConfigError, or ValueError for an incomplete checkpoint or one of a later version of anyvla.
    """
    check_same_program(recipe, processes)
    training = recipe.training
    check_batch_divides(training, processes)
    _check_measurements(recipe)
    device = pick_own_device(training.device, processes)
    check_accelerate_options(training, device, pick_precision(training.precision, device))
    check_shardable(recipe, device, processes)
    check_file_descriptors(recipe.data.workers, processes)
    check_shared_memory(device, processes)
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
