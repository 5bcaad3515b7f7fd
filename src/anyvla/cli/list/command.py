"""`anyvla list WHAT`: what exists, with what each thing is in one line."""

from __future__ import annotations

import argparse
import inspect
import json
from typing import Any

import yaml
from rich.table import Table

from anyvla.cli.console import Console
from anyvla.registry import REGISTRIES, Registry

KINDS = {
    "backbones": ("backbones",),
    "structures": ("histories", "fusers"),
    "heads": ("decoders", "representations"),
    "benchmarks": ("benchmarks",),
    "formats": ("formats",),
    "recipes": (),
}


def main(argv: list[str]) -> int:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="anyvla list", description=__doc__)
    parser.add_argument("what", choices=KINDS)
    parser.add_argument("--json", action="store_true", help="machine-readable, on standard output")
    options = parser.parse_args(argv)
    if options.what == "backbones":
        from anyvla.cli.list import backbones as list_backbones

        return list_backbones.show(options.json)
    if options.what == "benchmarks":
        from anyvla.cli.list import benchmarks as list_benchmarks

        return list_benchmarks.show(options.json)
    if options.what == "structures":
        from anyvla.cli.list import structures as list_structures

        return list_structures.show(options.json, [row for kind in KINDS["structures"] for row in _parts(kind)])
    rows = _recipes() if options.what == "recipes" else [row for kind in KINDS[options.what] for row in _parts(kind)]
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    return 0


def _parts(kind: str) -> list[dict[str, Any]]:
    registry: Registry = REGISTRIES[kind]
    rows = []
    for name in registry:
        try:
            what = (inspect.getdoc(registry[name]) or "").splitlines()[0]
        except ImportError as error:  # an extra that is not installed
            what = f"not installed: {error}"
        rows.append({"kind": kind, "name": name, "what": what})
    return rows


def _recipes() -> list[dict[str, Any]]:
    from anyvla.recipe import bundled, find

    rows = []
    for name in bundled():
        text = find(name).read_text(encoding="utf-8")
        first = text.splitlines()[0].lstrip("# ")
        rows.append({"kind": "recipe", "name": name, "what": first, "benchmark": yaml.safe_load(text).get("benchmark")})
    return rows
