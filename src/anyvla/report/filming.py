"""Videos of chosen episodes, filmed after the evaluation by executing the recorded actions once more.

Filming while the policy plays would slow every episode down; a simulator that is deterministic shows the same again,
and whether it did is checked.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from anyvla.evaluation.environments.base import Benchmark, EpisodeResult, Suite
from anyvla.evaluation.environments.pool import prepare_worker, starting_workers
from anyvla.evaluation.runner import Interrupted, actions_file
from anyvla.report.video import FAILURE, SUCCESS, caption, write_video

logger = logging.getLogger(__name__)

SIZE = 240  # pixels, square
EVERY = 2  # of the frames, one is filmed: a video of 40 actions per second has 20 frames per second
HOLD_S = 0.7  # the last frame stays so long


def choose(results: Sequence[EpisodeResult], suite: Suite, failures: int) -> list[EpisodeResult]:
    """One success per task, one swapped twin per scene, and up to `failures` that missed the told goal."""
    swapped = {(r.task, r.seed): r for r in results if r.protocol == "swapped" and r.reached == r.told}
    told = [r for r in results if r.protocol == "told"]
    chosen: list[EpisodeResult] = []
    for task in suite.tasks:
        won = [r for r in told if r.task == task.name and r.success]
        paired = [r for r in won if (r.task, r.seed) in swapped]
        chosen += (paired or won)[:1]
        opposite = suite.opposite(task)
        if paired and opposite is not None and not any(c.told == opposite.name for c in chosen):  # one pair per scene
            chosen.append(swapped[paired[0].task, paired[0].seed])
    lost = [r for r in results if r.protocol != "unrelated" and r.reached != r.told]
    return chosen + lost[:failures]


def film(
    results: Sequence[EpisodeResult],
    benchmark: Benchmark,
    suite: Suite,
    folder: Path,
    *,
    failures: int = 6,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Film the chosen episodes into `folder/videos`, those that are not there yet; returns its index.

    Raises Interrupted after `stop()` said so.
    """
    videos = folder / "videos"
    chosen = choose(results, suite, failures)
    names = {f"{r.key}.mp4": r for r in chosen}
    missing = [r for name, r in names.items() if not (videos / name).is_file()]
    progress(len(chosen) - len(missing), len(chosen))
    if missing:
        context = multiprocessing.get_context("spawn")
        workers = min(os.cpu_count() or 1, len(missing))
        with ProcessPoolExecutor(workers, context, initializer=prepare_worker) as pool:
            with starting_workers():
                futures = [pool.submit(_film_one, benchmark, r, folder, videos / f"{r.key}.mp4") for r in missing]
            try:
                for number, future in enumerate(futures, 1):
                    if not future.result():
                        logger.warning(
                            "%s did not end as recorded when it was played again", f"{missing[number - 1].key}.mp4"
                        )
                    progress(len(chosen) - len(missing) + number, len(chosen))
                    if stop():
                        raise Interrupted("stopped while filming; the same command goes on there")
            finally:
                pool.shutdown(cancel_futures=True)
    index = videos / "index.json"
    index.parent.mkdir(parents=True, exist_ok=True)
    temporary = index.with_suffix(".tmp")
    temporary.write_text(json.dumps([_entry(r, name) for name, r in names.items()], indent=1))
    temporary.replace(index)
    return index


def _entry(result: EpisodeResult, name: str) -> dict[str, Any]:
    fields = ("task", "told", "protocol", "instruction", "success", "reached", "seed", "steps")
    return {"file": name} | {f: getattr(result, f) for f in fields}


def _film_one(benchmark: Benchmark, result: EpisodeResult, folder: Path, path: Path) -> bool:
    """Play the recorded actions again and write the video; True if it ended as recorded."""
    fps = benchmark.embodiment.control_hz / EVERY
    ended: list[bool] = []
    write_video(path, _frames(benchmark, result, folder, int(HOLD_S * fps), ended), fps)
    benchmark.close()
    return ended[0]


def _frames(
    benchmark: Benchmark, result: EpisodeResult, folder: Path, hold: int, ended: list[bool]
) -> Iterator[np.ndarray]:
    actions = np.load(actions_file(folder, result.key), allow_pickle=False)
    environment = benchmark.make()
    environment.reset(result.task, result.seed)
    reached = None
    for number, action in enumerate(actions[: result.steps]):
        if number % EVERY == 0:
            yield caption(environment.frame(SIZE, SIZE), result.instruction)
        goals = environment.step(action)
        reached = next((task for task, holds in goals.items() if holds), None)
    ended.append(reached == result.reached)
    obeyed = result.reached == result.told
    last = caption(
        environment.frame(SIZE, SIZE), result.instruction, SUCCESS if obeyed else FAILURE, "tick" if obeyed else "cross"
    )
    for _ in range(1 + hold):
        yield last
