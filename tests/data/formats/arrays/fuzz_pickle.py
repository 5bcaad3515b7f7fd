"""Feeds hostile pickles to `load_objects`: `python fuzz_pickle.py COUNT`, in a process of its own, since one may crash.

Prints how many were read, refused, and how much memory the worst of them took. Fails if a file imports, runs or opens
anything, raises anything but ValueError, or takes more memory than the reader states.
"""

from __future__ import annotations

import pickle
import struct
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from anyvla.data.formats.arrays.safe_pickle import MAX_MEMORY_RATIO, load_objects

_HEADER = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + b"\n"
HEAD = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(_HEADER)) + _HEADER

NAMES = [
    *(b"numpy\ndtype", b"numpy\nndarray", b"_codecs\nencode", b"builtins\nset", b"builtins\nbytearray"),
    *(b"numpy.core.multiarray\n_reconstruct", b"numpy.core.multiarray\nscalar", b"numpy._core.numeric\n_frombuffer"),
    *(b"builtins\ncomplex", b"__builtin__\nfrozenset", b"builtins\nbytes"),
    *(b"os\nsystem", b"builtins\neval", b"numpy\nload", b"numpy.core\nmultiarray.scalar", b"antigravity\nfly"),
]
CODES = ["f4", "f8", "i8", "u1", "b1", "c16", "O", "O8", "S5", "U3", "U0", "V8", "f4,O", "M8[s]", "S999"]
LINES = [*NAMES, b"'\\xff'", b"9" * 500, b"1e999", b"01", b"7L", b"4000000000", b"-1", b"", b"nan"]
SIZES = [0, 1, 2, 7, 40, 255, 1 << 16, 1 << 31, (1 << 32) - 1]
BATCH = 50  # files of one example, since hypothesis takes longer than reading a file
HUGE = [*SIZES, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]
REAL = [
    pickle.dumps(np.array(value, object), protocol)
    for value in ({"a": np.arange(4), "b": [(1, 2.5), {3}]}, [np.float32(1), "x", b"y", np.array(["u"], "U2")])
    for protocol in range(6)
]
BEFORE = (
    b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR(K\x01)"
    b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8\x89\x88tR\x89]"
)


