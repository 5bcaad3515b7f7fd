"""Measure the overhead of a study in CPU time: expanding, scheduling, storing and analyzing 600 cells.

    python benchmarks/study_overhead.py [--seeds 10] [--episodes 20] [--stop] [--out FOLDER]

All is real but the executor: its jobs end at once, with invented results of 6 tasks. The time that it takes to write
them is not counted. A cell has a training and an evaluation of its own; all cells share the demonstrations.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from anyvla.checkpoint.of_run import FINAL
from anyvla.cli.study.run import finish
from anyvla.evaluation.results import EpisodeResult, append_result
from anyvla.study.analysis.analyze import analyze
from anyvla.study.executors.base import Ended, Executor, Needs, Task
from anyvla.study.file import read_study
from anyvla.study.folder import Done, StudyFolder
from anyvla.study.overview import look
from anyvla.study.page.write import write_page
from anyvla.study.record import RESULTS
from anyvla.study.sources import read_sources

TASKS = ("door-close", "door-open", "drawer-close", "drawer-open", "window-close", "window-open")
STUDY: dict[str, Any] = {
    "name": "overhead",
    "question": "Which loss and which chunk are best?",
    "base": "quickstart",
    "set": {"evaluation": {"conditions": ["original"]}},
    "axes": {
        "loss": {name: {"model": {"decoder": {"loss": name}}} for name in ("l1", "l2", "huber")},
        "model.chunk": [4, 8, 12, 16],
        "training.optim.lr": [0.0001, 0.0003, 0.001, 0.003, 0.01],
    },
    "comparisons": [
        {"name": "loss", "axis": "loss"},
        {"name": "chunk", "kind": "curve", "axis": "model.chunk", "by": "loss"},
        {"name": "both", "kind": "interaction", "axis": "loss", "by": "model.chunk"},
        {"name": "cost", "kind": "cost", "axis": "loss"},
    ],
}


class Inventing(Executor):
    """Ends every job at once, with invented results."""

    def __init__(self, folder: StudyFolder, episodes: int) -> None:
        self.seconds, self.jobs = 0.0, 0
        self._folder, self._episodes, self._ended = folder, episodes, list[Ended]()
        self._rng = np.random.default_rng(0)

    def has_room(self, needs: Needs) -> bool:
        return len(self._ended) < 2

    def submit(self, task: Task) -> None:
        begin = time.process_time()
        kind, recipe, _ = self._folder.recipe_of(task.name)
        folder, asked = self._folder.of(task.name), 0
        if kind == "train":
            (folder / FINAL).mkdir(parents=True)
            save_file({"weight": torch.zeros(8)}, folder / FINAL / "model.safetensors")
        elif kind == "evaluate":
            asked = recipe.evaluation.episodes or self._episodes
            self._play(folder / RESULTS, self._folder.episodes_of(task.name), asked)
        self._folder.set_done(task.name, Done(1.0, 1.0, 0.1, asked, recipe.evaluation.unrelated_episodes or 0))
        self._ended.append(Ended(task.name, 0))
        self.jobs += 1
        self.seconds += time.process_time() - begin

    def _play(self, path: Path, begin: int, end: int) -> None:
        for task in TASKS:
            for seed in range(begin, end):
                won = bool(self._rng.random() < 0.7)
                result = EpisodeResult(
                    benchmark="metaworld/half-open",
                    condition="original",
                    task=task,
                    instructed=task,
                    instruction=task,
                    seed=seed,
                    outcome="success" if won else "failure",
                    reached=task if won else None,
                    steps=50,
                    latency_ms=5.0,
                    checkpoint="c" * 64,
                    protocol={"horizon": 100},
                )
                append_result(path, result)

    def wait(self, seconds: float) -> list[Ended]:
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        self._ended = []


@contextmanager
def timed(name: str, times: dict[str, float]) -> Iterator[None]:
    begin = time.process_time()
    yield
    times[name] = time.process_time() - begin


def main() -> None:
    """Print the CPU time of each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/study_overhead"), help="is emptied")
    parser.add_argument("--seeds", type=int, default=10, help="60 cells each (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=20, help="of each task (default: %(default)s)")
    parser.add_argument("--stop", action="store_true", help="end evaluations early")
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    path, folder = options.out / "overhead.yaml", StudyFolder(options.out / "study")
    keys = STUDY | {"seeds": list(range(options.seeds))} | ({"stop": {"block": 5}} if options.stop else {})
    keys["set"] = {"evaluation": STUDY["set"]["evaluation"] | {"episodes": options.episodes}}
    path.write_text(yaml.safe_dump(keys), encoding="utf-8")
    study, times = read_study(path), dict[str, float]()
    executor = Inventing(folder, options.episodes)
    with timed("expand, name jobs and look", times):
        overview = look(study, path, folder)
    with timed("schedule and store", times):
        folder.claim(study, path)
        finish(study, overview, folder, executor)
    times["schedule and store"] -= executor.seconds
    with timed("look again", times):
        again = look(study, path, folder)
    assert again.states == {"done": len(overview.cells)}, again.states
    with timed("read the store", times):
        sources = read_sources(folder.root)
    with timed("analyze", times):
        analysis = analyze(sources.study, sources.lines)
    with timed("write the page", times):
        write_page(sources, analysis, options.out / "page.html")
    cells, total = len(overview.cells), sum(times.values())
    for name, seconds in times.items():
        print(f"{name:28} {seconds:7.1f} s {1000 * seconds / cells:7.1f} ms a cell")
    print(f"{'all':28} {total:7.1f} s {1000 * total / cells:7.1f} ms a cell; {cells} cells, {executor.jobs} jobs")


if __name__ == "__main__":
    main()
