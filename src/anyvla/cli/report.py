"""`anyvla report RUN`: write the HTML report of a run or an evaluation from its files."""

from __future__ import annotations

import argparse
from pathlib import Path

from anyvla.report.evaluation import write_evaluation_report
from anyvla.report.run_report import write_report


def main(argv: list[str]) -> int:
    """Write the report and print its path."""
    parser = argparse.ArgumentParser(prog="anyvla report", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a run, such as outputs/quickstart, or of an evaluation")
    options = parser.parse_args(argv)
    evaluation = (options.run / "results.jsonl").is_file()
    print(write_evaluation_report(options.run) if evaluation else write_report(options.run))
    return 0
