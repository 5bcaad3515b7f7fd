"""`anyvla study job FOLDER NAME`: run one job of a study. Executors call this, one process for each job."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from anyvla.cli.stage_meter import StageMeter
from anyvla.files.folder_lock import FolderInUse
from anyvla.interrupted import Interrupted

if TYPE_CHECKING:
    from anyvla.cli.recipe_help import KeyParser
    from anyvla.recipe import Recipe
    from anyvla.study.folder import StudyFolder


def add_arguments(parser: KeyParser) -> None:
    """Add the options of the command."""
    parser.add_argument("folder", type=Path, help="of the study")
    parser.add_argument("name", help="of the job, as in made/NAME")
    parser.add_argument("--threads", type=int, default=1, help="simulators to run at once (default: 1)")
    parser.add_argument("--end-with-parent", action="store_true", help="end when standard input ends")


def run(options: argparse.Namespace) -> int:
    """Run the job, and write `done.json` or `failed.json` into its folder."""
    from anyvla.study.folder import Failure, StudyFolder
    from anyvla.study.schedule import IN_USE

    if options.end_with_parent:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    folder = StudyFolder(options.folder)
    try:
        _run(folder, options.name, options.threads)
    except FolderInUse as error:
        print(error, file=sys.stderr)
        return IN_USE
    except (Interrupted, KeyboardInterrupt):  # can be resumed
        raise
    except Exception as error:
        traceback.print_exc()
        folder.set_failure(options.name, Failure(f"{type(error).__name__}: {error}"))
        return 1
    return 0


def _run(folder: StudyFolder, name: str, threads: int) -> None:
    from anyvla.cli.data.collect import collect
    from anyvla.cli.data.fit_codec import fit_codec_if_needed
    from anyvla.cli.evaluate import play
    from anyvla.cli.train import train
    from anyvla.study.folder import Done, measure_folder

    kind, recipe, policy = folder.recipe_of(name)
    run = folder.of(name)
    with StageMeter(run, kind) as meter:
        if kind == "collect":
            collect(_with_processes(recipe, threads), run)
        elif kind == "codec":
            fit_codec_if_needed(recipe, run)
        elif kind == "train":
            train(recipe, run, features=folder.features)
        else:
            assert recipe.benchmark is not None
            assert policy is not None
            config = _with_processes(recipe, threads).evaluation
            play(policy / "checkpoint", recipe.benchmark, recipe.environment, config, run, videos=False)
    asked = recipe.evaluation
    done = Done(
        meter.minutes,
        meter.peak_memory_gb,
        measure_folder(run),
        asked.episodes or 0,
        asked.unrelated_episodes or 0,
    )
    folder.set_done(name, done)


def _with_processes(recipe: Recipe, count: int) -> Recipe:
    """Return the recipe with as many simulator processes."""
    collect = None if recipe.collect is None else dataclasses.replace(recipe.collect, processes=count)
    return dataclasses.replace(
        recipe, collect=collect, evaluation=dataclasses.replace(recipe.evaluation, processes=count)
    )


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):  # a read of sys.stdin's buffer would abort a process that ends by itself
        pass
    os.killpg(0, signal.SIGINT)
