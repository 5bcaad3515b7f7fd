"""`anyvla list protocols`: list the protocols that `anyvla serve` speaks."""

from __future__ import annotations

import inspect
import json
from typing import Any

from rich.table import Table

from anyvla.cli.console import Console
from anyvla.serving.protocols.registry import load_protocol, protocols


def show(as_json: bool) -> int:
    """Print one row per protocol."""
    rows = [_describe(name) for name in protocols]
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    table = Table("name", "address", "clients", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["name"], row["address"] or "?", row["what"] if row["installed"] else row["missing"])
    Console().print(table)
    return 0


def _describe(name: str) -> dict[str, Any]:
    try:
        protocol = load_protocol(name)
    except ImportError as error:
        return {"name": name, "installed": False, "missing": str(error), "address": None, "port": None, "what": ""}
    what = (inspect.getdoc(protocol) or "").partition("\n")[0]
    address = f"{protocol.scheme}://HOST:{protocol.port}"
    return {"name": name, "installed": True, "address": address, "port": protocol.port, "what": what}
