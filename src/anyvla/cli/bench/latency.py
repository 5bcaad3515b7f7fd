"""`anyvla bench latency CHECKPOINT`: where the time of a chunk goes, and the control rate that follows.

Observations travel as to `anyvla serve --protocol openpi`, but within this process. Each round computes a chunk three
times: with a clock around each stage, without clocks, and through the server's code, which hands requests from one
thread to another. If the clocks slow it down, the first two differ. A network takes its time on top.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from anyvla.cli.acting_robot import choose_acting_robot
from anyvla.cli.common import ProgressBar, console
from anyvla.cli.console import Console
from anyvla.config import ConfigError

if TYPE_CHECKING:
    from anyvla.cli.bench.measurement import Latency, Times


def main(argv: list[str]) -> int:
    """Print a table for each device (or, with --json, one JSON object)."""
    parser = argparse.ArgumentParser(
        prog="anyvla bench latency", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run folder such as outputs/quickstart, or a checkpoint folder")
    parser.add_argument("--batch", type=int, default=1, help="robots that ask at once (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=200, help="chunks to measure (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120, help="measure no longer than this (default: %(default)g)")
    parser.add_argument("--images", metavar="HxW", help="size of the cameras' images (default: as trained, or 224x224)")
    parser.add_argument(
        "--encoding", choices=["raw", "png", "jpeg"], default="raw", help="of images in a message (default: raw)"
    )
    parser.add_argument("--robot", help="the robot that acts, if the policy has several")
    parser.add_argument("--execute", type=int, help="actions of a chunk to execute (default: as trained)")
    parser.add_argument("--device", nargs="+", default=["auto"], help="cpu, cuda, or both (default: auto)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that the checkpoint contains")
    options = parser.parse_args(argv)
    for name in ("batch", "rounds", "seconds"):
        if (given := getattr(options, name)) <= 0:
            raise ConfigError(f"--{name} {given:g} is too small: give more than 0")
    size = None if options.images is None else _read_size(options.images)
    from anyvla.training.device import pick_device

    devices = [pick_device(name) for name in options.device]  # all, before anything is loaded
    found = []
    for device in devices:
        found.append(_measure(options, size, str(device)))
        if not options.json:
            _print(found[-1])
    if options.json:
        print(json.dumps({"checkpoint": str(options.run), "devices": [_to_dict(f) for f in found]}, allow_nan=False))
    return 0


def _measure(options: argparse.Namespace, size: tuple[int, int] | None, device: str) -> Latency:
    from anyvla.checkpoint.files import checkpoint_of
    from anyvla.cli.bench.chunk_path import ChunkPath
    from anyvla.cli.bench.measurement import measure
    from anyvla.data.threads import compute_alone
    from anyvla.policy import VLA

    compute_alone()  # as in anyvla serve: the policy computes in a thread of its own
    vla = VLA.load(checkpoint_of(options.run), device, trust_remote_code=options.trust_remote_code)
    robot = choose_acting_robot(vla, options.robot, options.execute)
    path = ChunkPath(vla, robot, options.batch, size, options.encoding, options.execute)
    with ProgressBar(f"latency on {device}") as bar:
        return measure(path, options.rounds, options.seconds, bar)


def _read_size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise ConfigError(f"--images {text}: give height and width in pixels, as 224x224")
    return int(height), int(width)


def _print(found: Latency) -> None:
    out = Console()
    many = f", {found.batch} at once" if found.batch > 1 else ""
    height, width = found.images
    views = f"{len(found.cameras)} cameras of {height} x {width} ({found.encoding})"
    out.print(f"{found.device}, {found.precision}: {views}{many}, {found.rounds} rounds", soft_wrap=True)
    table = Table("stage", box=None, pad_edge=False)
    for title in ("p50, ms", "p90, ms", "p99, ms", "share"):
        table.add_column(title, justify="right")
    whole = found.clocked.mean
    for name, times in found.stages.items():
        table.add_row(name, *_list_percentiles(times), f"{times.mean / whole:.1%}")
    table.add_section()
    for name, times in (("all stages", found.clocked), ("without clocks", found.chunk), ("served", found.served)):
        table.add_row(name, *_list_percentiles(times), "")
    out.print(table)
    for line in _describe_rate(found):
        out.print(line, soft_wrap=True)


def _list_percentiles(times: Times) -> tuple[str, str, str]:
    return f"{times.p50:.2f}", f"{times.p90:.2f}", f"{times.p99:.2f}"


def _describe_rate(found: Latency) -> list[str]:
    """Return the sentences about the control rate."""
    robots = "the robot needs" if found.batch == 1 else f"each of {found.batch} robots needs"
    lines = [
        f"At {found.control_hz:g} Hz, with {found.execute} actions of a chunk executed, {robots} a chunk every "
        f"{found.needed_ms:g} ms; 99 of 100 are served within {found.served.p99:.1f} ms."
    ]
    if found.keeps_up:
        lines.append(f"It keeps up: {found.margin:.1f} times as fast as needed, up to {found.most_hz:.0f} Hz.")
    else:
        lines.append(
            f"It does NOT keep up: {1 / found.margin:.1f} times too slow, at most {found.most_hz:.1f} Hz. Execute more "
            "actions of a chunk, or use a faster device, fewer sampling steps or smaller images."
        )
    step = 1000 / found.control_hz
    if found.served.p99 <= step:
        lines.append(f"A robot that waits for its chunk waits less than a control step ({step:g} ms).")
    elif found.keeps_up:
        lines.append(
            f"A robot that waits for its chunk stands still for {found.served.p99 / step:.1f} control steps: predict "
            "the next chunk while it executes (committed actions, docs/serving_client.md)."
        )
    if found.rounds < found.asked:
        console.print(f"{found.rounds} of {found.asked} rounds fit into --seconds", style="yellow")
    return lines


def _to_dict(found: Latency) -> dict[str, object]:
    return {
        **dataclasses.asdict(found),
        "needed_ms": found.needed_ms,
        "keeps_up": found.keeps_up,
        "margin": found.margin,
        "most_hz": found.most_hz,
    }
