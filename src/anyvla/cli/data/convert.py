"""`anyvla data convert PATH OUT`: a data set of any format as LeRobot v3, verified after writing."""

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
    """The options of the command."""
    opening.add_arguments(parser)
    parser.add_argument("out", type=Path, help="the folder to make; an interrupted conversion goes on there")
    parser.add_argument("--episodes", metavar="FIRST:END", help="only these, as in 0:100")
    parser.add_argument("--processes", type=int, help="how many write at once (default: one per core)")
    parser.add_argument("--skip-damaged", action="store_true", help="leave out episodes that cannot be read, and count")


def run(options: argparse.Namespace) -> int:
    """Convert, and print where."""
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
    """Convert with a progress bar. Raises Interrupted if the person asked to stop."""
    with graceful() as stop, ProgressBar("write") as writing, ProgressBar("verify") as verifying:

        def show(stage: str, done: int, total: int) -> None:
            (writing if stage == "write" else verifying)(done, total)

        report = convert(
            dataset,
            out,
            episodes=episodes,
            processes=processes,
            skip_damaged=skip_damaged,
            progress=show,
            stop=stop,
        )
    noise = ", ".join(f"{camera} {db['worst']:.1f} dB at worst" for camera, db in report.psnr_db.items())
    left = f", {len(report.skipped)} damaged ones left out" if report.skipped else ""
    console.print(
        f"{report.episodes} episodes of {report.steps} steps{left}; read back: numbers equal, {noise or 'no images'}",
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
