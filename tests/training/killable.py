"""Run anyvla in child processes that are killed at a chosen file operation, without importing it anew for each.

`python -m tests.training.killable` reads a JSON line for each command from standard input, forks a child that runs it,
and answers with a JSON line when the child has ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int  # of the exit; -9 if it was killed
    operations: int  # that changed files below the folder
    output: str


class Runner:
    """Starts commands in forked children."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def __call__(self, *arguments: Any, folder: Path, die_at: int | None = None, after_s: float | None = None) -> Ended:
        """Run `anyvla` with these arguments.

        `die_at`: kill it just before its operation of this number, from 1, that changes files below `folder`;
        `after_s`: kill it after this time.
        """
        asked = {"argv": [*map(str, arguments)], "folder": str(folder), "die_at": die_at, "after_s": after_s}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))


@contextmanager
def runner() -> Iterator[Runner]:
    """Start the process that imports anyvla and forks."""
    root = Path(__file__).parents[2]
    paths = [str(root), *(p for p in sys.path if p)]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.training.killable"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    try:
        yield Runner(process)
    finally:
        process.communicate()


def watch_operations(folder: str, die_at: int | None, counter: int) -> None:
    """Write the number of this process's operations that change files below a folder into an open file, as they come.

    `die_at`: the process is killed just before its operation of this number, from 1.
    """
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        path = arguments[0] if event == "open" or event in _CHANGES else None
        if not isinstance(path, str | bytes | os.PathLike) or folder not in os.fsdecode(path):
            return
        if event == "open" and {"w", "a", "x"}.isdisjoint(arguments[1] or ""):
            return
        seen += 1
        os.pwrite(counter, b"%8d" % seen, 0)
        if seen == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def _run(asked: dict[str, Any], report: Path) -> None:
    """Run a command in this process, which is a child, and end it."""
    from anyvla.cli.main import main

    output = os.open(report.with_suffix(".txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    counter = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    watch_operations(asked["folder"], asked["die_at"], counter)
    try:
        status = main(asked["argv"])
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _serve() -> None:
    import tempfile
    import threading

    import anyvla.training.loop  # noqa: F401
    from tests.small import policy

    policy(decoder="flow")  # imports all that a child needs

    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        for line in sys.stdin:
            asked = json.loads(line)
            child = os.fork()
            if child == 0:
                _run(asked, report)
            timer = threading.Timer(asked["after_s"] or 0, os.kill, (child, signal.SIGKILL))
            if asked["after_s"] is not None:
                timer.start()
            _, status = os.waitpid(child, 0)
            timer.cancel()
            count = report.read_text().strip() or 0
            ended = Ended(os.waitstatus_to_exitcode(status), int(count), report.with_suffix(".txt").read_text())
            print(json.dumps(vars(ended)), flush=True)


if __name__ == "__main__":
    _serve()
