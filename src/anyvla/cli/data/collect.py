"""`anyvla data collect RECIPE|BENCHMARK`: demonstrations by scripted experts, as a LeRobot v3 data set."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anyvla.cli.common import ProgressBar, console
from anyvla.cli.stopping import graceful
from anyvla.config import ConfigError, build, override
from anyvla.demonstrations.collect import CollectConfig
from anyvla.files.folder_lock import only_making
from anyvla.recipe import Recipe, read
from anyvla.registry import benchmarks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.epilog = (
        "Any key of the recipe can be set: --collect.demonstrations 100; of a benchmark, those of its section collect: "
        "--demonstrations 20 --tasks '[door-open]' --environment.render native"
    )
    parser.add_argument("recipe", help="a YAML file, a bundled recipe (anyvla list recipes), or as libero/spatial")
    parser.add_argument("--out", type=Path, help="the run folder (default: outputs/<name of the recipe>)")
    parser.add_argument("--python", help="the interpreter that the simulator is installed in (default: this one)")


def run(options: argparse.Namespace) -> int:
    """Collect, and print where."""
    name = options.recipe
    if name.partition("/")[0] in benchmarks and not Path(name).is_file():
        given = override({}, options.overrides)
        settings = given.pop("environment", {})
        config = build(CollectConfig, given, where="collect")
        out = options.out or Path("outputs") / name.replace("/", "-")
        print(demonstrations(name, settings, config, out, options.python))
        return 0
    recipe = read(name, options.overrides)
    print(collect(recipe, options.out or Path("outputs") / recipe.name, options.python))
    return 0


def collect(recipe: Recipe, run: Path, python: str | None = None) -> Path:
    """Collect the recipe's demonstrations into its run folder; returns the data set."""
    if recipe.collect is None or recipe.benchmark is None:
        raise ConfigError(
            f"the recipe {recipe.name} has no section collect: its section data says what it is trained on"
        )
    return demonstrations(recipe.benchmark, recipe.environment, recipe.collect, run, python)


def demonstrations(
    benchmark: str, settings: Mapping[str, Any], config: CollectConfig, run: Path, python: str | None
) -> Path:
    """Collect a suite's demonstrations into a run folder; returns the data set."""
    from anyvla.demonstrations.collect import collect as run_collection
    from anyvla.evaluation.suites import open_suite

    with only_making(run / "dataset"):
        opened = open_suite(benchmark, settings, python)
        with graceful() as stop, ProgressBar("collect") as bar:
            try:
                root = run_collection(opened, config, run / "dataset", progress=bar, stop=stop)
            finally:
                opened.benchmark.close()
    console.print(f"demonstrations: {root}")
    return root
