from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from anyvla.files import durable


class Killed(BaseException):
    """Simulates a kill: nothing is cleaned up after it."""


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return a list that records, in order, each path that is synced or renamed."""
    found: list[tuple[str, str]] = []
    sync, replace = durable.sync, Path.replace

    def noted_sync(path: Path) -> None:
        found.append(("sync", path.name))
        sync(path)

    def noted_replace(self: Path, target: Path) -> Path:
        found.append(("rename", self.name))
        return replace(self, target)

    monkeypatch.setattr(durable, "sync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    return found


def folder(path: Path, text: str) -> Path:
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "a").write_text(text)
    (path / "b").write_text(text)
    return path


def test_a_folder_is_on_the_disk_before_its_rename_and_the_rename_after(
    tmp_path: Path, events: list[tuple[str, str]]
) -> None:
    durable.put(folder(tmp_path / "new", "x"), tmp_path / "there")
    renamed = events.index(("rename", "new"))
    assert {name for kind, name in events[:renamed]} == {"a", "b", "inner", "new"}
    assert events[renamed - 1] == ("sync", "new")
    assert events[renamed + 1 :] == [("sync", tmp_path.name)]
    assert (tmp_path / "there/inner/a").read_text() == "x"
    assert not (tmp_path / "new").exists()


def test_a_text_is_whole_on_the_disk_before_it_replaces_another(tmp_path: Path, events: list[tuple[str, str]]) -> None:
    path = tmp_path / "page"
    path.write_text("old")
    durable.write(path, "n\u00e9w")
    assert path.read_bytes() == "n\u00e9w".encode()
    (first, name), (second, renamed), last = events
    assert (first, second, last) == ("sync", "rename", ("sync", tmp_path.name))
    assert name == renamed != "page"
    assert [p.name for p in tmp_path.iterdir()] == ["page"]


@pytest.mark.parametrize("step", ["put", "rmtree"])
def test_swapping_folders_survives_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """After a kill between the two renames the old folder is restored; after both renames the new one stays."""
    there, new = folder(tmp_path / "codec", "old"), folder(tmp_path / "codec.tmp", "new")

    def killed(*args: object, **options: object) -> None:
        if step == "put" or (tmp_path / "codec").exists():
            raise Killed

    durable.finish_swap(there)  # nothing was interrupted
    assert (there / "b").read_text() == "old"
    with monkeypatch.context() as patch:
        patch.setattr(durable if step == "put" else shutil, step, killed)
        if step == "rmtree":
            patch.setattr(durable, "finish_swap", lambda folder: None)
        with pytest.raises(Killed):
            durable.swap(new, there)
    durable.finish_swap(there)
    assert (there / "b").read_text() == ("old" if step == "put" else "new")
    if step == "put":
        durable.swap(new, there)
        assert (there / "inner/a").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["codec"]
