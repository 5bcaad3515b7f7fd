"""Opens parquet files, with errors that name the file and a bound on the memory that they may claim."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from anyvla.files.inside import check_regular

# Parquet packs equal values into a few bytes, so a small file can promise any number of rows. Rows of real steps
# differ, at least in their time.
_FREE_ROWS, _ROWS_PER_BYTE = 1 << 20, 64


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a parquet file. Raises ValueError that names the file."""
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
    """Turn errors of reading a parquet file into ValueError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; copy the dataset again") from None
    except (pa.ArrowException, OSError, MemoryError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is damaged ({reason}); copy the dataset again") from None
