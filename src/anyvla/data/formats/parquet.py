"""Opens the parquet files of data sets, with errors that name the file and bounds on the memory that they ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from anyvla.files.inside import check_regular

# Parquet packs equal values into a few bytes, so that a small file can promise any number of them. Real files of steps
# have other values, the time at least, in each row.
_FREE_ROWS, _ROWS_PER_BYTE = 1 << 20, 64


def open_parquet(path: Path) -> pq.ParquetFile:
    """Return an open parquet file. Raise ValueError that names it."""
    with errors_naming(path):
        file = pq.ParquetFile(check_regular(path))
        most = max(_FREE_ROWS, _ROWS_PER_BYTE * path.stat().st_size)
        # Only the rows are counted: asking pyarrow about a column of a damaged file may abort the process.
        rows = sum(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))
        if rows > most:
            file.close()
            raise ValueError(f"{path} promises {rows} rows, which its size cannot hold")
        return file


@contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """Turn what reading a parquet file raises into ValueError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; copy the dataset again") from None
    except (pa.ArrowException, OSError, MemoryError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is damaged ({reason}); copy the dataset again") from None
