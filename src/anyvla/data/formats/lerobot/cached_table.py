"""Caches tables about a LeRobot data set that take long to make, until the data set changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from anyvla.data import cache_folder, fingerprints


def cached_table(root: Path, files: list[Path], meaning: str, make: Callable[[], pa.Table]) -> pa.Table:
    """Return `make()`, or its cached result for the same files. `meaning` identifies the computation."""
    name = f"{fingerprints.cache_key(root, files, meaning)}.arrow"
    if (known := cache_folder.read("lerobot", name)) is not None:
        return pa.ipc.open_file(pa.py_buffer(known)).read_all()
    table = make()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    cache_folder.write("lerobot", name, sink.getvalue().to_pybytes())
    return table
