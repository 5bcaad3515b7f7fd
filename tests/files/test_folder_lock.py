"""A command that finds its folder in use stops and names the other one. A killed command leaves no lock behind."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from anyvla.files import folder_lock
from anyvla.files.folder_lock import FolderInUse, lock_folder, lock_while_making

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX locks")
HOLD = """
import sys, time
from pathlib import Path
from anyvla.files.folder_lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    if sys.argv[2:] == ["fork"]:
        import os
        if os.fork() == 0:
            print("forked", flush=True)  # the child has dropped the lock that it inherited
            time.sleep(30)
    if sys.argv[2:] == ["spawn"]:
        import subprocess
        print(subprocess.Popen(["sleep", "30"], close_fds=False).pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holding():
    """Return a function that starts a process that holds the lock of a folder."""
    started = []

    def start(folder: Path, *how: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder), *how],
            stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "held\n"
        if how:
            assert process.stdout.readline()  # the child runs
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
        process.stdout.close()


def enter(folder: Path) -> None:
    with lock_folder(folder):
        pass


def test_the_second_one_says_who_holds_the_folder(tmp_path, holding):
    folder = tmp_path / "runs" / "a"
    holder = holding(folder)
    with pytest.raises(FolderInUse) as refused:
        enter(folder)
    told = str(refused.value)
    assert f"{folder} is in use by `-c {folder}` (process {holder.pid} on " in told
    assert "choose another output folder" in told
    enter(tmp_path / "runs" / "b")


@pytest.mark.parametrize("how", [(), ("fork",), ("spawn",)])
def test_a_killed_holder_leaves_no_lock_even_if_its_children_live(tmp_path, holding, how):
    holder = holding(tmp_path / "run", *how)
    holder.kill()
    holder.wait()
    assert (tmp_path / "run" / ".lock").exists()  # the file is stale, its text names a dead process
    enter(tmp_path / "run")
    assert not (tmp_path / "run" / ".lock").exists()


def test_one_command_may_be_made_of_others(tmp_path):
    with lock_folder(tmp_path / "run"):
        enter(tmp_path / "run")
        link = tmp_path / "link"
        link.symlink_to(tmp_path / "run")
        enter(link)  # the same folder by another name
        with lock_while_making(tmp_path / "run" / "dataset"):
            assert (tmp_path / "run" / ".dataset.lock").exists()
            assert not (tmp_path / "run" / "dataset").exists()
        assert (tmp_path / "run" / ".lock").exists()


def test_another_thread_is_another_command(tmp_path):
    refused = []

    def other() -> None:
        try:
            enter(tmp_path)
        except FolderInUse as error:
            refused.append(str(error))

    with lock_folder(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert refused == [f"{tmp_path} is in use by another thread of this process"]


def test_a_command_that_fails_leaves_neither_lock_nor_folder(tmp_path):
    failing = pytest.raises(ZeroDivisionError)
    with failing, lock_folder(tmp_path / "a" / "b"):
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


def _race(folder: Path, log: Path, turns: int) -> None:
    for _ in range(turns):
        try:
            with lock_folder(folder):
                with log.open("a") as file:
                    file.write("in\n")
                time.sleep(0.0005)
                with log.open("a") as file:
                    file.write("out\n")
        except FolderInUse:
            time.sleep(0.0001)


def test_one_of_many_processes_enters(tmp_path):
    """Locks are made and removed continuously. A lock on a removed file does not count."""
    context = multiprocessing.get_context("fork")
    racers = [context.Process(target=_race, args=(tmp_path / "run", tmp_path / "log", 200)) for _ in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
        assert racer.exitcode == 0
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines
    assert lines == ["in", "out"] * (len(lines) // 2)


def test_a_folder_that_is_removed_before_the_lock_is_in_it_is_made_again(tmp_path, monkeypatch):
    """Another command ends between any two steps of making the folder and the file."""
    folder, make = tmp_path / "run", os.mkdir
    races = ["made and removed", "found and removed", "made and removed"]

    def lost(path, *given, **keys):
        race = races.pop(0) if races else ""
        if race == "found and removed":  # mkdir finds it, and it is gone when pathlib looks at it
            raise FileExistsError(path)
        make(path, *given, **keys)
        if race:
            folder.rmdir()

    monkeypatch.setattr(os, "mkdir", lost)
    with lock_folder(folder):
        assert (folder / ".lock").is_file()
    assert not races


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(FileExistsError), lock_folder(tmp_path / "run"):
        pass


def test_a_lock_file_with_nonsense_in_it_is_no_lock(tmp_path, holding):
    (tmp_path / ".lock").write_bytes(b"\xff" * 10000)
    enter(tmp_path)
    holding(tmp_path)
    (tmp_path / ".lock").write_text(json.dumps(["?"]))
    with pytest.raises(FolderInUse, match="in use by another command"):
        enter(tmp_path)


@pytest.mark.parametrize(("error", "warned"), [(folder_lock.errno.ENOLCK, True), (folder_lock.errno.EROFS, False)])
def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch, caplog, error, warned):
    def refuse(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(folder_lock.fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING):
        enter(tmp_path)
        enter(tmp_path)
    assert ("has no locks" in caplog.text) == warned


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_not_locked(tmp_path):
    tmp_path.chmod(0o555)
    enter(tmp_path)
    tmp_path.chmod(0o755)
