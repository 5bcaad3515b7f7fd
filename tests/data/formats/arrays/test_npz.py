"""Tests of .npz files: arrays equal those that numpy reads, in threads too, and damage is refused."""

from __future__ import annotations

import io
import os
import threading
import time
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyvla.data.formats.arrays import npy

ARRAYS = {
    "numbers": np.arange(12, dtype=np.float32).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(24).reshape(2, 3, 4)),
    "scalar": np.array(2.5),
    "none": np.zeros((0, 7), np.uint8),
    "words": np.array(["open", "close"]),
    "fields": np.array([(1, 2.0)], [("a", "<i4"), ("b", "<f8")]),
    "big": np.arange(3, dtype=">i4"),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_equal_those_that_numpy_reads(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "a.npz", **ARRAYS)
    read = npy.load_arrays(tmp_path / "a.npz")
    assert list(read) == list(ARRAYS) == npy.array_keys(tmp_path / "a.npz")
    for key, array in ARRAYS.items():
        assert np.array_equal(read[key], array), key
        assert (read[key].dtype, read[key].flags.writeable) == (array.dtype, True)
        assert npy.array_header(tmp_path / "a.npz", key).shape == array.shape
    assert list(npy.load_arrays(tmp_path / "a.npz", ["big"])) == ["big"]


def test_errors_name_the_file_and_the_key(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", thing=np.array([{}], object))
    with pytest.raises(ValueError, match=r"a.npz, key 'thing': it holds objects"):
        npy.load_arrays(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", numbers=np.arange(100))
    with pytest.raises(ValueError, match=r"b.npz has no key 'number'; it has numbers"):
        npy.load_arrays(tmp_path / "b.npz", ["number"])
    whole = (tmp_path / "b.npz").read_bytes()
    at = whole.index(np.arange(100).tobytes())
    (tmp_path / "c.npz").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ValueError, match=r"c.npz, key 'numbers': .*CRC.*copy the file again"):
        npy.load_arrays(tmp_path / "c.npz")
    (tmp_path / "d.npz").write_bytes(whole[: at + 50])
    with pytest.raises(ValueError, match=r"d.npz cannot be read as .npz .*copy it again"):
        npy.load_arrays(tmp_path / "d.npz")
    with pytest.raises(ValueError, match=r"there is no .*e.npz"):
        npy.load_arrays(tmp_path / "e.npz")


def test_headers_are_parsed_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11 sometimes fails when two threads parse literals at once."""
    np.savez(tmp_path / "a.npz", **ARRAYS)
    inside, most, guard = 0, 0, threading.Lock()
    original = np.lib.format.read_array_header_1_0

    def slow(file: Any) -> Any:
        nonlocal inside, most
        with guard:
            inside += 1
            most = max(most, inside)
        time.sleep(0.002)
        with guard:
            inside -= 1
        return original(file)

    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", slow)
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda _: npy.load_arrays(tmp_path / "a.npz"), range(8)))
    assert most == 1
    assert all(np.array_equal(r["numbers"], ARRAYS["numbers"]) for r in read)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 30,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("images.npy", "w") as member:
            member.write(header.getvalue())
            for _ in range(300):  # 300 MiB in 1.3 MB
                member.write(bytes(1 << 20))
        archive.writestr("short.npy", header.getvalue() + bytes(100))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"a.npz, key 'images': its \d+ bytes promise to become 314572928"):
            npy.load_arrays(tmp_path / "a.npz", ["images"])
        with pytest.raises(ValueError, match=r"a.npz, key 'short': .*promises 1073741824 bytes .*, 100 are there"):
            npy.load_arrays(tmp_path / "a.npz", ["short"])
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_file_that_is_no_archive_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npz.npy", np.arange(3))
    (tmp_path / "a.npz.npy").rename(tmp_path / "a.npz")
    os.mkfifo(tmp_path / "b.npz")
    for name in ("a", "b"):
        with pytest.raises(ValueError, match=rf"{name}\.npz"):
            npy.array_keys(tmp_path / f"{name}.npz")
