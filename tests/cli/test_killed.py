"""A killed command leaves no process behind, even if its workers are busy."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.running import children, gone, start, until

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
DATA = ["--data.sources", "[{path: '{toy}/dataset'}]", "--data.workers", "2", "--training.steps", "100000"]


@pytest.mark.parametrize(
    ("command", "sign"),  # a file that appears when the workers have started
    [
        pytest.param(["data", "convert", "{toy}/dataset", "{out}"], "out.partial/episode-*", id="convert"),
        pytest.param(
            ["data", "collect", "{recipe}", "--out", "{out}", "--collect.demonstrations", "500"],
            "out/dataset.partial/episode-*",
            id="collect",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["train", "{recipe}", "--out", "{out}", *DATA], "out/train/log.jsonl", id="train", marks=pytest.mark.slow
        ),
        pytest.param(
            ["eval", "{toy}", "--out", "{out}", "--episodes", "20000"],
            "out/results.jsonl",
            id="eval",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_its_workers_end_too(toy_run: Path, tmp_path: Path, command: list[str], sign: str) -> None:
    places = {"recipe": toy_run.parent / "toy.yaml", "toy": toy_run, "out": tmp_path / "out"}
    arguments = [part if part.startswith("[") else part.format_map(places) for part in command]
    process = start(tmp_path, *(part.replace("{toy}", str(toy_run)) for part in arguments))
    until(lambda: list(tmp_path.glob(sign)), process)
    workers = children(process)
    assert workers
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    until(lambda: gone(workers), seconds=15)
