"""How the commands that look at data open it: by path, with format and embodiment given where they are not known."""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from anyvla.config import ConfigError, build
from anyvla.data.episode import Embodiment, EpisodeDataset
from anyvla.data.mixture import Source, open_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which data set."""
    parser.add_argument("path", help="a folder or file of any format, or the id of a LeRobot data set on the hub")
    parser.add_argument("--format", help="its format, where it is not recognised; or options: '{name: calvin, ...}'")
    parser.add_argument(
        "--source",
        type=Path,
        metavar="FILE.yaml",
        help="a source as in a recipe's data.sources (embodiment, cameras, hz, ...), without its path",
    )


def opened(options: argparse.Namespace) -> EpisodeDataset:
    """The data set. Raises ConfigError for options that cannot be, ValueError for data that cannot be opened."""
    keys = {"unlabelled": "keep"}
    if options.source is not None:
        try:
            keys |= yaml.safe_load(options.source.read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise ConfigError(f"cannot read {options.source}: {error.strerror}") from None
    if options.format is not None:
        keys["format"] = yaml.safe_load(options.format)
    return open_source(build(Source, {**keys, "path": options.path}, where=str(options.source or "options")))


def declared(robot: Embodiment) -> dict[str, dict[str, str]]:
    """What the groups of its vectors mean, in a line each."""
    return {
        name: {g.name: ", ".join(_meaning(vars(g))) for g in space.groups}
        for name, space in (("action", robot.action), ("proprio", robot.proprio))
    }


def _meaning(group: dict[str, object]) -> list[str]:
    out = [f"{group['size']} dims", str(group["mode"])]
    out += [str(group[key]) for key in ("rotation", "unit") if group[key]]
    out += [f"seen from the {group['frame']}"] if group["frame"] else []
    out += [f"{group['low']:g} to {group['high']:g}"] if group["low"] is not None else []
    out += [f"open at {group['open']:g}"] if group["open"] is not None else []
    return out
