from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyvla.data import fingerprints, threads
from anyvla.data.fingerprints import are_comparable, cache_key, combine, hash_files, hash_many_files

LONG = 600_000  # bytes: far more than a head and a tail


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: Any) -> Path:
    monkeypatch.setenv("ANYVLA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "videos").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.parquet", "b.parquet", "videos/a.mp4"):
        (folder / name).write_bytes(rng.bytes(LONG))
    return folder


@pytest.fixture
def settled(monkeypatch: Any) -> None:
    """Treat all files as changed long ago."""
    monkeypatch.setattr(fingerprints, "_RECENT_NS", -(10**12))


@pytest.fixture
def hashed(monkeypatch: Any) -> list[str]:
    """Return a list that collects the names of the files that are read."""
    names, whole = [], fingerprints._hash

    def watched(root: Path, path: Path, report: Any) -> Any:
        names.append(path.name)
        return whole(root, path, report)

    monkeypatch.setattr(fingerprints, "_hash", watched)
    return names


def files(root: Path) -> list[Path]:
    return [p for p in root.rglob("*") if p.is_file()]


def edit(path: Path, restore_time: bool = True) -> None:
    """Change one byte in the middle. The size and the time of modification stay."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(before.st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    if restore_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


WAYS = {"hash_files": hash_files, "hash_many_files": hash_many_files, "cache_key": cache_key}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["a.parquet", "videos/a.mp4"])
@pytest.mark.parametrize("old", [True, False])
def test_an_edit_in_the_middle_changes_the_fingerprint(
    way: str, name: str, old: bool, root: Path, monkeypatch: Any
) -> None:
    if old:
        monkeypatch.setattr(fingerprints, "_RECENT_NS", -(10**12))
    make = WAYS[way]
    first = make(root, sorted(files(root)), "meaning")
    assert make(root, sorted(files(root)), "meaning") == first
    time.sleep(0.02)  # a clock tick of the kernel
    edit(root / name)
    assert make(root, sorted(files(root)), "meaning") != first


def test_an_edit_within_a_tick_of_the_clock_is_noticed(root: Path, monkeypatch: Any) -> None:
    """Such an edit changes nothing that `stat` returns."""
    now = time.time_ns()
    monkeypatch.setattr(fingerprints, "_as_state", lambda of: (LONG, 1, now, now))
    first = [make(root, sorted(files(root)), "") for make in WAYS.values()]
    edit(root / "b.parquet")
    assert all(make(root, sorted(files(root)), "") != one for make, one in zip(WAYS.values(), first, strict=True))


def test_each_file_is_hashed_once(root: Path, settled: None, hashed: list[str]) -> None:
    first = hash_files(root, files(root), "meaning")
    assert sorted(hashed) == ["a.mp4", "a.parquet", "b.parquet"]
    hashed.clear()
    assert hash_files(root, files(root), "meaning") == first
    assert hash_files(root, files(root), "another meaning") != first
    assert cache_key(root, files(root), "") == cache_key(root, files(root), "")
    assert not hashed
    time.sleep(0.02)
    edit(root / "a.parquet", restore_time=False)
    assert hash_files(root, files(root), "meaning") != first
    assert hashed == ["a.parquet"]


def test_renaming_a_file_changes_the_fingerprint(root: Path) -> None:
    first = [make(root, sorted(files(root)), "m") for make in (hash_files, hash_many_files)]
    (root / "a.parquet").rename(root / "aa.parquet")  # in the same place of the order
    assert all(
        make(root, sorted(files(root)), "m") != f for make, f in zip((hash_files, hash_many_files), first, strict=True)
    )


def test_the_order_in_which_a_folder_lists_its_files_changes_nothing(root: Path) -> None:
    listed = sorted(files(root))
    assert hash_files(root, listed[::-1], "m") == hash_files(root, listed, "m")
    assert cache_key(root, listed[::-1], "m") == cache_key(root, listed, "m")


def test_parts_of_a_fingerprint_do_not_run_into_each_other() -> None:
    assert (
        len({combine(*parts) for parts in (("ab", "c"), ("a", "bc"), ("abc",), ("a\n1:b", "c"), ("ab", "c", ""))}) == 5
    )


def test_a_copy_has_the_same_fingerprint_and_another_state(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for path in files(root):
        (copy / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        (copy / path.relative_to(root)).write_bytes(path.read_bytes())
    for make in (hash_files, hash_many_files):
        assert make(copy, sorted(files(copy)), "m") == make(root, sorted(files(root)), "m")
    assert cache_key(copy, files(copy), "m") != cache_key(root, files(root), "m")


def test_without_a_cache_every_file_is_hashed_each_time(
    root: Path, cache: Path, settled: None, hashed: list[str]
) -> None:
    cache.touch()  # no folder can be made there
    assert hash_files(root, files(root), "") == hash_files(root, files(root), "")
    assert len(hashed) == 6


def test_damaged_hashes_are_made_again(root: Path, cache: Path, settled: None, hashed: list[str], caplog: Any) -> None:
    first = hash_files(root, files(root), "")
    [kept] = (cache / "hashes").iterdir()
    kept.write_bytes(kept.read_bytes().replace(b'"a.parquet"', b'"b.parquet"'))
    assert hash_files(root, files(root), "") == first
    assert len(hashed) == 6
    assert "damaged" in caplog.text


def test_a_file_that_grows_while_it_is_hashed_is_refused(root: Path, monkeypatch: Any) -> None:
    def written_to(self: Any, more: float) -> None:
        with (root / "a.parquet").open("ab") as other:
            other.write(b"more")

    monkeypatch.setattr(fingerprints._Progress, "count", written_to)
    monkeypatch.setattr(fingerprints, "_AT_ONCE", LONG)
    with pytest.raises(ValueError, match=r"parquet changed while it was read: wait until it is complete"):
        hash_files(root, [root / "a.parquet"], "")


@pytest.mark.parametrize("way", WAYS)
def test_pipes_and_missing_files_are_refused(way: str, root: Path) -> None:
    os.mkfifo(root / "pipe.parquet")
    for name, message in (("pipe.parquet", "not a regular file"), ("none.parquet", r"there is no .*none\.parquet")):
        with pytest.raises(ValueError, match=message):
            WAYS[way](root, [root / name], "")


def test_writers_at_the_same_time_agree(root: Path, settled: None) -> None:
    found = list[str]()
    writers = [threading.Thread(target=lambda: found.append(hash_files(root, files(root), ""))) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(set(found)) == 1
    assert hash_files(root, files(root), "") == found[0]


def test_long_hashing_logs_progress_and_keeps_finished_hashes(
    root: Path, settled: None, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setattr(fingerprints, "_REPORT_S", -1.0)
    monkeypatch.setattr(threads, "_THREADS", 1)
    whole, count, names = fingerprints._hash, iter(range(5)), list[str]()

    def killed(root: Path, path: Path, report: Any) -> Any:
        names.append(path.name)
        if next(count) == 2:
            raise KeyboardInterrupt
        return whole(root, path, report)

    monkeypatch.setattr(fingerprints, "_hash", killed)
    with pytest.raises(KeyboardInterrupt):
        hash_files(root, files(root), "")
    assert f"fingerprint of {root}, made once: 0.0012 of 0.0018 GB" in caplog.text
    hash_files(root, files(root), "")
    assert names[3:] == names[2:3]  # the two that were hashed before are known


def test_fingerprints_of_another_version_cannot_be_compared() -> None:
    assert are_comparable(combine("a"), combine("b"))
    assert not are_comparable("f" * 64, combine("a"))
