"""`anyvla data fit-codec RECIPE`: the command; what it does stands in `fit_codec`."""

from __future__ import annotations

import argparse
from pathlib import Path

from anyvla.recipe import read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.epilog = "Any key of the recipe can be set: --model.representation.bins 100"
    parser.add_argument("recipe", help="a YAML file, or the name of a bundled recipe (anyvla list recipes)")
    parser.add_argument("--out", type=Path, help="the run folder (default: outputs/<name of the recipe>)")
    parser.add_argument("--json", action="store_true", help="the report, machine-readable, on standard output")


def run(options: argparse.Namespace) -> int:
    """Fit, and print how well."""
    from anyvla.cli.data.codec import fit_codec, show

    recipe = read(options.recipe, options.overrides)
    show(fit_codec(recipe, options.out or Path("outputs") / recipe.name), options.json)
    return 0
