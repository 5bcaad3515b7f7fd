from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from anyvla_sim.workers.wire import pack, receive, send, unpack

KINDS = st.sampled_from([np.uint8, np.int64, np.float32, np.float64, np.bool_])


@given(arrays.arrays(KINDS, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)))
def test_arrays_are_unchanged(array: np.ndarray) -> None:
    back = unpack(pack({"a": [array], 1: "x"}))
    assert back[1] == "x"
    assert back["a"][0].dtype == array.dtype
    assert back["a"][0].shape == array.shape
    assert np.array_equal(back["a"][0], array, equal_nan=array.dtype.kind == "f")


def test_views_and_numpy_numbers_are_encoded() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)[::-1, ::-1]
    back = unpack(pack({"image": image, "flag": np.bool_(True), "n": np.int32(3)}))
    assert np.array_equal(back["image"], image)
    assert back["flag"] is True
    assert back["n"] == 3
    back["image"][0] = 0  # can be written to


def test_other_values_are_refused() -> None:
    for value in (np.array([object()]), object(), np.array(["text"])):
        with pytest.raises(TypeError, match="which cannot be encoded"):
            pack({"a": value})
    with pytest.raises(ValueError, match="an array of dtype object is not allowed"):
        unpack(pack({"__array__": "|O", "shape": [1], "data": b"12345678"}))


def test_a_truncated_message_is_an_end() -> None:
    stream = io.BytesIO()
    send(stream, {"a": 1})
    send(stream, {"b": np.zeros(3)})
    whole = stream.getvalue()
    stream = io.BytesIO(whole[:-1])
    assert receive(stream) == {"a": 1}
    assert receive(stream) is None
    assert receive(io.BytesIO()) is None
