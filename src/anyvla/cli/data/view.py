"""`anyvla data view PATH`: show an episode as a page or as a rerun recording."""

from __future__ import annotations

import argparse
from pathlib import Path

from anyvla.cli import opening


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    opening.add_arguments(parser)
    parser.add_argument("--episode", type=int, default=0, help="number of the episode (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="the folder of the page (default: outputs/view/<data set>-<episode>)")
    parser.add_argument("--rerun", type=Path, metavar="FILE.rrd", help="write a rerun recording instead of a page")


def run(options: argparse.Namespace) -> int:
    """Write the page, and print its path. Raises ValueError for an episode that is missing or damaged."""
    dataset = opening.open_and_warn(options)
    if not 0 <= options.episode < len(dataset):
        raise ValueError(f"{dataset.root} has {len(dataset)} episodes; no episode {options.episode}")
    if options.rerun is not None:
        from anyvla.report.rerun import write_recording

        print(write_recording(dataset, options.episode, options.rerun))
        return 0
    from anyvla.report.episode import write_episode_report

    out = options.out or Path("outputs/view") / f"{dataset.root.name}-{options.episode}"
    print(write_episode_report(dataset, options.episode, out))
    return 0
