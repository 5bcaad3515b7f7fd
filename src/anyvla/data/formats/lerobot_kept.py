"""Tables about a LeRobot dataset that take long to make, kept in anyvla's cache folder until the dataset changes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from anyvla.data import stored

log = logging.getLogger(__name__)


def kept(root: Path, files: list[Path], meaning: str, make: Callable[[], pa.Table]) -> pa.Table:
    """`make()`, or what it gave for the same files before; `meaning` says what it makes of them."""
    try:
        path = stored.folder("lerobot") / f"{stored.fingerprint(root, files, meaning)}.arrow"
        if path.is_file():
            return pa.ipc.open_file(pa.py_buffer(path.read_bytes())).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        log.warning("the cache of indices cannot be used (%s); the index of %s is read anew", error, root)
        return make()
    table = make()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    try:
        stored.write(path, sink.getvalue().to_pybytes())
    except OSError as error:
        log.warning("the index of %s cannot be kept (%s); it is read anew each time", root, error)
    return table
