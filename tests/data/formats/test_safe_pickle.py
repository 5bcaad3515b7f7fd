from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyvla.data.formats.safe_pickle import load_objects

PLAIN: dict[str, Any] = {
    "language": {"ann": ["open the drawer"], "emb": np.arange(6, dtype=np.float32).reshape(1, 1, 6)},
    "info": {"indx": [(3, 67)], "n": np.int64(4), "s": {1, 2}, "b": b"\x00\xff", "name": np.str_("A"), "none": None},
    "mixed": np.array([{"a": 1}, "text"], dtype=object),
}


def npy(path: Path, payload: bytes) -> Path:
    """A .npy file of one object with this pickle."""
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


def test_bytes_by_other_codecs_and_scalars_of_objects_are_damage(tmp_path: Path) -> None:
    zipped = b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00bz2tR."
    objects = b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x01\x00\x00\x00OtRU\x01atR."
    for payload in (zipped, objects):
        with pytest.raises(ValueError, match="damaged"):
            load_objects(npy(tmp_path / "a.npy", payload))


def test_damage_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, PLAIN)  # type: ignore[arg-type]
    whole = path.read_bytes()
    for cut in (0, 4, 60, 200, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"a\.npy"):
            load_objects(path)
    with pytest.raises(ValueError, match=r"there is no .*b\.npy"):
        load_objects(tmp_path / "b.npy")
