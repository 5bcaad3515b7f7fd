"""Reads LeRobot's parquet files: opens them safely, caches row groups and tables that take long to make.

LeRobot writes one row group per episode; merged or converted data sets may have a single one per file.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anyvla.data import cache_folder, fingerprints
from anyvla.data.fingerprints import stat_of
from anyvla.data.formats.open_files import OpenFiles
from anyvla.files.inside import check_regular

# Parquet packs equal values into a few bytes, so a small file can promise any number of rows. Rows of real steps
# differ, at least in their time.
_FREE_ROWS, _ROWS_PER_BYTE = 1 << 20, 64
_CACHED_BYTES = 64 << 20  # of row groups, per process
_MAX_OPEN = 16  # files per thread


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a parquet file. Raises a ValueError that names the file."""
    with errors_naming(path):
        file = pq.ParquetFile(check_regular(path))
        most = max(_FREE_ROWS, _ROWS_PER_BYTE * path.stat().st_size)
        # Count rows only: asking pyarrow about a column of a damaged file may abort the process.
        rows = sum(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))
        if rows > most:
            file.close()
            raise ValueError(f"{path} promises {rows} rows, which its size cannot hold")
        return file


@contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """Turn errors of reading a parquet file into a ValueError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; copy the dataset again") from None
    except (pa.ArrowException, OSError, MemoryError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is damaged ({reason}); copy the dataset again") from None


class _ParquetRows:
    def __init__(self, path: Path) -> None:
        self.parquet = open_parquet(path)
        counts = [self.parquet.metadata.row_group(i).num_rows for i in range(self.parquet.metadata.num_row_groups)]
        self.names = set(self.parquet.schema_arrow.names)
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)  # of the row groups, and the end

    def close(self) -> None:
        self.parquet.close()


class _TableCache:
    """Tables by key, the last used ones within a limit of bytes. A larger table is kept alone."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self.tables: OrderedDict[Hashable, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> pa.Table | None:
        with self._lock:
            if key in self.tables:
                self.tables.move_to_end(key)
            return self.tables.get(key)

    def put(self, key: Hashable, table: pa.Table) -> None:
        with self._lock:
            if key not in self.tables:
                self.bytes += table.nbytes
            self.tables[key] = table
            while len(self.tables) > 1 and self.bytes > self.limit:
                self.bytes -= self.tables.popitem(last=False)[1].nbytes


_open_parquet_files = OpenFiles(_ParquetRows, _MAX_OPEN)
_cache = _TableCache(_CACHED_BYTES)


def read_rows(path: Path, first: int, count: int, columns: list[str]) -> pa.Table:
    """Return columns of rows `first` .. `first + count - 1`. Raises ValueError if the file lacks rows or columns."""
    with errors_naming(path):
        file = _open_parquet_files(path)
        if first + count > file.starts[-1]:
            raise ValueError(
                f"{path} ends at row {file.starts[-1]}, rows {first} to {first + count - 1} are needed; copy the "
                "dataset again"
            )
        missing = [c for c in columns if c not in file.names]
        if missing:
            raise ValueError(f"{path} has no column {missing[0]!r}, which info.json declares; copy the dataset again")
        low = int(np.searchsorted(file.starts, first, side="right")) - 1
        high = int(np.searchsorted(file.starts, first + count, side="left"))
        groups = [_read_group(path, file, group, columns) for group in range(low, high)]
    return pa.concat_tables(groups).slice(first - int(file.starts[low]), count)


def count_rows(path: Path) -> int:
    """Return the number of rows in a file. Raises a ValueError that names it if it is missing or damaged."""
    with errors_naming(path):
        return int(_open_parquet_files(path).starts[-1])


def _read_group(path: Path, file: _ParquetRows, group: int, columns: list[str]) -> pa.Table:
    """Return a row group, which the next window or episode may use too."""
    key = (str(path), stat_of(path), group, tuple(columns))
    table = _cache.get(key)
    if table is None:
        table = file.parquet.read_row_group(group, columns=columns, use_threads=False)
        _cache.put(key, table)
    return table


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
