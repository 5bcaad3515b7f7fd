"""`anyvla train RECIPE`: train a policy, in one stage or several, or resume an interrupted training."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from anyvla.cli.chain import read_chain, train_chain
from anyvla.cli.common import ProgressBar, console, read_recipe
from anyvla.cli.in_training import InTrainingEvaluation
from anyvla.cli.recipe_help import KeyParser
from anyvla.cli.stopping import graceful
from anyvla.cli.together import joined, silent_unless_first
from anyvla.config import ConfigError
from anyvla.files.folder_lock import lock_folder

if TYPE_CHECKING:
    from anyvla.data.training.mixture import Mixture
    from anyvla.recipe import Recipe
    from anyvla.training.launchers import Launch
    from anyvla.training.meter import Progress
    from anyvla.training.processes import Processes

PROFILED, MOST_PROFILED = 20, 1000  # steps


def main(argv: list[str]) -> int:
    """Train, and print the folder of the checkpoint. In several processes, the first one prints."""
    from anyvla.training.launchers import read_launch

    launch = read_launch()
    with silent_unless_first(launch):
        return _train(argv, launch)


def _train(argv: list[str], launch: Launch | None) -> int:
    parser = KeyParser(
        prog="anyvla train",
        description=__doc__,
        epilog="Any key of the recipe can be set: --training.steps 2000 --model.fuser.name gpt; of one stage of a "
        "recipe with stages: --stages.finetune.training.steps 500",
    )
    parser.add_recipe()
    parser.add_argument(
        "--profile",
        nargs="?",
        type=_count_steps,
        const=PROFILED,
        metavar="STEPS",
        help=f"show where the time of a step goes, over some steps (default: {PROFILED}); writes profile/ in the run",
    )
    options, overrides = parser.parse_known_args(argv)
    with joined(launch) as processes:
        run = partial(train, profile=options.profile, processes=processes)
        chain = read_chain(options, overrides)
        print(run(*read_recipe(options, overrides)) if chain is None else train_chain(chain, run, processes))
    return 0


def _count_steps(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= MOST_PROFILED:
        raise argparse.ArgumentTypeError(f"a number of steps from 1 to {MOST_PROFILED} is expected, not {text!r}")
    return int(text)


def describe(progress: Progress) -> str:
    """Return the loss and the speed of a training in a line."""
    utilization = "" if progress.mfu is None else f", MFU {progress.mfu:.0%}"
    return (
        f"loss {progress.loss:.4f}, {progress.samples_per_s:.0f} samples/s, data wait {progress.wait_share:.0%}"
        f"{utilization}, {progress.memory_gb:.1f} GB"
    )


def open_data(recipe: Recipe, run: Path) -> Mixture:
    """Open the data of a recipe. Raises ConfigError, with the command to run, if it has not been collected yet."""
    from anyvla.data.training.mixture import open_mixture
    from anyvla.recipe import collect_command

    root = run / "dataset"  # the demonstrations that the recipe collects
    if not recipe.data.given and not root.is_dir():
        raise ConfigError(f"there are no demonstrations at {root} yet; make them with: {collect_command(recipe, run)}")
    with ProgressBar("hold out") as bar:
        return open_mixture(recipe.data, root, bar)


def train(
    recipe: Recipe,
    run: Path,
    profile: int | None = None,
    features: Path | None = None,
    processes: Processes | None = None,
) -> Path:
    """Train the recipe in its run folder, and profile some steps of it. Return the checkpoint.

    `features`: a folder in which several trainings keep the features of frozen vision towers. `processes`: those of
    this training, each of which calls this function. None: there is only this process.
    """
    from anyvla.planning.out_of_memory import explaining_out_of_memory
    from anyvla.training.loop import train as run_training
    from anyvla.training.preflight import check_before_data
    from anyvla.training.processes import Processes
    from anyvla.training.warm_start.start import find_origin

    processes = processes or Processes.single()
    check_before_data(recipe, run, processes)
    with processes.only_main(partial(lock_folder, run)):
        find_origin(recipe, run)  # refused before the statistics, which may take minutes
        evaluates = recipe.training.evaluate is not None and processes.is_main
        evaluations = [InTrainingEvaluation(recipe, run)] if evaluates else []
        with processes.main_first():  # the others find hashes and statistics in the cache
            mixture = open_data(recipe, run)
            with ProgressBar("statistics") as bar:
                mixture.robots(bar)  # the mixture keeps them; here, Ctrl-C stops at once
        with graceful(quietly=not processes.is_main) as stop, ProgressBar("train") as bar:

            def show(p: Progress) -> None:
                bar(p.step, p.steps, describe(p))

            say = partial(console.print, soft_wrap=True)
            for of in evaluations:
                of.report_to(say, bar, stop)
            with explaining_out_of_memory(recipe, run, processes.count):
                checkpoint = run_training(
                    recipe,
                    mixture,
                    run,
                    progress=show,
                    say=say,
                    stop=stop,
                    measurements=evaluations,
                    profile=profile,
                    features=features,
                    processes=processes,
                )
    console.print(f"trained: {checkpoint}")
    return checkpoint
