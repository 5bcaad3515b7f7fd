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
    first: struct.Struct(form) for first, form in [
        (0xCA, ">f"), (0xCB, ">d"),
        (0xCC, ">B"), (0xCD, ">H"), (0xCE, ">I"), (0xCF, ">Q"),
        (0xD0, ">b"), (0xD1, ">h"), (0xD2, ">i"), (0xD3, ">q"),
    ]
}  # fmt: skip
# The first byte, what it begins and the struct of its length.
_SIZED = {
    first: (kind, struct.Struct(form)) for first, kind, form in [
        (0xC4, "binary", ">B"), (0xC5, "binary", ">H"), (0xC6, "binary", ">I"),
        (0xD9, "text", ">B"), (0xDA, "text", ">H"), (0xDB, "text", ">I"),
        (0xDC, "list", ">H"), (0xDD, "list", ">I"),
        (0xDE, "map", ">H"), (0xDF, "map", ">I"),
    ]
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
    value = reader.value()
    if reader.position != len(data):
        raise MessageError(f"{len(data) - reader.position} bytes follow the end of the message")
    return value


class _Reader:
    def __init__(self, data: bytes, limits: ServerLimits, binary_keys: bool) -> None:
        self._data, self._end, self._limits, self._binary_keys = memoryview(data), len(data), limits, binary_keys
        self.position, self._items = 0, 0
        self._path: list[str] = []  # the keys that lead to the current value

    def value(self) -> Any:
        """Return the next value."""
        self._items += 1
        if self._items > self._limits.items:
            raise MessageError(f"the message has more than {self._limits.items} values")
        first = self._take(1)[0]
        if first < 0x80:
            return first
        if first >= 0xE0:
            return first - 0x100
        if 0xA0 <= first < 0xC0:
            return self._text(first & 31)
        if first in _NUMBERS:
            return self._number(_NUMBERS[first])
        if first < 0xA0:
            kind, size = ("map", first & 15) if first < 0x90 else ("list", first & 15)
        elif first in _SIZED:
            kind, size = _SIZED[first][0], int(self._number(_SIZED[first][1]))
        elif first in _CONSTANTS:
            return _CONSTANTS[first]
        else:
            raise MessageError(f"{self._place} has a type that is not accepted (byte {first:#04x})")
        if kind == "text":
            return self._text(size)
        if kind == "binary":
            return self._take(size)
        if len(self._path) >= self._limits.depth:
            raise MessageError(f"{self._place} is nested deeper than {self._limits.depth} maps and lists")
        self._path.append("")
        value = self._list(size) if kind == "list" else self._map(size)
        self._path.pop()
        return value

    def _list(self, size: int) -> list[Any]:
        self._check_size(size, size, "values", self._limits.items)
        found = []
        for index in range(size):
            self._path[-1] = str(index)
            found.append(self.value())
        return found

    def _map(self, size: int) -> dict[str, Any]:
        self._check_size(size, 2 * size, "keys", self._limits.entries)
        found: dict[str, Any] = {}
        for _ in range(size):
            self._path[-1] = "a key"
            key = self.value()
            if self._binary_keys and isinstance(key, memoryview):
                self.position -= len(key)
                key = self._text(len(key))
            if not isinstance(key, str):
                where = _at(self._path[:-1])
                raise MessageError(f"{where} has the key {quote(key)} of type {_kind(key)}; keys are text")
            if key in found:
                raise MessageError(f"{_at(self._path[:-1])} has the key {quote(key)} twice")
            self._path[-1] = key
            found[key] = self.value()
        return found

    def _check_size(self, size: int, least: int, what: str, most: int) -> None:
        """Raise MessageError for a map or a list that is too large or that the rest of the message can't hold."""
        if size > most:
            raise MessageError(f"{_at(self._path[:-1])} has {size} {what}; at most {most} are accepted")
        if least > self._end - self.position:
            raise MessageError(f"the message ends inside {_at(self._path[:-1])}")

    def _text(self, size: int) -> str:
        most = self._limits.text_bytes
        if size > most:
            raise MessageError(f"{self._place} is a text of {size} bytes; at most {most} are accepted")
        try:
            return str(self._take(size), "utf-8")
        except UnicodeDecodeError as error:
            raise MessageError(f"{self._place} is no UTF-8 text: {error.reason} at byte {error.start}") from None

    def _number(self, form: struct.Struct) -> Any:
        return form.unpack(self._take(form.size))[0]

    def _take(self, size: int) -> memoryview:
        begin = self.position
        end = self.position = begin + size
        if end > self._end:
            raise MessageError(f"the message ends inside {self._place}")
        return self._data[begin:end]

    @property
    def _place(self) -> str:
        return _at(self._path)


def _at(path: list[str]) -> str:
    return quote(".".join(path)) if path else "the message"


def _kind(value: Any) -> str:
    return "binary" if isinstance(value, memoryview) else type(value).__name__
