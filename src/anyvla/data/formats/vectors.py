"""Converts columns of numbers to matrices and checks them: every row has the declared length and real numbers.

Flattening a list column shifts rows where lengths differ. A cast drops imaginary parts and turns text and booleans into
numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Num


def check_real(dtype: Any, where: str) -> None:
    """Raise ValueError unless a numpy type holds real numbers."""
    kind = np.dtype(dtype).kind
    if kind not in "fiu":
        names = {"c": "complex numbers", "b": "truth values", "U": "text", "S": "text", "T": "text", "O": "objects"}
        names |= {"M": "dates", "m": "time differences", "V": "records"}
        raise ValueError(f"{where}: expected real numbers, found {names.get(kind, str(dtype))} ({np.dtype(dtype)})")


def as_float32(values: Num[np.ndarray, "..."], where: str) -> Float[np.ndarray, "..."]:
    """Return an array as float32. Numbers that are too large become infinite; the data check reports them.

    Raises ValueError unless the array holds real numbers.
    """
    check_real(values.dtype, where)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.float32)


def as_matrix(column: pa.ChunkedArray, size: int, where: str, row: int = 0) -> Num[np.ndarray, "T D"]:
    """Return a column of lists of `size` numbers, or of single numbers if `size` is 1, as a matrix of the column's
    type.

    `where` names file and column in errors; `row` is the number of the first row in the file. Raises a ValueError that
    names the row if a value is missing, has another length or is no real number.
    """
    values = column.combine_chunks()
    fixed = pa.types.is_fixed_size_list(values.type)
    nested = fixed or pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
    kind = values.type.value_type if nested else values.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise ValueError(f"{where}: expected real numbers, found {values.type}; write them as float32")
    if values.null_count:
        at = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{where}, row {row + at}: expected numbers, found no value; drop or repair the episode")
    if not nested and size != 1:
        raise ValueError(f"{where}, row {row}: expected {size} numbers, found one; declare the size of the data")
    if nested and not (fixed and values.type.list_size == size):
        lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero(lengths != size)
        if len(wrong):
            at = int(wrong[0])
            raise ValueError(
                f"{where}, row {row + at}: expected {size} numbers, found {lengths[at]}; drop or repair the episode"
            )
    flat = values.flatten() if nested else values
    if flat.null_count:
        at = int(np.flatnonzero(flat.is_null().to_numpy(zero_copy_only=False))[0]) // size
        raise ValueError(f"{where}, row {row + at}: a number has no value; drop or repair the episode")
    return flat.to_numpy(zero_copy_only=False).reshape(len(values), size)
