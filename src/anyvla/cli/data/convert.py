"""`anyvla data convert PATH OUT`: convert a data set of any format to LeRobot v3, and verify the copy."""

from __future__ import annotations

import argparse
from pathlib import Path

from anyvla.cli import opening
from anyvla.cli.common import ProgressBar, console
from anyvla.cli.stopping import graceful
from anyvla.config import ConfigError
from anyvla.data.episode import EpisodeDataset
from anyvla.data.tools.convert import Conversion, convert


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    opening.add_arguments(parser)
    parser.add_argument("out", type=Path, help="the folder to write; an interrupted conversion resumes there")
    parser.add_argument("--episodes", metavar="FIRST:END", help="convert only these, as in 0:100")
    parser.add_argument("--processes", type=int, help="number of processes (default: one per core)")
    parser.add_argument("--skip-damaged", action="store_true", help="leave out and count episodes that cannot be read")


def run(options: argparse.Namespace) -> int:
    """Convert, and print the folder."""
    dataset = opening.open_declared(options)
    episodes = None if options.episodes is None else _range(options.episodes, len(dataset))
    converted(dataset, options.out, episodes=episodes, processes=options.processes, skip_damaged=options.skip_damaged)
    print(options.out)
    return 0


def converted(
    dataset: EpisodeDataset,
    out: Path,
    *,
    episodes: range | None = None,
    processes: int | None = None,
    skip_damaged: bool = False,
) -> Conversion:
    """Convert with a progress bar. Raises Interrupted on Ctrl-C or SIGTERM."""
    with graceful() as stop, ProgressBar("write") as writing, ProgressBar("verify") as verifying:

        def show(stage: str, done: int, total: int) -> None:
            (writing if stage == "write" else verifying)(done, total)

        report = convert(
            dataset, out, episodes=episodes, processes=processes, skip_damaged=skip_damaged, progress=show, stop=stop
        )
    images = ", ".join(f"{camera} {db['worst']:.1f} dB at worst" for camera, db in report.psnr_db.items())
    skipped = f", {len(report.skipped)} damaged ones left out" if report.skipped else ""
    console.print(
        f"{report.episodes} episodes of {report.steps} steps{skipped}; read back: numbers equal, "
        f"{images or 'no images'}",
    )
    return report


def _range(text: str, count: int) -> range:
    first, colon, end = text.partition(":")
    try:
        chosen = range(int(first or 0), int(end or count))
    except ValueError:
        chosen = range(0)
    if not colon or not chosen or chosen.start < 0 or chosen.stop > count:
        raise ConfigError(f"--episodes {text}: give FIRST:END within 0:{count}")
    return chosen
