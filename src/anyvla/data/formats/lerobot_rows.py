"""Rows of LeRobot's parquet files: only the row groups that hold them are read, and the last few of those are kept.

LeRobot writes a row group per episode; data sets that were merged or converted may have a single one per file.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anyvla.data.formats.open_files import OpenFiles

_KEPT_BYTES = 64 << 20  # of row groups that hold more than was asked for, per process
_OPEN = 16  # files per thread


class _File:
    def __init__(self, path: Path) -> None:
        self.parquet = pq.ParquetFile(path)
        counts = [self.parquet.metadata.row_group(i).num_rows for i in range(self.parquet.metadata.num_row_groups)]
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)  # of each row group, and the end

    def close(self) -> None:
        self.parquet.close()


_opened = OpenFiles(_File, _OPEN)
_kept: OrderedDict[tuple[str, int, int, tuple[str, ...]], pa.Table] = OrderedDict()
_lock = threading.Lock()


def read_rows(path: Path, first: int, count: int | None, columns: list[str]) -> pa.Table:
    """Columns of rows `first` .. `first + count - 1` of a file; None: to its end.

    Raises ValueError that names the file if it is missing, damaged, or lacks these rows or columns.
    """
    try:
        file = _opened(path)
        count = int(file.starts[-1]) - first if count is None else count
        if first + count > file.starts[-1]:
            raise ValueError(
                f"{path} ends at row {file.starts[-1]}, rows {first} to {first + count - 1} are needed; copy the "
                "dataset again"
            )
        missing = [c for c in columns if c not in file.parquet.schema_arrow.names]
        if missing:
            raise ValueError(f"{path} has no column {missing[0]!r}, which info.json declares; copy the dataset again")
        low = int(np.searchsorted(file.starts, first, side="right")) - 1
        high = int(np.searchsorted(file.starts, first + count, side="left"))
        groups = [_group(path, file, group, columns, first, first + count) for group in range(low, high)]
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; copy the dataset again") from None
    except (pa.ArrowInvalid, OSError) as error:
        _opened.drop()
        raise ValueError(f"{path} is damaged ({str(error).splitlines()[0]}); copy the dataset again") from None
    return pa.concat_tables(groups).slice(first - int(file.starts[low]), count)


def _group(path: Path, file: _File, group: int, columns: list[str], first: int, end: int) -> pa.Table:
    """A row group, remembered if the next episode may lie in it too."""
    key = (str(path), path.stat().st_mtime_ns, group, tuple(columns))
    with _lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    table = file.parquet.read_row_group(group, columns=columns, use_threads=False)
    if first > file.starts[group] or end < file.starts[group + 1]:
        with _lock:
            _kept[key] = table
            while len(_kept) > 1 and sum(t.nbytes for t in _kept.values()) > _KEPT_BYTES:
                _kept.popitem(last=False)
    return table
