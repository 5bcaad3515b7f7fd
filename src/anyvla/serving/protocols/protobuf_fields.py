"""Count the fields of a protobuf message before it is parsed: an empty one in a list has 2 bytes, and 50 in memory."""

from __future__ import annotations

_SIZES = {1: 8, 5: 4}  # bytes of a fixed number, by its wire type


def check_fields(data: bytes, most: int) -> None:
    """Raise ValueError for a message that has more than `most` fields, or that is cut off."""
    at = 0
    for _ in range(most):
        if at >= len(data):
            return
        tag, at = _read_varint(data, at)
        kind = tag & 7
        if kind == 0:
            _, at = _read_varint(data, at)
        elif kind == 2:
            size, at = _read_varint(data, at)
            at += size
        elif kind in _SIZES:
            at += _SIZES[kind]
        else:
            raise ValueError("the message is no protobuf message of version 3")
    if at < len(data):
        raise ValueError(f"the message has more than {most} fields (--limits.items)")


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        value |= (data[at] & 127) << shift
        at += 1
        if not data[at - 1] & 128:
            return value, at
    raise ValueError("the message is no protobuf message: it ends inside a number")
