from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyvla.data.formats.arrays.safe_pickle import MAX_MEMORY_RATIO, load_objects

PLAIN: dict[str, Any] = {
    "language": {"ann": ["open the drawer"], "emb": np.arange(6, dtype=np.float32).reshape(1, 1, 6)},
    "info": {"indx": [(3, 67)], "n": np.int64(4), "s": {1, 2}, "b": b"\x00\xff", "name": np.str_("A"), "none": None},
    "mixed": np.array([{"a": 1}, "text"], dtype=object),
}


def npy(path: Path, payload: bytes) -> Path:
    """Write a .npy file with one object, whose pickle is given."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + payload)
    return path


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray) and a.dtype != object:
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, np.ndarray | list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def test_a_dict_saved_by_numpy_comes_back(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", PLAIN)  # type: ignore[arg-type]
    assert same(PLAIN, load_objects(tmp_path / "a.npy"))


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_every_protocol_and_the_old_name_of_numpy(tmp_path: Path, protocol: int) -> None:
    payload = pickle.dumps(np.array(PLAIN, dtype=object), protocol)
    assert same(PLAIN, load_objects(npy(tmp_path / "a.npy", payload)))
    if protocol < 4:  # later ones write the length of names
        assert same(PLAIN, load_objects(npy(tmp_path / "b.npy", payload.replace(b"numpy._core", b"numpy.core"))))


def test_arrays_without_objects_are_read_as_they_are(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(12).reshape(3, 4))
    assert np.array_equal(load_objects(tmp_path / "a.npy"), np.arange(12).reshape(3, 4))


class Call:
    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (Call(os.system, "touch {}"), r"(posix|nt)\.system"),
        (Call(eval, "open('{}', 'w')"), r"(__)?builtins?\w*\.eval"),
        (Call(getattr, "x", "join"), r"(__)?builtins?\w*\.getattr"),
        (Call(np.fromfile, "{}"), r"numpy"),
    ],
)
def test_a_pickle_that_calls_is_refused_and_does_not_run(tmp_path: Path, call: Call, named: str) -> None:
    mark = tmp_path / "ran"
    function, args = call.call
    call.call = function, tuple(a.format(mark) for a in args)
    for protocol in (0, 2, 4):
        path = npy(tmp_path / "a.npy", pickle.dumps({"language": call}, protocol))
        with pytest.raises(ValueError, match=rf"a\.npy holds a pickle that wants {named}.*only numpy arrays"):
            load_objects(path)
    assert not mark.exists()


def test_bytes_in_other_encodings_and_scalars_of_objects_are_refused(tmp_path: Path) -> None:
    zipped = b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00bz2tR."
    objects = b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x01\x00\x00\x00OtRU\x01atR."
    for payload in (zipped, objects):
        with pytest.raises(ValueError, match="damaged"):
            load_objects(npy(tmp_path / "a.npy", payload))


def test_errors_of_damaged_files_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, PLAIN)  # type: ignore[arg-type]
    whole = path.read_bytes()
    for cut in (0, 4, 60, 200, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"a\.npy"):
            load_objects(path)
    with pytest.raises(ValueError, match=r"there is no .*b\.npy"):
        load_objects(tmp_path / "b.npy")


def test_pickles_of_python_2_are_read(tmp_path: Path) -> None:
    """Python 2 wrote protocol 2, with byte strings for text and for the data of arrays."""
    kind = b"cnumpy\ndtype\nq\x05U\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = b"(K\x01K\x02\x85" + kind + b"\x89U\x08" + np.array([1, -2], "<f4").tobytes() + b"t"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R" + state + b"b"
    whole = wrapped(b"}U\x03emb" + array + b"s")
    read = load_objects(npy(tmp_path / "a.npy", whole))
    assert np.array_equal(read["emb"], [1, -2])
    text = wrapped(b"S'caf\\xe9'\np0\n")  # protocol 0
    assert load_objects(npy(tmp_path / "b.npy", text)) == "café"


def wrapped(value: bytes) -> bytes:
    """Return the pickle of an array of shape () with this value."""
    kind = b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8\x89\x88tR(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffK\x08K?tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n)C\x01btR"
    return b"\x80\x02" + empty + b"(K\x01)" + kind + b"\x89](" + value + b"etb."


def array(code: bytes, shape: bytes, contents: bytes, state: bytes = b"") -> bytes:
    kind = b"cnumpy\ndtype\n(X" + struct.pack("<I", len(code)) + code + b"\x89\x88tR" + state
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n)C\x01btR"
    return empty + b"(K\x01(" + shape + b"t" + kind + b"\x89" + contents + b"tb"


def doubled(start: bytes) -> bytes:
    return start + b"".join(b"q%c0h%ch%c\x86" % (i, i, i) for i in range(40))


FIELDS = b"X\x01\x00\x00\x00a\x85}X\x01\x00\x00\x00acnumpy\ndtype\n(X\x01\x00\x00\x00O\x89\x88tRK\x00\x86s"
RECORD = b"(K\x03X\x01\x00\x00\x00|N" + FIELDS + b"K\x08K\x01K\x00tb"
HOSTILE = {
    "a record with objects and no flags": array(b"V8", b"K\x01", b"C\x08AAAAAAAA", RECORD),
    "a record by the state of a simple type": array(b"f8", b"K\x01", b"C\x08AAAAAAAA", RECORD),
    "objects out of bytes": array(b"O8", b"K\x01", b"C\x08AAAAAAAA"),
    "more numbers than bytes": array(b"f8", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f", b"C\x08AAAAAAAA"),
    "a shape whose size overflows": array(b"f8", b"\x8a\x09\0\0\0\0\0\0\0\0\x01", b"C\x00"),
    "a negative shape": array(b"f8", b"J\xff\xff\xff\xff", b"C\x08AAAAAAAA"),
    "text of nothing, endlessly": array(b"U0", b"J\xff\xff\xff\x7f", b"C\x00"),
    "text that is none": array(b"U1", b"K\x01", b"C\x04\xff\xff\xff\xff"),
    "a state for a list": b"]}b",
    "a state for a function": b"c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb",
    "a state for a kind": b"cnumpy\nndarray\n}X\x01\x00\x00\x00aK\x01sb",
    "a function as data": b"cnumpy\ndtype\n",
    "a type as data": b"cnumpy\ndtype\n(X\x02\x00\x00\x00f8\x89\x88tR",
    "bytes that are not there": b"\x8e" + struct.pack("<Q", 1 << 62),
    "an array of bytes that are not there": b"\x96" + struct.pack("<Q", 1 << 40),
    "text that is not there": b"X" + struct.pack("<I", 0xFFFFFFFF),
    "a number of many bytes": b"\x8b" + struct.pack("<i", 1 << 30),
    "a number of many digits": b"I" + b"9" * 100_000 + b"\n",
    "a list in itself": b"]q\x01h\x01a",
    "a tuple in itself": b"]q\x01(h\x01ta",
    "lists within lists": b"]" * 100_000 + b"a" * 99_999,
    "lists doubled": doubled(b"]"),
    "keys doubled": b"}" + doubled(b")") + b"Ns",
    "members doubled": b"\x8f(" + doubled(b")") + b"\x90",
    "copies of one text": b"X" + struct.pack("<I", 100_000) + b"a" * 100_000 + b"q\x000"
    + b"(" + b"c_codecs\nencode\n(h\x00X\x06\x00\x00\x00latin1tR" * 5_000 + b"l",
    "an extension": b"\x82\x01",
    "an object of a class": b"c_codecs\nencode\n)\x81",
    "a buffer that is kept elsewhere": b"\x97",
    "an object that is kept elsewhere": b"Pobject\n",
    "half a pair of surrogates": b"X\x03\x00\x00\x00\xed\xa0\x80",
}  # fmt: skip


REASONS = {
    "a record with objects and no flags": "type 'V8'",
    "a record by the state of a simple type": "records",
    "more numbers than bytes": "promises 36893488113059364872 bytes",
    "a state for a function": "sets the state of a Function",
    "bytes that are not there": "promises 4611686018427387904 bytes where 4 are left",
    "a list in itself": "holds itself",
    "a tuple in itself": "holds itself",
    "lists within lists": "nests lists more than 64 deep",
    "lists doubled": "repeats its parts",
    "keys doubled": "a tuple as a key",
    "members doubled": "a tuple as a key",
    "copies of one text": "copies its parts too often",
    "an extension": "opcode",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_in_little_time_and_memory(tmp_path: Path, name: str) -> None:
    payload = wrapped(HOSTILE[name])
    path = npy(tmp_path / "a.npy", payload)
    tracemalloc.start()
    begin = time.process_time()
    try:
        with pytest.raises(ValueError, match=rf"a\.npy (is damaged|holds a pickle that).*{REASONS.get(name, '')}"):
            load_objects(path)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - begin < 5
    assert taken < MAX_MEMORY_RATIO * len(payload) + (1 << 20)


@pytest.mark.parametrize(
    "one", [b"]", b"}", b"\x8f", b")", b"]\x94", b"]\x85", b"\x8f\x85", b"C\x00", b"X\0\0\0\0", b"G12345678"]
)
def test_memory_is_a_stated_multiple_of_the_file(tmp_path: Path, one: bytes) -> None:
    payload = wrapped(b"(" + one * (8_000 // len(one)) + b"l")
    path = npy(tmp_path / "a.npy", payload)
    tracemalloc.start()
    try:
        load_objects(path)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken < MAX_MEMORY_RATIO * len(payload)


def fuzz(count: int) -> None:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("fuzz_pickle.py"), str(count)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_hundreds_of_random_pickles_do_no_harm() -> None:
    fuzz(200)


@pytest.mark.slow
def test_a_hundred_thousand_random_pickles_do_no_harm() -> None:
    fuzz(100_000)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296, 4294967296), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-3,), }",
        "{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': " + "(" * 3000 + ")" * 3000 + ", }",
        "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }",
    ],
)
def test_a_header_that_promises_too_much_is_refused(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + b"A" * 24)
    with pytest.raises(ValueError, match=r"a\.npy is damaged"):
        load_objects(path)


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"a\.npy.*a pipe"):
        load_objects(tmp_path / "a.npy")
