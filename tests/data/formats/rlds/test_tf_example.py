"""Tests of the wire format on messages written byte by byte."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyvla.data.formats.rlds.tf_example import ExampleFeature, parse_example
from tests.data.formats.rlds.tf_records import example, field, varint


def parsed(name: str, feature: bytes) -> dict[str, ExampleFeature]:
    return parse_example(memoryview(example({name: feature})))


integers = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20)
floats = st.lists(st.floats(width=32, allow_nan=False), max_size=20)


@given(values=integers, packed=st.booleans())
def test_integers(values: list[int], packed: bool):
    each = [varint(v) for v in values]
    data = field(1, b"".join(each)) if packed else b"".join(field(1, v, 0) for v in each)
    got = parsed("a/b", field(3, data))["a/b"].numbers()
    assert got.dtype == np.int64
    assert got.tolist() == values


@given(values=floats, packed=st.booleans())
def test_floats(values: list[float], packed: bool):
    each = [struct.pack("<f", v) for v in values]
    data = field(1, b"".join(each)) if packed else b"".join(field(1, v, 5) for v in each)
    got = parsed("ä", field(2, data))["ä"].numbers()
    assert got.dtype == np.float32
    assert got.tolist() == values


@given(values=st.lists(st.binary(max_size=300), max_size=8))
def test_bytes(values: list[bytes]):
    feature = parsed("x", field(1, b"".join(field(1, v) for v in values)))["x"]
    assert [bytes(v) for v in feature.byte_strings()] == values
    assert feature.count() == len(values)


def test_other_kinds_and_damaged_messages_are_refused():
    texts = parsed("x", field(1, field(1, b"abc")))["x"]
    with pytest.raises(ValueError, match="holds byte strings, not numbers"):
        texts.numbers()
    numbers = parsed("x", field(3, field(1, varint(5))))["x"]
    with pytest.raises(ValueError, match="holds numbers, not byte strings"):
        numbers.byte_strings()
    whole = example({"x": field(1, field(1, b"abc"))})
    with pytest.raises(ValueError, match=r"not a tf\.train\.Example: a field exceeds its end"):
        parse_example(memoryview(whole[:-2]))
    with pytest.raises(ValueError, match=r"not a tf\.train\.Example"):
        parse_example(memoryview(b"\xff" * 12))