def text(value: str) -> bytes:
    """Return the opcodes of a text."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    """Return the opcodes of an integer."""
    return pickle.dumps(value, 2)[2:-1]


class Hostile:
    """Generates pickles from a random generator."""

    def __init__(self, random: Random) -> None:
        self.random = random

    def small(self) -> bytes:
        """Return a few bytes."""
        return self.random.randbytes(self.random.randrange(12))

    def operation(self) -> bytes:
        """Return one opcode with an argument that may not fit."""
        code = self.random.randrange(256).to_bytes(1, "little")
        if code in b"BXTUC\x8c" and self.random.random() < 0.7:
            data = self.small()
            return code + (bytes([len(data)]) if code in b"UC\x8c" else struct.pack("<I", len(data))) + data
        if code in b"BTrj\x8bJ":
            return code + struct.pack("<I", self.random.choice(SIZES))
        if code in b"\x8d\x8e\x95\x96":
            return code + struct.pack("<Q", self.random.choice(HUGE))
        if code in b"IFLSVgpPic":
            return code + self.random.choice([*LINES, self.small()]) + b"\n"
        return code + (self.random.randbytes(self.random.randrange(1, 3)) if code in b"KqhMU" else b"")

    def a_type(self, deep: int) -> bytes:
        """Return a numpy type with a state that may be refused."""
        call = b"cnumpy\ndtype\n(" + text(self.random.choice(CODES)) + b"\x89\x88tR"
        odd = [b"N" if self.random.random() < 0.8 else self.value(deep) for _ in range(3)]
        numbers = [number(self.random.choice([-1, 0, 4, 8, 63, 1 << 40])) for _ in range(3)]
        state = b"(K\x03" + text(self.random.choice("<>|=!")) + b"".join([*odd, *numbers]) + b"tb"
        return call + (state if self.random.random() < 0.6 else b"")

    def an_array(self, deep: int) -> bytes:
        """Return a numpy array whose state may not fit."""
        shape = [number(self.random.choice([0, 1, 2, 3, 1 << 40])) for _ in range(self.random.randrange(4))]
        data = self.small()
        contents = b"C" + bytes([len(data)]) + data if self.random.random() < 0.5 else self.value(deep)
        make = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
        return make + b"(K\x01(" + b"".join(shape) + b"t" + self.a_type(deep) + b"\x89" + contents + b"tb"

    def a_call(self, deep: int) -> bytes:
        """Return a call with any arguments, perhaps with a state."""
        args = [self.random.choice([self.value, self.a_type])(deep) for _ in range(self.random.randrange(4))]
        state = self.value(deep) + b"b" if self.random.random() < 0.25 else b""
        return b"c" + self.random.choice(NAMES) + b"\n(" + b"".join(args) + b"tR" + state

    def value(self, deep: int = 4) -> bytes:
        """Return a value, which may contain others."""
        kind = self.random.randrange(12 if deep else 6)
        if kind < 2:
            singles = [b"N", b"\x88", b"]", b"}", b")", b"\x8f", b"h\x00", b"h\x01", b"G" + b"\0" * 8]
            return self.random.choice(singles)
        if kind < 4:
            return number(self.random.choice([self.random.randrange(99), -1, 1 << 31, 1 << 70]))
        if kind < 6:
            data = self.small()
            return text(data.hex()) if kind == 4 else b"C" + bytes([len(data)]) + data
        if kind == 6:
            return self.an_array(deep - 1)
        if kind == 7:
            return self.a_call(deep - 1)
        if kind == 8:  # doubled again and again
            return self.value(deep - 1) + b"".join(b"q%ch%ch%c\x86" % (i, i, i) for i in range(65, 90))
        several = b"".join(self.value(deep - 1) for _ in range(self.random.randrange(5)))
        begin, end = self.random.choice([(b"]\x94(", b"e"), (b"(", b"t\x94"), (b"}\x94(", b"u"), (b"(", b"\x91")])
        return begin + several + end

    def pickle(self) -> bytes:
        """Return a whole pickle."""
        kind = self.random.randrange(4)
        if kind == 0:
            return BEFORE + self.value() + b"atb."
        if kind == 1:
            one = self.operation() if self.random.random() < 0.5 else self.value(1)
            return BEFORE + b"(" + one * self.random.choice([3, 100, 1000]) + b"eatb."
        if kind == 2:
            return b"\x80\x04" + b"".join(self.operation() for _ in range(self.random.randrange(30))) + b"."
        data = bytearray(self.random.choice(REAL))
        for _ in range(self.random.randrange(5)):
            at = self.random.randrange(len(data))
            data[at : at + self.random.randrange(4)] = self.random.choice([self.small, self.operation])()
        return bytes(data)


def main(count: int) -> None:
    """Read `count` random pickles."""
    path = Path(tempfile.mkdtemp()) / "a.npy"
    read = refused = unnamed = tried = 0
    worst = 0.0
    watching, seen = False, list[str]()

    def watch(event: str, args: Any) -> None:
        if watching and (event in ("import", "exec", "pickle.find_class") or event.startswith(("os.", "subprocess"))):
            seen.append(f"{event} {args}")
        if watching and event == "open" and args[0] != str(path):
            seen.append(f"open {args[0]}")

    sys.addaudithook(watch)

    def attempt(payload: bytes) -> None:
        nonlocal read, refused, unnamed, tried, worst, watching
        path.write_bytes(HEAD + payload)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        tried += 1
        watching = True
        try:
            load_objects(path)
            read += 1
        except ValueError as error:
            refused += 1
            unnamed += str(path) not in str(error)
        finally:
            watching = False
        taken = tracemalloc.get_traced_memory()[1] - before
        worst = max(worst, taken / max(4096, len(payload)))
        assert taken <= MAX_MEMORY_RATIO * len(payload) + (1 << 20), taken
        assert not seen, seen
        assert not unnamed

    @seed(17)
    @settings(max_examples=-(-count // BATCH), database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, (1 << 64) - 1))
    def attack(number: int) -> None:
        hostile = Hostile(Random(number))
        for _ in range(BATCH):
            attempt(hostile.pickle())

    path.write_bytes(HEAD + REAL[0])
    load_objects(path)  # import modules that numpy loads late
    tracemalloc.start()
    begin = time.monotonic()
    attack()
    print(
        f"{tried} files: {read} read, {refused} refused; at most {worst:.0f} times the file in memory; "
        f"{time.monotonic() - begin:.0f} s"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
