"""`anyvla data info PATH`: what a data set holds, whatever its format, and what is wrong with it."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import Any

import numpy as np
from rich.table import Table

from anyvla.cli import opening
from anyvla.cli.common import Bar
from anyvla.cli.console import Console
from anyvla.data.episode import EpisodeDataset
from anyvla.text import clean_instruction

_SHOWN = 5  # instructions, tasks and findings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    opening.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="machine-readable, on standard output")


def run(options: argparse.Namespace) -> int:
    """Print what the data set holds."""
    from anyvla.data.quality import check

    dataset = opening.opened(options)
    facts = describe(dataset)
    with Bar("look") as bar:
        findings = check(dataset, progress=bar)
    counts = Counter(f"{f.severity}: {f.kind}" for f in findings)
    facts["wrong"] = {"counts": dict(counts), "first": [vars(f) for f in findings[:_SHOWN]]}
    facts["statistics"] = _statistics(dataset)
    if options.json:
        print(json.dumps(facts, indent=1, ensure_ascii=False))
        return 0
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in facts.items():
        if key not in ("statistics", "wrong"):
            table.add_row(key, _line(value))
    wrong = ", ".join(f"{name} ({n})" for name, n in counts.items())
    table.add_row("wrong", f"{wrong}: anyvla data check {options.path}" if wrong else "nothing found")
    statistics = facts["statistics"]
    table.add_row("statistics", statistics if isinstance(statistics, str) else f"anyvla data statistics {options.path}")
    Console().print(table)
    return 0


def describe(dataset: EpisodeDataset) -> dict[str, Any]:
    """What a data set holds, as JSON; reads no frame."""
    robot, lengths = dataset.embodiment, dataset.lengths
    if not len(lengths):
        raise ValueError(f"{dataset.root} holds no episode")
    tasks = Counter(clean_instruction(dataset.task(i)) for i in range(len(dataset)))
    said = Counter(text for i in _some(len(dataset)) for text in dataset[i].instructions[:1] or ("",))
    first = dataset[0]
    sizes = {c: "x".join(map(str, first.images[c].shape[1:3])) for c in robot.cameras}
    hz = 1 / float(np.median(np.diff(first.timestamps))) if len(first) > 1 else robot.control_hz
    return {
        "path": str(dataset.root),
        "made": dict(dataset.provenance),
        "robot": robot.name,
        "cameras": sizes,
        "rate": {"declared_hz": robot.control_hz, "of_timestamps_hz": round(hz, 3)},
        "episodes": len(lengths),
        "steps": int(lengths.sum()),
        "hours": round(float(lengths.sum()) / robot.control_hz / 3600, 3),
        "length": {
            "min": int(lengths.min()),
            "median": float(np.median(lengths)),
            "max": int(lengths.max()),
        },
        **opening.declared(robot),
        "tasks": {"different": len(tasks), "most": dict(tasks.most_common(_SHOWN))},
        "instructions": {
            "looked_at": sum(said.values()),
            "different": len(said) - ("" in said),
            "without": said[""],
            "most": dict((said - Counter({"": said[""]})).most_common(_SHOWN)),
        },
        "fingerprint": dataset.fingerprint,
    }


def _some(count: int, most: int = 1000) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def _statistics(dataset: EpisodeDataset) -> Any:
    from anyvla.data.robot_statistics import statistics_of

    try:
        statistics = statistics_of(dataset)
    except ValueError as error:
        return f"none: {error}"
    return {"action": statistics.action, "proprio": statistics.proprio}


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{k}: {_line(v) if not isinstance(v, dict) else _short(v)}" for k, v in value.items())
    return str(value)


def _short(value: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items())
