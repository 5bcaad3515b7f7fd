"""Start anyvla commands as processes with a group to signal and workers to count."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

_COMMAND = """
import sys
from tests.evaluation import toy_opened  # registers the benchmark "toy"
from anyvla.cli.main import main
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def write_command(folder: Path) -> Path:
    """Write a script that is `anyvla` with the toy benchmark, wherever it runs."""
    script, paths = folder / "command.py", [str(Path(__file__).parents[1]), *(p for p in sys.path if p)]
    script.write_text(f"import sys\nsys.path[:0] = {paths!r}\n{_COMMAND}")
    return script


def start(folder: Path, *arguments: Any, **options: Any) -> subprocess.Popen[str]:
    """Start `anyvla` with these arguments as the first process of a group."""
    script = write_command(folder)
    paths = [str(Path(__file__).parents[1]), *(p for p in sys.path if p)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        text=True,
        env=environment,
        start_new_session=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def until(condition: Callable[[], object], process: subprocess.Popen[str] | None = None, seconds: float = 120) -> None:
    """Wait for a condition. Fails if the process ends first or the time is over."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.02)


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return all child processes, recursively."""
    return psutil.Process(process.pid).children(recursive=True)


def gone(processes: list[psutil.Process]) -> bool:
    """Return whether all of them have ended."""
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)
