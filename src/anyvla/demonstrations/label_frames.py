"""Make questions and answers about simulator frames, with ground truth of the simulator, as LLaVA-style data.

They are for vision-language pre-training of small models without a network. A frame is a pure function of (seed,
number), so an interrupted run resumes to the same data. Answers are balanced per question, and a fraction of the frames
is held out.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT, to_dict
from anyvla.demonstrations.questions import ask_questions
from anyvla.evaluation.workers import prepare_worker
from anyvla.files import durable
from anyvla.files.differences import check_same
from anyvla.files.documents import as_mapping, read_object
from anyvla.files.folder_lock import lock_folder
from anyvla.interrupted import Interrupted
from anyvla.limits import COUNT, PROCESSES, SEED
from anyvla.worker_pool import WorkerPool

if TYPE_CHECKING:
    from anyvla.demonstrations.metaworld_scene import SceneLabeler

BENCHMARKS = ("metaworld/half-open",)
COMMONEST = 1.5  # the largest count of an answer, relative to the mean over its question's answers


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LabelConfig:
    """The settings of labeled frames."""

    benchmark: str = BENCHMARKS[0]
    frames: int = Field(default=2000, ge=1, le=COUNT)
    size: int = Field(default=128, ge=32, le=320)  # px a side
    seed: int = Field(default=0, ge=0, le=SEED)
    held_out: float = Field(default=0.1, ge=0, lt=1)  # fraction of frames that held_out.json gets
    questions: int = Field(default=4, ge=1, le=COUNT)  # turns per frame at most, before balancing
    processes: int | None = Field(default=None, ge=1, le=PROCESSES)  # None: one per core; changes no result

    def __post_init__(self) -> None:
        if self.benchmark not in BENCHMARKS:
            raise ValueError(f"frames of {self.benchmark!r} cannot be labeled; supported: {BENCHMARKS[0]}")


def label_frames(
    config: LabelConfig,
    root: Path,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Make the data, or resume after an interruption. Return `root`, at once if it is complete.

    The files are `train.json`, `held_out.json`, `images/` and `card.json`. Raises ValueError if `root` holds other
    data, WorkerDied if a simulator dies, Interrupted once `stop()` returns True.
    """
    settings = {k: v for k, v in to_dict(config).items() if k != "processes"}
    with lock_folder(root):
        partial, card = root / "partial", root / "card.json"
        begun = card if card.exists() else partial / "settings.json"
        if begun.exists():
            check_same(
                as_mapping(read_object(begun).get("settings"), f"{begun}, settings"),
                settings,
                f"{root} holds frames made with other settings ({{}}): remove it or choose another folder",
                may_differ=lambda found: found.key.partition(".")[0] not in settings,
            )
        if card.exists():
            shutil.rmtree(partial, ignore_errors=True)  # left by a run that was stopped before it removed the folder
            return root
        (root / "images").mkdir(parents=True, exist_ok=True)
        partial.mkdir(exist_ok=True)
        durable.write(partial / "settings.json", json.dumps({"settings": settings}), to_disk=False)
        todo = deque(i for i in range(config.frames) if not (partial / f"{i:06d}.json").exists())
        done = config.frames - len(todo)
        progress(done, config.frames)
        processes = min(config.processes or os.cpu_count() or 1, max(len(todo), 1))
        remedy = "try fewer --processes. Finished frames are kept: run the same command to resume"
        with WorkerPool(processes, _start_worker, (config, root), remedy=remedy) as workers:
            for _ in workers.run(_make_frame, todo, 2 * processes + 1, stop):
                done += 1
                progress(done, config.frames)
            if todo:
                raise Interrupted(f"stopped after {done} of {config.frames} frames; run the same command to resume")
        _assemble(config, settings, root, partial)
        return root


_labeler: SceneLabeler  # the variables of a worker process
_config: LabelConfig
_root: Path


