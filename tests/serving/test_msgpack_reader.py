from __future__ import annotations

import time
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyvla.serving.limits import ServerLimits
from anyvla.serving.msgpack_reader import MessageError, read_msgpack

LIMITS = ServerLimits(depth=4, entries=5, items=100, text_bytes=50)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=20) | st.dictionaries(st.text(), v, max_size=20), max_leaves=60
)


def plain(value: Any) -> Any:
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list) else value


@given(values)
def test_it_reads_what_msgpack_writes(value: Any) -> None:
    large = ServerLimits(depth=100, items=10**6, entries=10**6, text_bytes=10**6)
    assert plain(read_msgpack(msgpack.packb(value), large)) == value


@pytest.mark.parametrize("size", [0, 1, 31, 32, 255, 256, 65535, 65536])
def test_every_width_of_a_length(size: int) -> None:
    large = ServerLimits(items=10**6, entries=10**6, text_bytes=10**6)
    for value in ("x" * size, b"x" * size, [1] * size, {str(i): 1 for i in range(size)}):
        assert plain(read_msgpack(msgpack.packb(value), large)) == value


@given(st.binary(max_size=200))
def test_garbage_is_a_message_error_or_what_msgpack_reads(data: bytes) -> None:
    try:
        value = read_msgpack(data, LIMITS)
    except MessageError:
        return
    assert repr(plain(value)) == repr(msgpack.unpackb(data))


@given(values, st.data())
def test_an_incomplete_message_is_an_error(value: Any, data: st.DataObject) -> None:
    whole = msgpack.packb({"a": value})
    part = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(MessageError):
        read_msgpack(part, ServerLimits(depth=100))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (msgpack.packb({"a": {b"states": 1}}), "'a' has the key b'states' of type binary; keys are text"),
        (b"\x81\x01\x02", "the message has the key 1 of type int"),
        (b"\x81\xc0\x02", "the message has the key None"),
        (b"\x81\x91\x01\x02", r"the message has the key \[1\] of type list"),
        (b"\x82\xa1a\x01\xa1a\x02", "the message has the key 'a' twice"),
        (msgpack.packb({"a": {str(i): i for i in range(6)}}), "'a' has 6 keys; at most 5"),
        (b"\xdf\xff\xff\xff\xff", "has 4294967295 keys"),
        (b"\xdd\xff\xff\xff\xff", "has 4294967295 values"),
        (b"\x83", "the message ends inside the message"),
        (msgpack.packb([[[[[1]]]]]), "'0.0.0.0' is nested deeper than 4"),
        (msgpack.packb([[1] * 60, [1] * 60]), "more than 100 values"),
        (msgpack.packb([1] * 100), "more than 100 values"),
        (b"\x82\xa1a\xc0\xa1a\x02", "the message has the key 'a' twice"),
        (msgpack.packb({"task": "x" * 51}), "'task' is a text of 51 bytes; at most 50"),
        (b"\xdb\xff\xff\xff\xff", "is a text of 4294967295 bytes"),
        (b"\xc6\xff\xff\xff\xff", "the message ends inside"),
        (b"\x81\xa4task\xa2\xff\xfe", "'task' is no UTF-8 text"),
        (b"\x81\xa4task\xa3\xed\xa0\x80", "'task' is no UTF-8 text"),
        (msgpack.packb(msgpack.ExtType(1, b"x")), "a type that is not accepted"),
        (msgpack.packb(msgpack.Timestamp(1)), "a type that is not accepted"),
        (b"\xc1", "a type that is not accepted"),
        (b"", "the message ends inside the message"),
        (b"\x01\x02", "1 bytes follow the end"),
    ],
)
def test_an_invalid_message_is_refused_with_a_reason(data: bytes, message: str) -> None:
    with pytest.raises(MessageError, match=message):
        read_msgpack(data, LIMITS)


@pytest.mark.parametrize(
    "value", [[1] * 99, {str(i): i for i in range(5)}, [[[[1, 2]]]], {"a": {"b": {"c": {"d": 1}}}}, "x" * 50]
)
def test_a_message_may_reach_each_limit(value: Any) -> None:
    assert read_msgpack(msgpack.packb(value), LIMITS) == value


def test_a_large_message_of_small_values_is_refused_at_once() -> None:
    begin = time.process_time()
    for data in (b"\x91" * 15_000_000, b"\xdc\xff\xff" + (b"\xdc\xff\xff" + b"\x90" * 65535) * 200):
        with pytest.raises(MessageError):
            read_msgpack(data, ServerLimits())
    assert time.process_time() - begin < 1


def test_keys_are_binary_only_where_a_protocol_has_such() -> None:
    """openpi's and msgpack_numpy's arrays have binary keys. `b"data"` beside `"data"` would be one key twice."""
    message = msgpack.packb({"a": {b"__ndarray__": True, b"data": b"\x01"}})
    with pytest.raises(MessageError, match="'a' has the key b'__ndarray__' of type binary; keys are text"):
        read_msgpack(message, LIMITS)
    assert plain(read_msgpack(message, LIMITS, binary_keys=True)) == {"a": {"__ndarray__": True, "data": b"\x01"}}
    for keys, fault in (
        ({b"\xff": 1}, "'a key' is no UTF-8 text"),
        ({b"x" * 51: 1}, "'a key' is a text of 51 bytes; at most 50"),
        ({b"data": 1, "data": 2}, "has the key 'data' twice"),
        ({1: 2}, "has the key 1 of type int; keys are text"),
    ):
        with pytest.raises(MessageError, match=fault):
            read_msgpack(msgpack.packb(keys), LIMITS, binary_keys=True)
