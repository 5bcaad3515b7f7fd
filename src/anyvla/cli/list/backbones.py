"""`anyvla list backbones`: list the registered backbones, and the families of models that `auto` reads.

The rows come from packaged measurements, so that listing imports neither torch nor transformers. Only backbones of
third parties are imported.
"""

from __future__ import annotations

import inspect
import json
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


def _row(kind: str, measured: FamilyResult) -> dict[str, Any]:
    failed = f"failed: {', '.join(measured.failed)}" if measured.failed else ""
    return {
        "kind": kind,
        "name": measured.name,
        "class": measured.model_class,
        "capabilities": measured.capabilities,
        "tested": bool(measured.checks),
        "transformers": load_results().versions["transformers"] if measured.checks else None,
        "notes": "; ".join(filter(None, (failed, measured.note))),
    }


def _backbone_rows() -> list[dict[str, Any]]:
    known = load_results().backbones
    rows = [_row("backbone", known[name]) if name in known else _third_party_row(name) for name in backbones]
    for row in rows:
        if row["name"] == "auto":  # tested if its families are
            row |= {"tested": bool(load_results().families), "transformers": load_results().versions["transformers"]}
    return rows


def _third_party_row(name: str) -> dict[str, Any]:
    """Return the row of a backbone from another package."""
    blank = {"kind": "backbone", "name": name, "class": "", "capabilities": None, "tested": False, "transformers": None}
    try:
        target = backbones[name]
    except (ImportError, AttributeError) as error:
        return blank | {"notes": f"cannot be imported: {error}"}
    declared = getattr(target, "capabilities", None)
    notes = (inspect.getdoc(target) or "").partition("\n")[0]
    able = sorted(declared) if isinstance(declared, frozenset) else None
    return blank | {"class": target.__name__, "capabilities": able, "notes": notes}


def _family_rows() -> list[dict[str, Any]]:
    rows = [_row("family", measured) for measured in load_results().families.values()]
    for model_type, model_class in load_results().untried.items():
        blank = {"kind": "family", "name": model_type, "class": model_class, "capabilities": None, "tested": False}
        rows.append(blank | {"transformers": None, "notes": "not tried; run anyvla doctor backbone"})
    return rows
