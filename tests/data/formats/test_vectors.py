from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pytest

from anyvla.data.formats.vectors import as_float32, as_matrix


def rows(*values, type=None):
    return pa.chunked_array([pa.array(list(values[:1]), type), pa.array(list(values[1:]), type)])


@pytest.mark.parametrize("type", [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float32(), 2)])
def test_lists_of_numbers(type):
    column = rows([1, 2], [3, 4], [5, 6], type=type)
    assert as_matrix(column, 2, "x").tolist() == [[1, 2], [3, 4], [5, 6]]
    assert as_matrix(column.slice(1), 2, "x").tolist() == [[3, 4], [5, 6]]
    assert as_matrix(rows(1, 2, 3), 1, "x").tolist() == [[1], [2], [3]]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (rows([1.0, 2.0], [3.0], [4.0, 5.0, 6.0]), "a.parquet, row 8: expected 2 numbers, found 1"),  # 6 in all
        (rows([1.0], [2.0], [3.0]), "a.parquet, row 7: expected 2 numbers, found 1"),
        (rows([1.0, 2.0], [], [3.0, 4.0]), "row 8: expected 2 numbers, found 0"),
        (rows([1.0, 2.0], None, [3.0, 4.0]), "row 8: expected numbers, found no value"),
        (rows([1.0, 2.0], [3.0, None], [4.0, 5.0]), "row 8: a number has no value"),
        (rows([True, False], [True, True], type=pa.list_(pa.bool_())), r"found list<\w+: bool>"),
        (rows(["1", "2"], ["3", "4"]), r"found list<\w+: string>"),
        (rows([[1.0, 2.0]], [[3.0, 4.0]]), "found list<"),
        (rows(1.0, 2.0), "expected 2 numbers, found one"),
        (rows("1", "2"), "found string"),
        (rows({"real": 1.0, "imag": 2.0}, {"real": 1.0, "imag": 2.0}), "found struct"),
        (rows(datetime.datetime(2024, 1, 1), datetime.datetime(2024, 1, 2)), "found timestamp"),
        (rows([datetime.datetime(2024, 1, 1)] * 2, [datetime.datetime(2024, 1, 2)] * 2), r"found list<\w+: timestamp"),
        (rows(None, None), "found null"),
    ],
)
def test_a_row_that_does_not_fit_is_named(column, message):
    with pytest.raises(ValueError, match=rf"a\.parquet.*{message}|{message}"):
        as_matrix(column, 2, "a.parquet", row=7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((3, 2), np.complex64), r"expected real numbers, found complex numbers \(complex64\)"),
        (np.ones((3, 2), bool), "truth values"),
        (np.full((3, 2), "1.5"), "text"),
        (np.full((3, 2), b"1.5"), "text"),
        (np.zeros((3, 2), "datetime64[ns]"), "dates"),
        (np.zeros((3, 2), [("a", "f4")]), "records"),
        (np.zeros((3, 2), object), "objects"),
    ],
)
def test_arrays_of_other_kinds_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        as_float32(values, "a.npz: actions")


@pytest.mark.parametrize("type", [np.float16, np.float64, np.int64, np.uint8])
def test_real_numbers_become_float32(type):
    assert as_float32(np.ones((3, 2), type), "x").dtype == np.float32
