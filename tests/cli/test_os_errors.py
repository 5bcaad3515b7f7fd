from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from anyvla.cli import common
from anyvla.cli.main import main
from anyvla.cli.os_errors import explain


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (errno.EACCES, "run/x: permission denied. Choose a path that you may read and write"),
        (errno.EROFS, "run/x: read-only file system. Choose a folder on a disk that can be written"),
        (errno.ENOSPC, "run/x: no space left on device. Everything reported so far is kept"),
        (errno.EMFILE, "run/x: too many open files. Allow more open files (ulimit -n 8192)"),
        (errno.EIO, "run/x: input/output error. The disk or the network drive reports a fault"),
        (errno.EXDEV, "run/x: invalid cross-device link"),
    ],
)
def test_an_error_names_the_path_and_the_way_out(number: int, line: str, capsys: Any) -> None:
    def fails() -> int:
        raise OSError(number, os.strerror(number), "run/x")

    assert common.run_guarded(fails, "train") == 1
    said = capsys.readouterr().err
    assert said.startswith(f"train: {line}")
    assert said.count("\n") == 1


def test_both_paths_of_a_rename_are_named() -> None:
    assert explain(OSError(errno.EEXIST, "File exists", "a", None, "b")).startswith("a -> b: file exists. ")


def test_a_message_of_our_own_is_not_changed() -> None:
    own = "the disk is full while writing x: free some space and run the same command"
    assert explain(OSError(errno.ENOSPC, own)) == own
    assert explain(OSError("no number")) == "no number"


def test_missing_memory_is_one_line(capsys: Any) -> None:
    def fails() -> int:
        raise MemoryError

    assert common.run_guarded(fails, "train") == 1
    assert capsys.readouterr().err.startswith("train: out of memory: use fewer workers")


@pytest.mark.parametrize(
    "command",
    [
        ["data", "collect", "quickstart", "--out", "{}/run"],
        ["quickstart", "--out", "{}/run"],
        ["explain", "quickstart", "--svg", "{}/picture.svg"],
        ["report", "{}/run"],
    ],
)
def test_an_output_that_cannot_be_written_is_one_line(command: list[str], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").touch()
    assert main([word.format(tmp_path / "file") for word in command]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "file") in said
    assert "Traceback" not in said
