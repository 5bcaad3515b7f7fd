"""`anyvla list backbones`: list the registered backbones, and the families of models that `auto` reads.

The rows come from packaged measurements, so that listing imports neither torch nor transformers. Only backbones of
third parties are imported.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from typing import Any

from rich.table import Table

from anyvla.backbones.families.results import FamilyResult, load_results
from anyvla.cli.console import Console
from anyvla.registry import backbones

# Explained in `anyvla.backbones.base`, which is not imported here because it imports torch.
CAPABILITIES = ("interleave", "block_mask", "continue", "cache", "keys_values", "lm_head")


def show(as_json: bool) -> int:
    """Print one row per backbone and family."""
    rows = [*_backbone_rows(), *_family_rows()]
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    table = Table("name", *(c.replace("_", " ") for c in CAPABILITIES), "tested", "notes", box=None, pad_edge=False)
    shown = [row for row in rows if row["kind"] == "backbone" or row["tested"]]
    for row in shown:
        name = row["name"] if row["kind"] == "backbone" else f"  {row['name']}"
        known = row["capabilities"] is not None
        able = (("yes" if c in row["capabilities"] else "-") if known else "?" for c in CAPABILITIES)
        table.add_row(name, *able, "yes" if row["tested"] else "-", row["notes"])
    Console().print(table)
    print(
        f"\nIndented: families that `auto` reads, tested with transformers {load_results().versions['transformers']}. "
        f"{len(rows) - len(shown)} more model types are untested (--json names\nthem); to test one: "
        "`anyvla doctor backbone FOLDER_OR_ID`."
    )
    return 0


def _row(
    kind: str, name: str, model_class: str, tested: bool, notes: str, able: Iterable[str] | None
) -> dict[str, Any]:
    version = load_results().versions["transformers"] if tested else None
    row = {"kind": kind, "name": name, "class": model_class, "capabilities": able, "tested": tested}
    return row | {"transformers": version, "notes": notes}


def _measured_row(kind: str, m: FamilyResult) -> dict[str, Any]:
    tested = bool(m.checks) or (m.name == "auto" and bool(load_results().families))  # auto is tested if a family is
    failed = f"failed: {', '.join(m.failed)}" if m.failed else ""
    return _row(kind, m.name, m.model_class, tested, "; ".join(filter(None, (failed, m.note))), m.capabilities)


def _backbone_rows() -> list[dict[str, Any]]:
    known = load_results().backbones
    return [_measured_row("backbone", known[n]) if n in known else _third_party_row(n) for n in backbones]


def _third_party_row(name: str) -> dict[str, Any]:
    """Return the row of a backbone from another package."""
    try:
        target = backbones[name]
    except (ImportError, AttributeError) as error:
        return _row("backbone", name, "", False, f"cannot be imported: {error}", None)
    declared = getattr(target, "capabilities", None)
    able = sorted(declared) if isinstance(declared, frozenset) else None
    return _row("backbone", name, target.__name__, False, (inspect.getdoc(target) or "").partition("\n")[0], able)


def _family_rows() -> list[dict[str, Any]]:
    note = "not tried; run anyvla doctor backbone"
    rows = [_measured_row("family", measured) for measured in load_results().families.values()]
    return rows + [_row("family", *untried, False, note, None) for untried in load_results().untried.items()]
