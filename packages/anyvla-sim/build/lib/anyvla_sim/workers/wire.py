"""Messages between an evaluation and a worker: msgpack maps with numpy arrays, prefixed by their length; no pickle."""

from __future__ import annotations

import struct
from typing import IO, Any

import msgpack
import numpy as np

_LENGTH = struct.Struct(">I")
_KINDS = "biuf"  # dtypes of arrays: bool, int, uint, float; no objects, which could run code


def pack(message: Any) -> bytes:
    """Return a message as bytes. Raises TypeError for a value that cannot be encoded."""
    return msgpack.packb(message, default=_encode, use_bin_type=True)


def unpack(data: bytes) -> Any:
    """Return the message that `pack` encoded, with writable arrays. Raises ValueError for other bytes."""
    return msgpack.unpackb(data, object_hook=_decode, raw=False, strict_map_key=False)


def _encode(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in _KINDS:
        return {"__array__": value.dtype.str, "shape": list(value.shape), "data": np.ascontiguousarray(value).tobytes()}
    raise TypeError(f"a message holds a {type(value).__name__}, which cannot be encoded: {value!r}")


def _decode(value: dict[Any, Any]) -> Any:
    if "__array__" not in value:
        return value
    dtype = np.dtype(value["__array__"])
    if dtype.kind not in _KINDS:
        raise ValueError(f"an array of dtype {dtype} is not allowed")
    return np.frombuffer(bytearray(value["data"]), dtype).reshape(value["shape"])


def send(stream: IO[bytes], message: Any) -> None:
    """Write one message. Raises OSError when the other side is gone."""
    data = pack(message)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def receive(stream: IO[bytes]) -> Any | None:
    """Wait for the next message. Return None if the other side has closed, or died within a message."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = stream.read(length)
    return unpack(data) if len(data) == length else None
