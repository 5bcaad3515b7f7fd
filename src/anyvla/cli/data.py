"""`anyvla data collect RECIPE` makes demonstrations; `anyvla data info FOLDER` looks at a data set; `anyvla data
fit-codec RECIPE` fits the codec that makes its actions tokens.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from anyvla.cli.common import Bar, Stopped, console, graceful
from anyvla.config import ConfigError
from anyvla.recipe import Recipe, read


def main(argv: list[str]) -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="anyvla data", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    collecting = verbs.add_parser(
        "collect",
        help="demonstrations by the benchmark's scripted experts, as a LeRobot v3 data set",
        epilog="Any key of the recipe can be set: --collect.demonstrations 100",
    )
    collecting.add_argument("recipe", help="a YAML file, or the name of a bundled recipe (anyvla list recipes)")
    collecting.add_argument("--out", type=Path, help="the run folder (default: outputs/<name of the recipe>)")
    fitting = verbs.add_parser(
        "fit-codec",
        help="fit the codec of the recipe's representation to its data; how far decoded tokens are from the actions",
        epilog="Any key of the recipe can be set: --model.representation.bins 100",
    )
    fitting.add_argument("recipe", help="a YAML file, or the name of a bundled recipe (anyvla list recipes)")
    fitting.add_argument("--out", type=Path, help="the run folder (default: outputs/<name of the recipe>)")
    fitting.add_argument("--json", action="store_true", help="the report, machine-readable, on standard output")
    looking = verbs.add_parser("info", help="episodes, frames, cameras, tasks, statistics")
    looking.add_argument("folder", type=Path)
    looking.add_argument("--json", action="store_true", help="machine-readable, on standard output")
    options, rest = parser.parse_known_args(argv)
    if options.verb == "info":
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        return info(options.folder, options.json)
    recipe = read(options.recipe, rest)
    run = options.out or Path("outputs") / recipe.name
    if options.verb == "fit-codec":
        from anyvla.cli.fit_codec import fit_codec, show

        show(fit_codec(recipe, run), options.json)
        return 0
    print(collect(recipe, run))
    return 0


def info(folder: Path, as_json: bool) -> int:
    """Print what a data set holds."""
    from anyvla.data.formats.lerobot import LeRobotDataset

    dataset = LeRobotDataset(folder)
    lengths = dataset.lengths
    robot = dataset.embodiment
    facts: dict[str, Any] = {
        "robot": robot.name,
        "cameras": list(robot.cameras),
        "control_hz": robot.control_hz,
        "episodes": len(lengths),
        "frames": sum(lengths),
        "length": {"min": min(lengths), "mean": round(sum(lengths) / len(lengths), 1), "max": max(lengths)},
        "proprio": {g.name: g.size for g in robot.proprio.groups},
        "action": {g.name: g.size for g in robot.action.groups},
        "fingerprint": dataset.fingerprint,
        "statistics": dataset.statistics,
    }
    if as_json:
        print(json.dumps(facts, indent=1))
        return 0
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in facts.items():
        if key != "statistics":
            table.add_row(key, str(value))
    Console().print(table)
    return 0


def collect(recipe: Recipe, run: Path) -> Path:
    """Collect the recipe's demonstrations into its run folder; returns the data set."""
    from anyvla.evaluation.collect import Interrupted
    from anyvla.evaluation.collect import collect as run_collection
    from anyvla.evaluation.suites import open_suite

    if recipe.collect is None or recipe.benchmark is None:
        raise ConfigError(f"the recipe {recipe.name} has no section collect: its data is {recipe.data.sources[0].path}")
    benchmark, suite = open_suite(recipe.benchmark)
    with graceful() as stop, Bar("collect") as bar:
        try:
            root = run_collection(benchmark, suite, recipe.collect, run / "dataset", progress=bar, stop=stop)
        except Interrupted as stopped:
            raise Stopped(str(stopped)) from None
    console.print(f"demonstrations: {root}", highlight=False)
    return root
