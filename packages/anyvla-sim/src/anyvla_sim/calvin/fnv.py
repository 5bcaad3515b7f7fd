"""FNV-1, 32 bits (http://www.isthe.com/chongo/tech/comp/fnv/), and what the package `pyhash` makes of a string.

CALVIN seeds the poses of its blocks with `pyhash.fnv1_32()`, a package that no longer builds. It begins at 0 instead
of FNV's offset basis, and hashes a string's UTF-16 code units: an ordinary FNV-1 gives other start states.
"""

from __future__ import annotations

OFFSET = 0x811C9DC5
_PRIME = 0x01000193


def fnv1_32(data: bytes, start: int = OFFSET) -> int:
    """The hash of `data`, 0 <= hash < 2**32; `start`: the hash of what comes before it."""
    value = start
    for byte in data:
        value = (value * _PRIME & 0xFFFFFFFF) ^ byte
    return value


def pyhash_fnv1_32(text: str) -> int:
    """What `pyhash.fnv1_32()(text)` gives in Python 3."""
    return fnv1_32(text.encode("utf-16-le"), start=0)
