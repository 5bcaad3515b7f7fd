"""How the commands that look at data open it: by path, with format and embodiment given where they are not known."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anyvla.cli.common import console
from anyvla.config import build
from anyvla.data.episode import EpisodeDataset
from anyvla.data.training.mixture import Source, open_source, read_source
from anyvla.data.undeclared import UndeclaredError
from anyvla.files.documents import parse_yaml
from anyvla.robot.embodiment import Embodiment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which data set."""
    parser.add_argument("path", help="a folder or file of any format, or the id of a LeRobot data set on the hub")
    parser.add_argument("--format", help="its format, where it is not recognized; or options: '{name: calvin, ...}'")
    parser.add_argument(
        "--source",
        type=Path,
        metavar="FILE.yaml",
        help="a source as in a recipe's data.sources (embodiment, cameras, hz, ...), without its path",
    )


@dataclass(frozen=True)
class Looked:
    """A data set to look at. `undeclared`: it declares no embodiment, and is opened with one of no meaning."""

    dataset: EpisodeDataset
    undeclared: UndeclaredError | None
    format: Mapping[str, Any]  # the keys of `format` that it was opened with where it is undeclared


def opened(options: argparse.Namespace) -> EpisodeDataset:
    """Open the data set. Raises ConfigError for options that cannot be, ValueError for data that cannot be opened."""
    keys = _keys(options)
    return open_source(build(Source, keys, where=str(options.source or "options")))


def looked_at(options: argparse.Namespace) -> Looked:
    """Open the data set, with an embodiment of no meaning if it declares none. Raises as `opened`."""
    try:
        return Looked(opened(options), None, {})
    except UndeclaredError as error:
        keys = _keys(options)
        given = keys.pop("format", None)
        format = {**error.options, **({"name": given} if isinstance(given, str) else given or {})}
        keys |= {"format": format} if format else {}
        source = build(Source, keys, where=str(options.source or "options"))
        return Looked(open_source(replace(source, embodiment=error.plain)), error, format)


def viewed(options: argparse.Namespace) -> EpisodeDataset:
    """Open the data set as `looked_at`, and say on standard error if its numbers have no meaning yet."""
    looked = looked_at(options)
    if looked.undeclared is not None:
        console.print(
            f"{options.path} does not say what its numbers mean; they are shown as they are. For a proposal: "
            f"anyvla data info {shlex.quote(options.path)} --write robot.yaml",
            soft_wrap=True,
        )
    return looked.dataset


def _keys(options: argparse.Namespace) -> dict[str, Any]:
    keys: dict[str, Any] = {"unlabeled": "keep"}
    if options.source is not None:
        keys |= read_source(options.source)
    if options.format is not None:
        keys["format"] = parse_yaml(options.format, "--format")
    return {**keys, "path": options.path}


def declared(robot: Embodiment) -> dict[str, dict[str, str]]:
    """What the groups of its vectors mean, in a line each."""
    return {
        name: {g.name: ", ".join(_meaning(vars(g))) for g in space.groups}
        for name, space in (("action", robot.action), ("proprio", robot.proprio))
    }


def _meaning(group: dict[str, object]) -> list[str]:
    out = [f"{group['size']} dims"]
    out += [str(group["mode"])] if group["kind"] != "other" or group["mode"] == "delta" else []
    out += [str(group[key]) for key in ("rotation", "unit") if group[key]]
    out += [f"seen from the {group['frame']}"] if group["frame"] else []
    out += [f"{group['low']:g} to {group['high']:g}"] if group["low"] is not None else []
    out += [f"open at {group['open']:g}"] if group["open"] is not None else []
    return out
