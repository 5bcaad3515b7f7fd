"""Read untrusted msgpack: every length is checked before anything is allocated, and errors name the key.

`msgpack.unpackb` bounds each map and list but not how many there are: 32 MiB of empty lists become 2 GiB of objects
while nothing else runs. This reader counts them. It accepts the types that policy clients send (keys in text or, for
some protocols, in binary; no extension types), and returns binary data as views of the message.
"""

from __future__ import annotations

import struct
from typing import Any

from anyvla.serving.limits import ServerLimits
from anyvla.serving.naming import quote

# The first byte of a value, the struct of the number that follows.
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d",
    0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
# The first byte, what it begins and the struct of its length.
_SIZED = {
    0xC4: ("binary", ">B"), 0xC5: ("binary", ">H"), 0xC6: ("binary", ">I"),
    0xD9: ("text", ">B"), 0xDA: ("text", ">H"), 0xDB: ("text", ">I"),
    0xDC: ("list", ">H"), 0xDD: ("list", ">I"),
    0xDE: ("map", ">H"), 0xDF: ("map", ">I"),
}  # fmt: skip
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


class MessageError(ValueError):
    """A message that is not msgpack, or exceeds the limits."""


def read_msgpack(data: bytes, limits: ServerLimits, binary_keys: bool = False) -> Any:
    """Return the one value of a message. Raises a MessageError that names the key.

    With `binary_keys`, a key may be binary, as `b"__ndarray__"` of openpi's and msgpack_numpy's arrays; it is returned
    as text, so that `"data"` and `b"data"` are the same key.
    """
    reader = _Reader(data, limits, binary_keys)
    value = reader.value([])
    if reader.position != len(data):
        raise MessageError(f"{len(data) - reader.position} bytes follow the end of the message")
    return value


class _Reader:
    def __init__(self, data: bytes, limits: ServerLimits, binary_keys: bool) -> None:
        self._data, self._limits, self._binary_keys = memoryview(data), limits, binary_keys
        self.position, self._items = 0, 0

    def value(self, path: list[str]) -> Any:
        """Return the next value. `path`: the keys that lead to it."""
        self._items += 1
        if self._items > self._limits.items:
            raise MessageError(f"the message has more than {self._limits.items} values")
        first = self._take(1, path)[0]
        if first < 0x80:
            return first
        if first >= 0xE0:
            return first - 0x100
        if first in _CONSTANTS:
            return _CONSTANTS[first]
        if first in _NUMBERS:
            return self._number(_NUMBERS[first], path)
        if first < 0xC0:
            kind, size = (
                ("map", first & 15) if first < 0x90 else ("list", first & 15) if first < 0xA0 else ("text", first & 31)
            )
        elif first in _SIZED:
            kind, size = _SIZED[first][0], int(self._number(_SIZED[first][1], path))
        else:
            raise MessageError(f"{_at(path)} has a type that is not accepted (byte {first:#04x})")
        if kind == "text":
            return self._text(size, path)
        if kind == "binary":
            return self._take(size, path)
        if len(path) >= self._limits.depth:
            raise MessageError(f"{_at(path)} is nested deeper than {self._limits.depth} maps and lists")
        if kind == "list":
            self._check_size(size, size, "values", self._limits.items, path)
            return [self.value([*path, str(i)]) for i in range(size)]
        self._check_size(size, 2 * size, "keys", self._limits.entries, path)
        return self._map(size, path)

    def _map(self, size: int, path: list[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(size):
            key = self.value([*path, "a key"])
            if self._binary_keys and isinstance(key, memoryview):
                self.position -= len(key)
                key = self._text(len(key), [*path, "a key"])
            if not isinstance(key, str):
                raise MessageError(f"{_at(path)} has the key {quote(key)} of type {_kind(key)}; keys are text")
            if key in found:
                raise MessageError(f"{_at(path)} has the key {quote(key)} twice")
            found[key] = self.value([*path, key])
        return found

    def _check_size(self, size: int, least: int, what: str, most: int, path: list[str]) -> None:
        """Raise MessageError for a map or a list that is too large or that the rest of the message can't hold."""
        if size > most:
            raise MessageError(f"{_at(path)} has {size} {what}; at most {most} are accepted")
        if least > len(self._data) - self.position:
            raise MessageError(f"the message ends inside {_at(path)}")

    def _text(self, size: int, path: list[str]) -> str:
        if size > self._limits.text_bytes:
            raise MessageError(f"{_at(path)} is a text of {size} bytes; at most {self._limits.text_bytes} are accepted")
        try:
            return str(self._take(size, path), "utf-8")
        except UnicodeDecodeError as error:
            raise MessageError(f"{_at(path)} is no UTF-8 text: {error.reason} at byte {error.start}") from None

    def _number(self, form: str, path: list[str]) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form), path))[0]

    def _take(self, size: int, path: list[str]) -> memoryview:
        if size > len(self._data) - self.position:
            raise MessageError(f"the message ends inside {_at(path)}")
        self.position += size
        return self._data[self.position - size : self.position]


def _at(path: list[str]) -> str:
    return quote(".".join(path)) if path else "the message"


def _kind(value: Any) -> str:
    return "binary" if isinstance(value, memoryview) else type(value).__name__
