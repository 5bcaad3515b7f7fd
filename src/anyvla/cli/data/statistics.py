"""`anyvla data statistics PATH`: print ranges, means and quantiles of every dim, and how normalization uses them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence

from rich.table import Table

from anyvla.cli import opening
from anyvla.cli.common import ProgressBar
from anyvla.cli.console import Console
from anyvla.robot.embodiment import Embodiment

_COLUMNS = ("min", "q01", "mean", "std", "q99", "max")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    opening.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Print a table, or JSON. Raises ValueError for invalid numbers such as NaN."""
    from anyvla.data.robot_statistics import pool_statistics

    dataset = opening.open_and_warn(options)
    with ProgressBar("statistics") as bar:
        statistics = pool_statistics([dataset], progress=bar)
    if options.json:
        print(json.dumps({**vars(statistics), "action": statistics.action, "proprio": statistics.proprio}, indent=1))
        return 0
    Console().print(statistics_table(dataset.embodiment, statistics.action, statistics.proprio))
    return 0


def statistics_table(
    robot: Embodiment, action: Mapping[str, Sequence[float]], proprio: Mapping[str, Sequence[float]]
) -> Table:
    """Return a table with a row per dim of the robot's actions and proprio."""
    from anyvla.robot.ranges import constant_dims

    table = Table(box=None, pad_edge=False)
    for heading in ("", "group", "dim", *_COLUMNS, "worth a look"):
        number = heading in _COLUMNS
        table.add_column(heading, justify="right" if number else "left", no_wrap=number or heading == "dim")
    for name, space, of in (("action", robot.action, action), ("proprio", robot.proprio, proprio)):
        constant = constant_dims(space, of)
        for group, dims in zip(space.groups, space.slices().values(), strict=True):
            for dim in range(dims.start, dims.stop):
                values = {key: of[key][dim] for key in (*_COLUMNS, "low", "high")}
                note = "" if group.kind == "gripper" else remark_on(values, constant[dim])
                label = group.names[dim - dims.start] if group.names else str(dim - dims.start)
                table.add_row(name, group.name, label, *(f"{values[k]:.4g}" for k in _COLUMNS), note)
    return table


def remark_on(values: dict[str, float], constant: bool) -> str:
    """Return a remark on unusual statistics of a dim, or ""."""
    if constant:
        return "never varies"
    if (values["low"], values["high"]) != (values["q01"], values["q99"]):
        return f"rests; scaled by {values['low']:.4g} to {values['high']:.4g}"
    inner, outer = values["q99"] - values["q01"], values["max"] - values["min"]
    if outer > 10 * inner:
        return (
            f"outliers: q01 to q99 is {inner / outer:.1%} of the range; quantile clips them, minmax squeezes the rest"
        )
    return ""
