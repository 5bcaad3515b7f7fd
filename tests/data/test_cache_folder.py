from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from anyvla.data import cache_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: Any) -> Path:
    monkeypatch.setenv("ANYVLA_CACHE", str(tmp_path / "cache"))
    cache_folder._warn_once.cache_clear()
    return tmp_path / "cache"


def test_contents_come_back(cache: Path) -> None:
    assert cache_folder.read("kind", "name") is None
    cache_folder.write("kind", "name", b"contents")
    assert cache_folder.read("kind", "name") == b"contents"
    assert cache_folder.read("kind", "other") is None


@pytest.mark.parametrize("damage", [slice(0, -1), slice(0, 0), slice(3, None), "bit", "renamed", "older"])
def test_a_damaged_file_is_ignored_with_a_warning(damage: Any, cache: Path, caplog: Any) -> None:
    cache_folder.write("kind", "name", b"contents")
    cache_folder.write("kind", "other", b"other contents")
    path = cache / "kind/name"
    whole = path.read_bytes()
    if damage == "bit":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "renamed":
        (cache / "kind/other").replace(path)
    elif damage == "older":
        path.write_bytes(b'{"q01": [0.0]}')
    else:
        path.write_bytes(whole[damage])
    assert cache_folder.read("kind", "name") is None
    assert f"the cache file {path} is damaged or of another version" in caplog.text


def test_an_unusable_cache_folder_gives_one_warning(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ANYVLA_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: None)  # tests may run in a pool of workers
    for name in ("a", "b"):
        assert cache_folder.read("kind", name) is None
        cache_folder.write("kind", name, b"contents")
    [record] = caplog.records
    assert f"the cache folder {tmp_path / 'file'} cannot be used (Not a directory)" in record.getMessage()
    assert "Set ANYVLA_CACHE" in record.getMessage()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without a home")
@pytest.mark.parametrize("settings", [{}, {"HOME": "/"}, {"HOME": "/proc"}, {"XDG_CACHE_HOME": "/proc/none"}])
def test_a_user_without_a_home_needs_no_cache(settings: dict[str, str]) -> None:
    """Containers may run as users without an entry in the password file, who can write only to the run folder."""
    code = (
        "import os; from anyvla.data import cache_folder; os.setuid(54321); "
        "cache_folder.write('kind', 'name', b'x'); assert cache_folder.read('kind', 'name') is None"
    )
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": path, "PATH": os.environ["PATH"], **settings},
        cwd="/",
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot be used") == 1
