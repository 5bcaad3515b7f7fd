"""Reads `tf.train.Example` records without TensorFlow, one feature at a time.

The message maps names to lists of bytes, floats or integers (tensorflow/core/example/feature.proto), in the wire format
of protocol buffers. Lists of numbers may be packed or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

_BYTES, _FLOATS, _INTEGERS = 1, 2, 3  # fields of ExampleFeature
_VARINT_BYTES = 10  # at most, for 64 bits
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # wire types


@dataclass(frozen=True)
class ExampleFeature:
    """One list of values, not yet decoded."""

    kind: int
    data: memoryview

    def byte_strings(self) -> list[memoryview]:
        """Return the byte strings. Raises ValueError if the feature holds numbers."""
        if self.kind != _BYTES:
            raise ValueError("it holds numbers, not byte strings")
        return [value for _, value in _fields(self.data)]

    def numbers(self) -> Float32[np.ndarray, "K"] | Int64[np.ndarray, "K"]:
        """Return the floats or integers. Raises ValueError if the feature holds byte strings."""
        if self.kind == _BYTES:
            raise ValueError("it holds byte strings, not numbers")
        read = _floats if self.kind == _FLOATS else _varints
        parts = [read(value) for _, value in _fields(self.data)]
        empty = np.empty(0, np.float32 if self.kind == _FLOATS else np.int64)
        return parts[0] if len(parts) == 1 else np.concatenate([empty, *parts])

    def count(self) -> int:
        """Return the number of values."""
        return len(self.byte_strings()) if self.kind == _BYTES else len(self.numbers())


Example = Mapping[str, ExampleFeature]


def parse_example(record: memoryview) -> Example:
    """Return the features of a record by name. Raises ValueError unless the record is an Example."""
    out: dict[str, ExampleFeature] = {}
    for field, features in _fields(record):
        if field != 1:
            continue
        for _, entry in _fields(features):
            name, value = "", memoryview(b"")
            for number, part in _fields(entry):
                if number == 1:
                    name = bytes(part).decode("utf-8")
                else:
                    value = part
            kind, data = next(_fields(value), (_BYTES, memoryview(b"")))
            if kind not in (_BYTES, _FLOATS, _INTEGERS):
                raise ValueError(f"it is not a tf.train.Example: a feature of kind {kind}")
            out[name] = ExampleFeature(kind, data)
    return out


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield (field number, contents); an unpacked number is a field of its own."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at, end)
        wire = tag & 7
        if wire == _LENGTH:
            size, at = _varint(data, at, end)
        elif wire == _VARINT:
            size = _varint(data, at, end)[1] - at
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"it is not a tf.train.Example: wire type {wire}")
        if at + size > end:
            raise ValueError("it is not a tf.train.Example: a field exceeds its end")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, begin: int, end: int) -> tuple[int, int]:
    at = begin
    value = shift = 0
    while at < min(end, begin + _VARINT_BYTES):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("it is not a tf.train.Example: a number has no end")


def _floats(data: memoryview) -> Float32[np.ndarray, "K"]:
    return np.frombuffer(data, "<f4").astype(np.float32)


def _varints(data: memoryview) -> Int64[np.ndarray, "K"]:
    """Decode packed integers: seven bits a byte, lowest first; the last byte of a number has its highest bit unset."""
    bits = np.frombuffer(data, np.uint8)
    if not len(bits):
        return np.empty(0, np.int64)
    ends = np.flatnonzero(bits < 0x80) + 1
    starts = np.concatenate([[0], ends[:-1]])
    if not len(ends) or ends[-1] != len(bits) or np.max(ends - starts) > _VARINT_BYTES:
        raise ValueError("it is not a tf.train.Example: a number has no end")
    place = np.arange(len(bits)) - np.repeat(starts, ends - starts)
    parts = (bits & np.uint8(0x7F)).astype(np.uint64) << (np.uint64(7) * place.astype(np.uint64))
    return np.add.reduceat(parts, starts).view(np.int64)
