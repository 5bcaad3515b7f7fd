"""A run folder as `anyvla quickstart` leaves it, with made-up results and small drawn videos."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from anyvla.evaluation.results import EpisodeResult
from anyvla.report.video import FAILURE, SUCCESS, add_caption, write_video

WORDS = {
    "drawer-open": "open the drawer",
    "drawer-close": "close the drawer",
    "window-open": "open the window",
    "window-close": "close the window",
    "door-open": "open the door",
    "button-press": "press the <big> button & hold it down until the light in the corner of the table goes on",
}
OPPOSITE = {"drawer-open": "drawer-close", "window-open": "window-close"}
OPPOSITE |= {b: a for a, b in OPPOSITE.items()}
VERSIONS = {"metaworld": "3.1.0", "mujoco": "3.3.0", "gl": "egl", "render": "fast"}


def results(failing: bool = True) -> list[EpisodeResult]:
    """Return 20 original, 20 swapped and 10 unrelated episodes per task. `failing`: an original one fails."""

    def one(condition: str, task: str, instructed: str, seed: int, reached: str | None) -> EpisodeResult:
        return EpisodeResult(
            benchmark="metaworld/half-open", condition=condition, task=task, instructed=instructed,
            instruction=WORDS[instructed], seed=seed,
            outcome="success" if reached == task else "failure", reached=reached, steps=30 + seed,
            latency_ms=9.5,
            checkpoint="0123456789abcdef", protocol={"simulator": VERSIONS},
        )  # fmt: skip

    lines = []
    for task in WORDS:
        for seed in range(20):
            missed = failing and (task, seed) == ("door-open", 3)
            lines.append(one("original", task, task, seed, None if missed else task))
            if task in OPPOSITE:
                lines.append(one("swapped", task, OPPOSITE[task], seed, OPPOSITE[task]))
            if seed < 10:
                other = "door-open" if task != "door-open" else "drawer-open"
                lines.append(one("unrelated", task, other, seed, task if seed < 2 else None))
    return lines


def frames(number: int, success: bool, text: str, length: int = 16, size: int = 240) -> list[np.ndarray]:
    rows, columns = np.mgrid[0:size, 0:size]
    background = np.stack([90 + rows // 4, 110 + columns // 6, np.full_like(rows, 130)], -1).astype(np.uint8)
    pictures = []
    for t in range(length):
        picture = background.copy()
        x = (15 * number + (size - 70) * t // length) % (size - 60)
        picture[90:150, x : x + 50] = (230, 190, 90)
        pictures.append(add_caption(picture, text, SUCCESS if success else FAILURE, "tick" if success else "cross"))
    return pictures


def make_run(root: Path, failing: bool = True, filmed: bool = True) -> Path:
    """Write all parts of a run. `filmed`: with videos of a success per task, each swapped pair and the failure."""
    (root / "checkpoint").mkdir(parents=True)
    (root / "checkpoint" / "config.yaml").write_text(
        "name: quickstart\nbenchmark: metaworld/half-open\nmodel:\n  backbone: nano  # <small>\n  chunk: 8\n"
    )
    (root / "train").mkdir()
    random = np.random.default_rng(0)
    with (root / "train" / "log.jsonl").open("w") as file:
        for step in range(10, 801, 10):
            loss = 0.05 + 0.5 * math.exp(-step / 120) * random.uniform(0.9, 1.1)
            line = {
                "step": step, "loss": loss, "parts": {"l1": loss}, "lr": 1e-3 * min(1, step / 100) * (1 - step / 801),
                "grad_norm": 3 * loss * random.uniform(0.7, 1.4), "samples_per_s": 140.0, "wait_share": 0.021,
                "elapsed_s": step * 0.23,
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")
    lines = results(failing)
    write_results(root / "eval" / "results.jsonl", lines)
    (root / "eval" / "videos").mkdir()
    if filmed:
        film(root / "eval" / "videos", lines)
    stages = [("collect", 1.1, 1.9, False), ("collect", 1.3, 2.1, True), ("train", 3.4, 2.9, True)]
    stages += [("evaluate", 2.05, 2.4, True), ("collect", 0.004, 0.3, True)]
    (root / "stages.jsonl").write_text(
        "".join(
            json.dumps({"stage": s, "minutes": m, "peak_memory_gb": g, "finished": f}) + "\n" for s, m, g, f in stages
        )
    )
    info = {
        "total_episodes": 240, "total_frames": 9705, "fps": 40,
        "anyvla": {"notes": {"failures": {"door-open": [3, 17], "drawer-open": []}}},
    }  # fmt: skip
    (root / "dataset" / "meta").mkdir(parents=True)
    (root / "dataset" / "meta" / "info.json").write_text(json.dumps(info))
    return root


def write_results(path: Path, lines: Iterable[EpisodeResult]) -> None:
    """Write all lines at once, without waiting for the disk after each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(line), ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def film(folder: Path, lines: list[EpisodeResult]) -> None:
    def shown(r: EpisodeResult) -> bool:
        first = r.seed == 0 and (r.condition in ("original", "swapped") or r.task == "door-open")
        return first or (r.condition == "original" and not r.success)

    index = []
    for number, r in enumerate(filter(shown, lines)):
        name = f"{r.condition}-{r.task}-{r.seed}.mp4"
        write_video(folder / name, frames(number, r.reached == r.instructed, r.instruction), fps=10)
        index.append(
            {"file": name, "task": r.task, "instructed": r.instructed, "condition": r.condition,
             "instruction": r.instruction,
             "success": r.success, "reached": r.reached, "seed": r.seed, "steps": r.steps}
        )  # fmt: skip
    (folder / "index.json").write_text(json.dumps(index))
