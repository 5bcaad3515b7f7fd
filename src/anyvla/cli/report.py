"""`anyvla report RUN`: write the HTML page of a run folder from the files that lie there."""

from __future__ import annotations

import argparse
from pathlib import Path

from anyvla.report.page import write_report


def main(argv: list[str]) -> int:
    """Write the page and print where it is."""
    parser = argparse.ArgumentParser(prog="anyvla report", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a run, as outputs/quickstart")
    options = parser.parse_args(argv)
    print(write_report(options.run))
    return 0
