from __future__ import annotations

import pytest

from anyvla_sim.calvin.fnv import fnv1_32, pyhash_fnv1_32


@pytest.mark.parametrize(
    ("data", "hashed"),  # of the reference implementation's test_fnv.c
    [(b"", 0x811C9DC5), (b"a", 0x050C5D7E), (b"fo", 0x6B772514), (b"fooba", 0xFDC80FB0), (b"foobar", 0x31F0B262)],
)
def test_published_vectors(data: bytes, hashed: int) -> None:
    assert fnv1_32(data) == hashed


def test_it_goes_on_where_it_stopped() -> None:
    assert fnv1_32(b"bar", start=fnv1_32(b"foo")) == fnv1_32(b"foobar")


def test_as_pyhash_has_it() -> None:
    """The numbers of pyhash 0.9.3's own tests (tests/test_fnv1.py), and one that its C++ gave for CALVIN's chain 0."""
    assert fnv1_32(b"test", start=0) == 3698262380
    assert fnv1_32(b"test", start=3698262380) == 660137056
    assert pyhash_fnv1_32("test") == 3910690890
    start = {"led": 1, "lightbulb": 1, "slider": "left", "drawer": "open", "red_block": "slider_left"}
    start.update(blue_block="table", pink_block="slider_right", grasped=0)
    assert pyhash_fnv1_32(str(start.values())) == 2138410836
