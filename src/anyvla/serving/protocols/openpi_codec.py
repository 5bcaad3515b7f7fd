"""Read and write the msgpack of openpi, which starVLA uses, too (openpi_client/msgpack_numpy.py).

An array is a map with the binary keys `__ndarray__`, `data`, `dtype` and `shape`, a NumPy scalar one with
`__npgeneric__`. Arrays stay such maps until the mapping asks for them: `anyvla.serving.arrays` checks their sizes and
refuses the kinds O, V and c.
"""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np

from anyvla.serving.limits import ServerLimits
from anyvla.serving.msgpack_reader import MessageError, read_msgpack


def read_map(data: bytes | str, limits: ServerLimits) -> dict[str, Any]:
    """Return the map of a message. Raises MessageError."""
    if isinstance(data, str):
        raise MessageError("messages are binary msgpack, this one is text")
    try:
        message = read_msgpack(data, limits, binary_keys=True)
    except MessageError as error:
        raise MessageError(f"not a msgpack message: {error}") from None
    if not isinstance(message, dict):
        raise MessageError(f"a message is a map, this is a {type(message).__name__}")
    return message


def write_map(message: dict[str, Any]) -> bytes:
    """Return a message with arrays as maps."""
    data: bytes = msgpack.packb(message, default=_encode, use_bin_type=True)
    return data


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": list(value.shape),
        }
    raise TypeError(f"no form for {type(value).__name__}")
