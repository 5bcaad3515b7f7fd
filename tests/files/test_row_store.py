from __future__ import annotations

import logging
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from anyvla.files import row_store
from anyvla.files.row_store import KEY_BYTES, RowStore

BYTES = 40  # of a row
SIZE = BYTES + KEY_BYTES + 4  # with its entry in the index


def key(number: int) -> bytes:
    return bytes([number]) + bytes(KEY_BYTES - 1)  # the zeros at its end belong to a key


def row(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, BYTES, np.uint8)


def fill(folder: Path, *numbers: int, most: int = 10**9) -> RowStore:
    store = RowStore(folder, BYTES, most)
    for number in numbers:
        store.add(key(number), row(number))
    store.flush()
    return store


def read(store: RowStore, *numbers: int) -> list[int]:
    """Check that each row in the store is the one that was added. Return the numbers that it lacks."""
    out = np.full((len(numbers), BYTES), 7, np.uint8)
    missing = store.read([key(number) for number in numbers], out)
    for place, number in enumerate(numbers):
        if place not in missing:
            np.testing.assert_array_equal(out[place], row(number))
    return [numbers[place] for place in missing]


def only_file(folder: Path) -> Path:
    [path] = folder.iterdir()
    return path


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for files of others at each read."""
    monkeypatch.setattr(row_store, "_LOOK_S", 0.0)


def test_rows_are_found_by_their_key_before_and_after_they_are_written(tmp_path: Path) -> None:
    store = RowStore(tmp_path, BYTES, 10**9)
    assert read(store, 1, 2) == [1, 2]
    store.add(key(2), row(2))
    assert read(store, 1, 2) == [1]
    store.add(key(1), row(1))
    store.flush()
    assert read(store, 2, 3, 1) == [3]
    assert read(RowStore(tmp_path, BYTES, 10**9), 3, 2, 1) == [3]
    assert only_file(tmp_path).stat().st_size == 2 * SIZE


def test_a_row_may_change_after_it_was_added(tmp_path: Path) -> None:
    store, given = RowStore(tmp_path, BYTES, 10**9), row(5)
    store.add(key(5), given)
    given[:] = 0
    assert read(store, 5) == []


def test_a_store_finds_what_others_write_later(tmp_path: Path) -> None:
    first, second = fill(tmp_path, 1), fill(tmp_path, 2)
    assert read(first, 1, 2, 3) == [3]
    fill(tmp_path, 3)
    assert read(second, 3, 1) == []


def test_many_rows_are_written_without_a_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_store, "_FILE_BYTES", 3 * BYTES)
    store = RowStore(tmp_path, BYTES, 10**9)
    for number in range(7):
        store.add(key(number), row(number))
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [3 * SIZE, 3 * SIZE]
    assert read(store, *range(8)) == [7]


def test_a_few_rows_are_written_after_some_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RowStore(tmp_path, BYTES, 10**9)
    store.add(key(1), row(1))
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(row_store, "_WRITE_S", 0.0)
    store.add(key(2), row(2))
    assert only_file(tmp_path).stat().st_size == 2 * SIZE


@pytest.mark.parametrize("place", [3, KEY_BYTES + 1, 2 * (KEY_BYTES + 4) + BYTES + 5])
def test_a_changed_byte_is_noticed_and_the_file_deleted(
    place: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, 1, 2)
    path = only_file(tmp_path)
    contents = bytearray(path.read_bytes())
    contents[place] ^= 4
    path.write_bytes(contents)
    store = RowStore(tmp_path, BYTES, 10**9)
    bad = 2 if place > KEY_BYTES + 4 else 1
    assert bad in read(store, 1, 2)
    if place != 3:  # another key: the store does not have the wanted one
        assert "the checksum of a row differs" in caplog.text
        assert not list(tmp_path.iterdir())
        assert read(store, 1, 2) == [1, 2]
    store.add(key(bad), row(bad))
    store.flush()
    assert bad not in read(RowStore(tmp_path, BYTES, 10**9), 1, 2)


@pytest.mark.parametrize("left", [0, 1, SIZE, SIZE + 1, 2 * SIZE - 1])
def test_a_file_that_is_cut_off_gives_no_row(left: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, 1, 2)
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes()[:left])
    assert read(RowStore(tmp_path, BYTES, 10**9), 1, 2) == [1, 2]
    assert ("is damaged" in caplog.text) == (left > 0)


def test_a_file_that_is_cut_off_or_deleted_while_it_is_used_gives_no_row(tmp_path: Path) -> None:
    store = fill(tmp_path, 1, 2)
    path = only_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    assert read(store, 1) == []
    assert read(store, 2) == [2]
    other = fill(tmp_path, 3)
    for path in tmp_path.iterdir():
        path.unlink()
    assert read(other, 3) == [3]


def test_the_folder_stays_within_its_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first = fill(tmp_path, 1, 2, most=4 * SIZE + 5)
    assert not first.full
    second = fill(tmp_path, 3, 4, 5, 6, most=4 * SIZE + 5)
    assert second.full
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 4 * SIZE
    assert read(second, 1, 3, 4, 5, 6) == [5, 6]
    second.add(key(7), row(7))
    second.flush()
    assert read(second, 7) == [7]
    assert caplog.text.count("is full") == 1


def test_nothing_is_written_to_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_store, "_SPARE_BYTES", 1 << 60)
    assert fill(tmp_path, 1).full
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    store = fill(tmp_path / "file" / "folder", 1)
    assert store.full
    assert "cannot be extended" in caplog.text
    assert read(store, 1) == [1]


def _extend(folder: Path, begin: int) -> None:
    store = RowStore(folder, BYTES, 10**9)
    for number in range(begin, begin + 20):
        if read(store, number):
            store.add(key(number), row(number))
            store.flush()


def test_two_processes_extend_a_folder_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_extend, args=(tmp_path, begin)) for begin in (0, 10)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert read(RowStore(tmp_path, BYTES, 10**9), *range(30)) == []
    assert all(path.name.endswith(".rows") for path in tmp_path.iterdir())
