"""`anyvla data check PATH`: find the faults of a data set. `--fix OUT` writes a clean copy, never in place."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from anyvla.cli import opening
from anyvla.cli.common import ProgressBar, console
from anyvla.cli.console import Console

_SHOWN = 40  # findings in the table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    opening.add_arguments(parser)
    parser.add_argument(
        "--frames", choices=("none", "sampled", "all"), default="sampled", help="to decode (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--fix",
        type=Path,
        metavar="OUT",
        help="write a LeRobot v3 copy without broken and duplicate episodes and without idle ends",
    )


def run(options: argparse.Namespace) -> int:
    """Print the findings. The exit status is 1 if there are errors and `--fix` is not given."""
    from anyvla.data.tools.quality import check

    # A copy needs declared conventions.
    dataset = opening.open_and_warn(options) if options.fix is None else opening.open_declared(options)
    with ProgressBar("check") as bar:
        findings = check(dataset, frames=options.frames, progress=bar)
    if options.json:
        print(json.dumps([asdict(f) for f in findings], indent=1, ensure_ascii=False))
    else:
        table = Table("", "kind", "episode", "what", "what to do", box=None, pad_edge=False)
        for finding in findings[:_SHOWN]:
            number = "all" if finding.episode is None else str(finding.episode)
            table.add_row(finding.severity, finding.kind, number, finding.text, finding.fix)
        if findings:
            Console().print(table)
        counts = Counter(f.severity for f in findings)
        more = f" ({len(findings) - _SHOWN} more: --json lists all)" if len(findings) > _SHOWN else ""
        print(f"{counts['error']} errors, {counts['warning']} warnings in {len(dataset)} episodes{more}")
    errors = any(f.severity == "error" for f in findings)
    if options.fix is None:
        return int(errors)
    from anyvla.cli.data.convert import converted
    from anyvla.data.transforms.repaired import RepairedDataset
    from anyvla.files import durable

    repaired = RepairedDataset(dataset, findings)
    converted(repaired, options.fix)
    done = json.dumps({"dropped": repaired.dropped, "cut": repaired.cut}, indent=1, ensure_ascii=False)
    durable.write(options.fix / "meta/fixes.json", done)
    console.print(f"{len(repaired.dropped)} episodes left out, {len(repaired.cut)} cut: {options.fix}")
    return 0
