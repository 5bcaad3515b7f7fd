"""`anyvla data collect RECIPE`: demonstrations by the benchmark's scripted experts, as a LeRobot v3 data set."""

from __future__ import annotations

import argparse
from pathlib import Path

from anyvla.cli.common import Bar, Stopped, console, graceful
from anyvla.config import ConfigError
from anyvla.recipe import Recipe, read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.epilog = "Any key of the recipe can be set: --collect.demonstrations 100"
    parser.add_argument("recipe", help="a YAML file, or the name of a bundled recipe (anyvla list recipes)")
    parser.add_argument("--out", type=Path, help="the run folder (default: outputs/<name of the recipe>)")


def run(options: argparse.Namespace) -> int:
    """Collect, and print where."""
    recipe = read(options.recipe, options.overrides)
    print(collect(recipe, options.out or Path("outputs") / recipe.name))
    return 0


def collect(recipe: Recipe, run: Path) -> Path:
    """Collect the recipe's demonstrations into its run folder; returns the data set."""
    from anyvla.evaluation.collect import Interrupted
    from anyvla.evaluation.collect import collect as run_collection
    from anyvla.evaluation.suites import open_suite

    if recipe.collect is None or recipe.benchmark is None:
        raise ConfigError(
            f"the recipe {recipe.name} has no section collect: its section data says what it is trained on"
        )
    benchmark, suite = open_suite(recipe.benchmark)
    with graceful() as stop, Bar("collect") as bar:
        try:
            root = run_collection(benchmark, suite, recipe.collect, run / "dataset", progress=bar, stop=stop)
        except Interrupted as stopped:
            raise Stopped(str(stopped)) from None
    console.print(f"demonstrations: {root}", highlight=False)
    return root
