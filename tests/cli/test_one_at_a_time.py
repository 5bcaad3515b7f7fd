"""A command whose folder is in use stops before any work, and names the other command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from anyvla.cli.main import main
from tests.running import start, until

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX locks")
TOKENS = ["--model.representation", "bins", "--model.decoder", "tokens"]
HOLD = """
import sys, time
from pathlib import Path
from anyvla.files import folder_lock
with getattr(folder_lock, sys.argv[1])(Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def held() -> Iterator[Callable[[str, Path], int]]:
    """Return a function that lets another process hold a folder, and returns the process id."""
    started = []

    def hold(how: str, folder: Path) -> int:
        command = [sys.executable, "-c", HOLD, how, str(folder)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == "held\n"
        return started[-1].pid

    yield hold
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("how", "folder", "command"),
    [
        ("lock_folder", "run", ["train", "{recipe}", "--out", "{run}"]),
        ("lock_folder", "run", ["quickstart", "--recipe", "{recipe}", "--out", "{run}"]),
        ("lock_folder", "run", ["data", "fit-codec", "{recipe}", "--out", "{run}", *TOKENS]),
        ("lock_while_making", "run/dataset", ["data", "collect", "{recipe}", "--out", "{run}"]),
        ("lock_folder", "eval", ["eval", "{toy}", "--out", "{folder}"]),
        ("lock_while_making", "out", ["data", "convert", "{toy}/dataset", "{folder}"]),
        ("lock_folder", "vqa", ["data", "vqa", "--out", "{folder}"]),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) else None,
)
def test_the_second_command_stops(
    toy_run: Path,
    tmp_path: Path,
    held: Callable[[str, Path], int],
    capsys: pytest.CaptureFixture[str],
    how: str,
    folder: str,
    command: list[str],
) -> None:
    from tests.evaluation import toy_opened  # noqa: F401 (registers the benchmark)

    holder = held(how, tmp_path / folder)
    places = {
        "recipe": toy_run.parent / "toy.yaml",
        "run": tmp_path / "run",
        "toy": toy_run,
        "folder": tmp_path / folder,
    }
    assert main([part.format_map(places) for part in command]) == 1
    err = capsys.readouterr().err
    assert f"{tmp_path / folder} is in use by" in err.replace("\n", "")
    assert f"process {holder} on" in err
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} <= {".lock", ".dataset.lock", ".out.lock"}


@pytest.mark.slow
def test_a_killed_training_can_be_resumed_at_once_and_a_running_one_not_joined(toy_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    data = ["--data.sources", f"[{{path: {toy_run / 'dataset'}}}]", "--training.steps", "100000", "--data.workers", "1"]
    command = ["train", toy_run.parent / "toy.yaml", "--out", out, *data]
    first = start(tmp_path, *command)
    until(lambda: (out / "train" / "log.jsonl").is_file(), first)
    second = start(tmp_path, *command)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"{out} is in use by `command.py train" in err
    first.kill()
    first.communicate()
    (out / "train" / "log.jsonl").unlink()
    third = start(tmp_path, *command)
    until(lambda: (out / "train" / "log.jsonl").is_file(), third)
    os.killpg(third.pid, signal.SIGTERM)
    assert third.wait(60) == 130
    third.communicate()
