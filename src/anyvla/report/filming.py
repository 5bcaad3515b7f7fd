"""Render videos of chosen episodes after the evaluation, by executing the recorded actions again.

Rendering while the policy acts would slow every episode down. A deterministic simulator repeats the episode; a video
that ends differently is logged.
"""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from anyvla.evaluation.conditions import ORIGINAL, parse
from anyvla.evaluation.results import EpisodeResult
from anyvla.evaluation.suites import OpenedSuite
from anyvla.evaluation.tracks import Track, read_track
from anyvla.evaluation.workers import prepare_worker
from anyvla.files import durable
from anyvla.files.folder_lock import lock_folder
from anyvla.interrupted import Interrupted
from anyvla.report.overlay import chunk_limits, draw_overlay, find_chunk
from anyvla.report.video import write_video
from anyvla.worker_pool import WorkerPool
from anyvla_sim.spec import Spec
from anyvla_sim.workers.remote import connect

logger = logging.getLogger(__name__)

SIZE = 240  # pixels, square
FPS = 20  # about the maximum number of frames per second
HOLD_S = 0.7  # duration of the last frame
# fields of a result in the index of the videos
INDEXED = ("task", "instructed", "condition", "instruction", "success", "reached", "seed", "steps")


def choose_episodes(results: Sequence[EpisodeResult], failures: int) -> list[EpisodeResult]:
    """Choose a success per task, a swapped twin per scene, an episode per other condition, and `failures` failures."""
    swapped = {(r.task, r.seed): r for r in results if r.condition == "swapped" and r.obeyed}
    original = [r for r in results if r.condition == ORIGINAL]
    chosen: list[EpisodeResult] = []
    for task in dict.fromkeys(r.task for r in results):
        won = [r for r in original if r.task == task and r.success]
        paired = [r for r in won if (r.task, r.seed) in swapped]
        chosen += (paired or won)[:1]
        if paired:
            twin = swapped[paired[0].task, paired[0].seed]
            if not any(c.instructed == twin.instructed and c.condition == ORIGINAL for c in chosen):  # a pair per scene
                chosen.append(twin)
    for condition in dict.fromkeys(r.condition for r in results):
        if condition not in (ORIGINAL, "swapped", "unrelated"):
            chosen += [r for r in results if r.condition == condition and r.outcome in ("success", "failure")][:1]
    candidates = [r for r in results if r.condition != "unrelated" and r.outcome in ("failure", "success")]
    lost = [r for r in candidates if not r.obeyed and r not in chosen]
    return chosen + lost[:failures]


def film(
    results: Sequence[EpisodeResult],
    opened: OpenedSuite,
    folder: Path,
    *,
    failures: int = 6,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Render the missing videos of the chosen episodes into `folder/videos`, and return the path of its index.

    Raises Interrupted when `stop()` is true.
    """
    videos = folder / "videos"
    chosen = choose_episodes(results, failures)
    names = {f"{r.key}.mp4": r for r in chosen}
    with lock_folder(folder):
        missing = deque(r for name, r in names.items() if not (videos / name).is_file())
        progress(len(chosen) - len(missing), len(chosen))
        if missing:
            workers = min(os.cpu_count() or 1, len(missing))
            done = len(chosen) - len(missing)
            with WorkerPool(workers, prepare_worker, remedy="free some; run the same command to resume") as pool:
                for result, as_recorded in pool.run(partial(_film_one, opened.spec, folder), missing, workers, stop):
                    if not as_recorded:
                        logger.warning("%s.mp4 did not end as recorded when it was played again", result.key)
                    done += 1
                    progress(done, len(chosen))
            if missing:
                raise Interrupted("stopped while filming; run the same command to resume")
        index = videos / "index.json"
        index.parent.mkdir(parents=True, exist_ok=True)
        entries = [{"file": name} | {f: getattr(r, f) for f in INDEXED} for name, r in names.items()]
        durable.write(index, json.dumps(entries, indent=1))
        return index


def _film_one(spec: Spec, folder: Path, result: EpisodeResult) -> bool:
    """Execute the recorded actions again and write the video. Return whether the episode ended as recorded."""
    benchmark = connect(spec)
    suite = result.benchmark.partition("/")[2]
    fps = float(benchmark.embodiment(suite)["control_hz"])
    every = max(1, round(fps / FPS))
    ended: list[bool] = []
    frames = _frames(benchmark.make(suite), result, read_track(folder, result.key), every, ended)
    try:
        write_video(folder / "videos" / f"{result.key}.mp4", frames, fps / every)
    finally:
        benchmark.close()
    return ended[0]


def _frames(
    environment: Any, result: EpisodeResult, track: Track, every: int, ended: list[bool]
) -> Iterator[np.ndarray]:
    condition = parse(result.condition)
    tasks = result.extra.get("chain", [result.task])
    environment.reset(tasks[0], result.seed, dict(condition.factors))
    starts = dict(zip(track.subtask_starts.tolist(), tasks, strict=False))
    reached = None
    limits = chunk_limits(track.chunks)

    def draw_frame(number: int, success: bool | None = None) -> np.ndarray:
        task = tasks[int(np.searchsorted(track.subtask_starts, number, side="right")) - 1]
        session = int(np.searchsorted(track.instructed_at, number, side="right")) - 1
        chunk, executed = find_chunk(
            track.chunks, track.predicted_at, number, condition.delay, int(track.instructed_at[session])
        )
        return draw_overlay(
            environment.frame(SIZE, SIZE),
            track.instructions[session],
            task=task if result.condition == ORIGINAL else f"{task}, {result.condition}",
            step=number,
            success=success,
            chunk=chunk,
            executed=executed,
            limits=limits,
        )

    for number, action in enumerate(track.actions):
        if number in starts and number:
            environment.begin(starts[number])
        if number == result.extra.get("disturbed_at") and condition.disturbance is not None:
            environment.disturb(condition.disturbance[0], result.seed)
        if number % every == 0:
            yield draw_frame(number)
        goals = environment.step(action)
        reached = next((task for task, holds in goals.items() if holds), None)
    ended.append(reached == result.reached)
    last = draw_frame(len(track.actions), result.obeyed)
    for _ in range(1 + int(HOLD_S * FPS)):
        yield last
