"""A large study with invented results: 600 cells on two benchmarks, some of which failed, are invalid or missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from anyvla.study.file import StudyFile, read_study
from anyvla.study.store import CellLine, Played, append_cell

BACKBONES = {"nano": 0.35, "clip": 0.5, "siglip": 0.55, "smolvlm": 0.7, "qwen": 0.6}
SIZES = {"nano": 2e6, "clip": 9e6, "siglip": 1.4e7, "smolvlm": 2.6e8, "qwen": 9e8}
HISTORIES = {"none": 0.0, "policy_head": 0.15, "interleaved": 0.03, "gru": 0.17}
WINDOWS = [1, 2, 4, 8, 16]
DOCUMENT = {
    "name": "how",
    "question": "Does history help, and on which backbones?",
    "base": "quickstart",
    "axes": {
        "backbone": {name: {"model": {"backbone": name}} for name in BACKBONES},
        "history": {name: {"model": {"history": name}} for name in HISTORIES},
        "model.window": WINDOWS,
        "frozen": {"frozen": {"training": {"frozen": ["vision"]}}, "tuned": {}},
    },
    "seeds": [0, 1, 2],
    "comparisons": [
        {"name": "Does history help?", "axis": "history", "claim": "VLANeXt (arXiv 2602.18532): 91.8 falls to 85.0"},
        {"name": "Tuning each backbone", "axis": "frozen", "by": "backbone"},
        {"name": "Longer windows", "kind": "curve", "axis": "model.window", "by": "history"},
        {"name": "History by window", "kind": "interaction", "axis": "history", "base": "none", "against": ["gru"],
         "by": "model.window"},
        {"name": "Swapped instructions", "kind": "gap", "axis": "backbone", "other_condition": "swapped"},
        {"name": "Cost", "kind": "cost", "axis": "backbone", "by": "frozen"},
        {"name": "Chains", "axis": "history", "benchmark": "metaworld/chains", "measure": "length"},
        {"name": "Not played", "axis": "history", "benchmark": "calvin/abc-d"},
    ],
}  # fmt: skip
ERROR = "train: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"


def write_invented(folder: Path, **keys: object) -> tuple[Path, Path]:
    """Write the study's file and its store, beside each other, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    file, store = folder / "how.yaml", folder / "how.jsonl"
    file.write_text(yaml.safe_dump(DOCUMENT | keys, sort_keys=False))
    study = read_study(file)
    rng = np.random.default_rng(0)
    hard = rng.random((12, 20))
    lines = [
        _make_line(study, rng, hard, backbone, history, str(window), frozen, seed)
        for backbone in study.labels("backbone")
        for history in study.labels("history")
        for window in study.labels("model.window")
        for frozen in study.labels("frozen")
        for seed in study.seeds
    ]
    store.write_text("")
    for line in filter(None, lines):
        append_cell(store, line)
    return file, store


def _make_line(
    study: StudyFile,
    rng: np.random.Generator,
    hard: np.ndarray,
    backbone: str,
    history: str,
    window: str,
    frozen: str,
    seed: int,
) -> CellLine | None:
    labels = {"backbone": backbone, "history": history, "model.window": window, "frozen": frozen}
    keys = {
        "study": study.name,
        "cell": ",".join(f"{axis.rpartition('.')[2]}={label}" for axis, label in labels.items()) + f",seed={seed}",
        "labels": labels,
        "seed": seed,
        "recipe": {
            "model": {"backbone": backbone, "history": history, "window": int(window)},
            "training": {"seed": seed, **({"frozen": ["vision"]} if frozen == "frozen" else {})},
        },
        "time": f"2026-12-{1 + seed:02d}T12:00:00+00:00",
    }
    if backbone == "qwen" and window == "16" and frozen == "tuned":
        return CellLine(**keys, state="failed", error=ERROR)
    if history == "none" and window == "16":
        return CellLine(**keys, state="invalid", error="model.window: 16 needs a history, and model.history is none")
    if backbone == "siglip" and window == "8" and seed == 2:
        return None
    rate = BACKBONES[backbone] + HISTORIES[history] * np.log2(int(window)) / 3 + 0.05 * rng.normal()
    rate += 0.08 if frozen == "tuned" and backbone != "nano" else 0.0
    return CellLine(
        **keys,
        state="done",
        episodes=(
            *_play(rng, hard[:10], "metaworld/mt10", "original", rate),
            *_play(rng, hard[:10], "metaworld/mt10", "swapped", rate - 0.25),
            *_play(rng, hard[:10], "metaworld/mt10", "color=red", rate - 0.1),
            *_play(rng, hard[10:], "metaworld/chains", "original", rate, length=5),
        ),
        protocols={
            "metaworld/mt10": {"harness": 1, "horizon": 150, "episodes": 20, "tasks": 10, "chance": 0.1},
            "metaworld/chains": {"harness": 1, "horizon": 150, "episodes": 20, "tasks": 2},
        },
        costs={
            "minutes.collect": 3.2,
            "minutes.train": round(2 + SIZES[backbone] / 4e7 * (1 if frozen == "frozen" else 2.5), 2),
            "minutes.evaluate": round(1.1 + 0.1 * int(window), 2),
            "memory_gb": round(0.6 + SIZES[backbone] / 2e8, 2),
            "parameters": SIZES[backbone],
            "latency_ms": round(8 + SIZES[backbone] ** 0.5 / 400 + int(window), 2),
        },
        keys={"collect.0": "collect-1", "train.1": f"train-{backbone}{history}{window}{frozen}{seed}",
              "evaluate.2": f"evaluate-{backbone}{history}{window}{frozen}{seed}"},
        versions={"anyvla": "0.1.0", "torch": "2.13.0" if seed else "2.12.1", "machine": "a laptop, 8 CPU cores"},
    )  # fmt: skip


def _play(
    rng: np.random.Generator, hard: np.ndarray, benchmark: str, condition: str, rate: float, length: int = 1
) -> list[Played]:
    tasks = ["door-open", "drawer-close", "drawer-open", "button-press", "window-open", "window-close", "reach", "push",
             "pick-place", "peg-insert"]  # fmt: skip
    played = []
    for task, states in zip(tasks, hard, strict=False):
        chance = np.clip(rate + 0.5 * (0.5 - states), 0.02, 0.98)
        solved = rng.random((length, len(states))) < chance ** (1 if length == 1 else 0.7)
        in_a_row = np.cumprod(solved, 0).sum(0)
        won = in_a_row == length
        played.append(
            Played(
                benchmark=benchmark,
                condition=condition,
                task=task,
                first_seed=1000,
                outcomes="".join("01"[int(w)] for w in won),
                completed="".join(map(str, in_a_row)) if length > 1 else "",
                length=length,
            )
        )
    return played
