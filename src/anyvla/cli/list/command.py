"""`anyvla list KIND`: list what is registered, with a one-line description each."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
from typing import Any

import yaml
from rich.table import Table

from anyvla.cli.console import Console
from anyvla.registry import REGISTRIES

OWN_MODULE = ("backbones", "benchmarks", "combinations", "protocols")  # `anyvla.cli.list.<kind>` prints these
PARTS = ("histories", "fusers", "decoders", "representations", "formats")
KINDS = (*OWN_MODULE, *PARTS, "recipes", "mappings")
RENAMED = {
    "structures": "histories, fusers, or combinations for the table of those that go together",
    "heads": "decoders or representations",
}


def main(argv: list[str]) -> int:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="anyvla list", description=__doc__)
    parser.add_argument("kind", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    kind = options.kind
    if kind in RENAMED:
        parser.error(f"{kind!r} was replaced by the words of a recipe: list {RENAMED[kind]}")
    if kind not in KINDS:
        parser.error(f"there is no kind {kind!r}; choose from {', '.join(KINDS)}")
    if kind in OWN_MODULE:
        return importlib.import_module(f"anyvla.cli.list.{kind}").show(options.json)
    rows = _recipes() if kind == "recipes" else _mappings() if kind == "mappings" else _parts(kind)
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    return 0


def _parts(kind: str) -> list[dict[str, Any]]:
    rows = []
    for name in REGISTRIES[kind]:
        try:
            what = (inspect.getdoc(REGISTRIES[kind][name]) or "").partition("\n")[0]
        except ImportError as error:  # an extra that is not installed
            what = f"not installed: {error}"
        rows.append({"kind": kind, "name": name, "what": what})
    return rows


def _recipes() -> list[dict[str, Any]]:
    from anyvla.recipe import bundled, find

    rows = []
    for name in bundled():
        text = find(name).read_text(encoding="utf-8")
        title = text.partition("\n")[0].lstrip("# ")
        recipe = yaml.safe_load(text)
        of_stages = [stage.get("benchmark") for stage in (recipe.get("stages") or {}).values() if stage]
        benchmark = next((name for name in reversed(of_stages) if name), recipe.get("benchmark"))
        rows.append({"kind": "recipe", "name": name, "what": title, "benchmark": benchmark})
    return rows


def _mappings() -> list[dict[str, Any]]:
    from anyvla.serving.mapping_files import load_mappings

    rows = []
    for name, mapping in load_mappings().items():
        protocols, robots = ", ".join(mapping.clients), ", ".join(mapping.robots)
        rows.append({"kind": "mapping", "name": name, "what": mapping.about, "protocols": protocols, "robots": robots})
    return rows
