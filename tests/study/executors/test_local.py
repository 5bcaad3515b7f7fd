from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from anyvla.study.executors.base import Ended, Needs, Task
from anyvla.study.executors.local import LocalExecutor
from tests.running import gone, until

NEEDS = Needs(minutes=10, limit_gb=8, memory_gb=0.01)


@pytest.fixture
def executor() -> Iterator[LocalExecutor]:
    made = LocalExecutor(2)
    yield made
    made.close()


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def submit(executor: LocalExecutor, name: str, command: list[str], needs: Needs, log: Path) -> None:
    executor.submit(Task(name, command, needs, log))


def wait(executor: LocalExecutor) -> list[Ended]:
    found: list[Ended] = []
    until(lambda: found.extend(executor.wait(0.2)) or bool(found))
    return found


def test_a_job_runs_with_its_threads_and_its_log(executor: LocalExecutor, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    needs = Needs(minutes=10, limit_gb=8, memory_gb=0.01, threads=3)
    submit(executor, "a", python("import os; print(os.environ['OMP_NUM_THREADS']); raise SystemExit(4)"), needs, log)
    assert wait(executor) == [Ended("a", 4)]
    assert log.read_text() == "3\n"


def test_no_more_jobs_than_processes_and_memory(executor: LocalExecutor, tmp_path: Path) -> None:
    huge = Needs(minutes=10, limit_gb=8, memory_gb=1e6)
    assert executor.has_room(huge)  # nothing runs, so that waiting would not help
    submit(executor, "a", python("input()"), NEEDS, tmp_path / "a")
    assert executor.has_room(NEEDS)
    assert not executor.has_room(huge)
    submit(executor, "b", python("input()"), NEEDS, tmp_path / "b")
    assert not executor.has_room(NEEDS)


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        (Needs(minutes=0.02, limit_gb=8, memory_gb=0.01), "longer than the 0.02 minutes"),
        (Needs(minutes=10, limit_gb=0.001, memory_gb=0.01), "the study's budget is 0.0 GB"),
    ],
)
def test_a_job_beyond_its_budget_is_ended(executor: LocalExecutor, tmp_path: Path, needs: Needs, said: str) -> None:
    submit(executor, "a", python("import time; time.sleep(600)"), needs, tmp_path / "a")
    [ended] = wait(executor)
    assert ended.over_budget
    assert said in ended.reason


def test_a_killed_job_says_so(executor: LocalExecutor, tmp_path: Path) -> None:
    submit(executor, "a", python("import os; os.kill(os.getpid(), 9)"), NEEDS, tmp_path / "a")
    [ended] = wait(executor)
    assert "killed" in ended.reason
    assert not ended.over_budget


def test_a_job_that_fails_ends_with_a_status_and_not_by_a_signal(executor: LocalExecutor, tmp_path: Path) -> None:
    """Though a thread of it waits for the end of standard input."""
    command = [sys.executable, "-m", "anyvla", "study", "job", str(tmp_path), "train-0"]
    submit(executor, "a", command, NEEDS, tmp_path / "log.txt")
    [ended] = wait(executor)
    assert ended.status is not None
    assert ended.status > 0
    assert "Fatal Python error" not in (tmp_path / "log.txt").read_text()


def test_closing_ends_jobs_and_their_children(tmp_path: Path) -> None:
    executor = LocalExecutor(1)
    code = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1); print('up', flush=True)"
    )
    command = python(code + "; input()")
    submit(executor, "a", command, NEEDS, tmp_path / "a")
    until(lambda: "up" in (tmp_path / "a").read_text())
    [job] = [child for child in psutil.Process().children() if child.cmdline()[1:3] == ["-c", command[2]]]
    family = [job, *job.children(recursive=True)]
    executor.close()
    until(lambda: gone(family), seconds=15)


def test_jobs_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    """The job reads standard input, which ends when its parent is killed."""
    parent = (
        "import sys, time; from pathlib import Path\n"
        "from anyvla.study.executors.base import Needs\n"
        "from anyvla.study.executors.local import LocalExecutor\n"
        "from anyvla.study.executors.base import Task\n"
        f"code = 'import os; print(os.getpid(), flush=True); input()'\n"
        f"log = Path({str(tmp_path / 'a')!r})\n"
        "LocalExecutor(1).submit(Task('a', [sys.executable, '-c', code], Needs(10, 8, 0.1), log))\n"
        "time.sleep(600)"
    )
    process = psutil.Popen(python(parent))
    until(lambda: (tmp_path / "a").is_file() and (tmp_path / "a").read_text().strip().isdigit())
    job = psutil.Process(int((tmp_path / "a").read_text()))
    process.kill()
    process.wait()
    until(lambda: gone([job]), seconds=15)
