"""`anyvla bench KIND`: measure a trained policy on this machine."""

from __future__ import annotations

import argparse
import importlib

KINDS = {"latency": ("anyvla.cli.bench.latency", "where the time of a chunk goes, and the control rate that follows")}


def main(argv: list[str]) -> int:
    """Run the benchmark that the first argument names."""
    listed = "\n".join(f"  {name:<12}{text}" for name, (_, text) in KINDS.items())
    parser = argparse.ArgumentParser(
        prog="anyvla bench",
        description=__doc__,
        epilog=f"kinds:\n{listed}\n\nFor the options of a kind: anyvla bench KIND --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    options = parser.parse_args(argv[:1])
    return importlib.import_module(KINDS[options.kind][0]).main(argv[1:])
