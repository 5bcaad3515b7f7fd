"""A small study of the toy benchmark, and an executor that runs jobs in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from anyvla.study.executors.base import Ended, Executor, Needs, Task
from anyvla.study.schedule import ANYVLA
from tests.small import SMALLEST

RECIPE: dict[str, Any] = {
    "name": "toy",
    "benchmark": "toy/line",
    "collect": {"demonstrations": 2, "processes": 1},
    "model": SMALLEST,
    "training": {"steps": 2, "batch_size": 4},
    "evaluation": {"episodes": 1, "processes": 1, "failure_videos": 0, "conditions": ["original"]},
}
STUDY: dict[str, Any] = {
    "name": "small",
    "question": "Does the chunk matter?",
    "base": "toy.yaml",
    "axes": {"model.chunk": [2, 4], "rate": {"low": {"training": {"optim": {"lr": 3e-4}}}, "high": {}}},
    "seeds": [0, 1],
    "comparisons": [{"name": "chunk", "axis": "model.chunk"}],
}


def write_study(folder: Path, recipe: dict[str, Any] | None = None, **keys: Any) -> Path:
    """Write the study with other keys, and its base, and return its path. A key that is None is left out."""
    (folder / "toy.yaml").write_text(yaml.safe_dump(RECIPE | (recipe or {}), sort_keys=False))
    path = folder / "small.yaml"
    document = {key: value for key, value in (STUDY | keys).items() if value is not None}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


class InProcess(Executor):
    """Runs each job at once, in this process. `fail` names kinds of jobs whose process is lost or stopped by others."""

    def __init__(self, fail: Sequence[str] = (), status: int | None = None) -> None:
        self.fail, self.status, self.ran, self._ended = fail, status, list[str](), list[Ended]()

    def has_room(self, needs: Needs) -> bool:
        return not self._ended

    def submit(self, task: Task) -> None:
        from anyvla.cli.main import main

        self.ran.append(task.name)
        lost = task.name.partition("-")[0] in self.fail
        status = self.status if lost else main(list(task.command[len(ANYVLA) :]))
        self._ended.append(Ended(task.name, status, "its machine is gone" if lost else ""))

    def wait(self, seconds: float) -> list[Ended]:
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        self._ended = []