def _start_worker(config: LabelConfig, root: Path) -> None:
    global _labeler, _config, _root
    prepare_worker()
    from anyvla.demonstrations.metaworld_scene import SceneLabeler

    _labeler, _config, _root = SceneLabeler(config.size), config, root


def _make_frame(number: int) -> None:
    """Write the picture of a frame, then its questions. A frame is complete once its questions are written."""
    from io import BytesIO

    from PIL import Image

    from anyvla.demonstrations.metaworld_scene import SCENES

    rng = np.random.default_rng((_config.seed, number))
    held_out = bool(rng.random() < _config.held_out)
    pixels, labels = _labeler.frame(list(SCENES)[number % len(SCENES)], rng)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    durable.write(_root / "images" / f"{number:06d}.png", file.getvalue(), to_disk=False)
    asked = ask_questions(labels, _config.questions, rng)
    record = {"held_out": held_out, "turns": [[q.kind, q.question, q.answer] for q in asked]}
    durable.write(_root / "partial" / f"{number:06d}.json", json.dumps(record), to_disk=False)


def _assemble(config: LabelConfig, settings: Mapping[str, Any], root: Path, partial: Path) -> None:
    """Balance the answers and write both splits, then `card.json`, which marks the data as complete."""
    records = [read_object(partial / f"{i:06d}.json") for i in range(config.frames)]
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "held_out": []}
    counts: dict[str, dict[str, Counter[str]]] = {name: defaultdict(Counter) for name in splits}
    kept = {name: balance(records, held_out=name == "held_out") for name in splits}
    for i, record in enumerate(records):
        name = "held_out" if record["held_out"] else "train"
        turns = [turn for k, turn in enumerate(record["turns"]) if (i, k) in kept[name]]
        if not turns:
            (root / "images" / f"{i:06d}.png").unlink(missing_ok=True)
            continue
        conversation = []
        for k, (kind, question, answer) in enumerate(turns):
            counts[name][kind][answer] += 1
            conversation.append({"from": "human", "value": question if k else f"<image>\n{question}"})
            conversation.append({"from": "gpt", "value": answer})
        entry = {"id": f"{i:06d}", "image": f"images/{i:06d}.png", "kinds": [t[0] for t in turns]}
        splits[name].append(entry | {"conversations": conversation})
    for name, entries in splits.items():
        durable.write(root / f"{name}.json", json.dumps(entries, indent=0), to_disk=False)
    answers = {n: {k: dict(sorted(a.items())) for k, a in sorted(of.items())} for n, of in counts.items()}
    frames = {name: len(entries) for name, entries in splits.items()}
    card = {"settings": dict(settings), "frames": frames, "answers": answers}
    durable.write(root / "card.json", json.dumps(card, indent=1), to_disk=False)
    shutil.rmtree(partial)


def balance(records: list[dict[str, Any]], held_out: bool) -> set[tuple[int, int]]:
    """Return the (frame, turn) pairs of a split to keep: common answers are thinned out, single answers dropped.

    All points are kept, since nearly every answer is unique. Frames with lower numbers are kept first, so the choice is
    the same in each run.
    """
    by_kind: dict[str, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for i, record in enumerate(records):
        if record["held_out"] == held_out:
            for k, (kind, _, answer) in enumerate(record["turns"]):
                by_kind[kind][answer].append((i, k))
    kept: set[tuple[int, int]] = set()
    for kind, answers in by_kind.items():
        if kind.startswith("point"):
            kept.update(place for places in answers.values() for place in places)
        elif len(answers) > 1:
            # Lower the limit until it holds, as each removal lowers the mean; the rarest answer is never thinned.
            sizes = sorted(len(places) for places in answers.values())
            limit = max(sizes[0], int(COMMONEST * sum(sizes) / len(sizes)))
            while limit > sizes[0] and limit > COMMONEST * sum(min(s, limit) for s in sizes) / len(sizes):
                limit -= 1
            for places in answers.values():
                kept.update(places[:limit])
    return kept
