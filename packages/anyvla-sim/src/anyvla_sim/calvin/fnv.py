"""The hash FNV-1, 32 bits (http://www.isthe.com/chongo/tech/comp/fnv/), and the variant of the package `pyhash`.

CALVIN seeds the poses of its blocks with `pyhash.fnv1_32()`, a package that no longer builds. Its hash starts at 0
instead of FNV's offset basis and reads the UTF-16 code units of a string; an ordinary FNV-1 gives other start states.
"""

from __future__ import annotations

OFFSET = 0x811C9DC5
_PRIME = 0x01000193


def fnv1_32(data: bytes, start: int = OFFSET) -> int:
    """Return the hash of `data`, 0 <= hash < 2**32. `start` is the hash of the bytes before it."""
    value = start
    for byte in data:
        value = (value * _PRIME & 0xFFFFFFFF) ^ byte
    return value


def pyhash_fnv1_32(text: str) -> int:
    """Return the value of `pyhash.fnv1_32()(text)` in Python 3."""
    return fnv1_32(text.encode("utf-16-le"), start=0)
