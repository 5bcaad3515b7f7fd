"""`anyvla data info PATH`: print the contents and faults of a data set of any format."""

from __future__ import annotations

import argparse
import json
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from rich.table import Table

from anyvla.cli import opening
from anyvla.cli.common import ProgressBar
from anyvla.cli.console import Console
from anyvla.cli.data.statistics import statistics_table
from anyvla.config import to_dict
from anyvla.data.episode import EpisodeDataset
from anyvla.data.statistics import spread_evenly
from anyvla.data.tools.measured import read_or_none
from anyvla.files.documents import to_yaml
from anyvla.text import clean_instruction

if TYPE_CHECKING:
    from anyvla.data.tools.proposal import Proposal

_SHOWN = 5  # instructions, tasks and findings to print


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    opening.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--write",
        type=Path,
        metavar="FILE.yaml",
        help="write the embodiment to a file for --source; it is a proposal if the data declares none",
    )


def run(options: argparse.Namespace) -> int:
    """Print the facts. Raises ValueError if the file to write exists, and ConfigError for invalid options."""
    from anyvla.data.tools.proposal import propose
    from anyvla.data.tools.quality import check

    if options.write is not None and options.write.exists():
        raise ValueError(f"{options.write} exists already, perhaps with your answers: remove it or give another name")
    dataset, undeclared = opening.open_for_inspection(options)
    facts = describe(dataset)
    with ProgressBar("look") as bar:
        findings = check(dataset, progress=bar)
    unreadable = {f.episode: f.text for f in findings if f.kind == "damaged" and f.episode is not None}
    if unreadable:
        facts["unreadable"] = unreadable
    counts = Counter(f"{f.severity}: {f.kind}" for f in findings)
    facts["wrong"] = {"counts": dict(counts), "first": [vars(f) for f in findings[:_SHOWN]]}
    facts["statistics"] = _statistics(dataset)
    proposal = None
    if undeclared is not None:
        with ProgressBar("propose") as bar:
            proposal = propose(dataset, undeclared.options, timed=undeclared.timed, progress=bar)
        facts["proposal"] = {"text": proposal.text, "check": proposal.questions}
    if options.write is not None:
        known = {"embodiment": to_dict(dataset.embodiment)}
        text = proposal.text if proposal is not None else to_yaml(known)
        options.write.write_text(text, encoding="utf-8")
    if options.json:
        print(json.dumps(facts, indent=1, ensure_ascii=False))
        return 0
    _show(facts, _argument_text(options))
    if proposal is not None:
        statistics = facts["statistics"]
        if not isinstance(statistics, str):
            Console().print(statistics_table(dataset.embodiment, statistics["action"], statistics["proprio"]))
        _show_proposal(proposal, options)
    return 0


def _argument_text(options: argparse.Namespace) -> str:
    """Return the arguments that open the same data in another command."""
    named = {"--format": options.format, "--source": options.source}
    return " ".join([shlex.quote(options.path), *(f"{k} {shlex.quote(str(v))}" for k, v in named.items() if v)])


def _show(facts: Mapping[str, Any], data: str) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in facts.items():
        if key not in ("statistics", "wrong", "proposal"):
            table.add_row(key, _line(value))
    if "unreadable" in facts:
        table.add_row("", f"to train without: leave_out: [{', '.join(map(str, facts['unreadable']))}] in the source")
    wrong = ", ".join(f"{name} ({n})" for name, n in facts["wrong"]["counts"].items())
    table.add_row("wrong", f"{wrong}: anyvla data check {data}" if wrong else "nothing found")
    statistics = facts["statistics"]
    table.add_row("statistics", statistics if isinstance(statistics, str) else f"anyvla data statistics {data}")
    Console().print(table)


def _show_proposal(proposal: Proposal, options: argparse.Namespace) -> None:
    """Print the proposal, or its file, and the next commands."""
    console = Console()
    path, file = shlex.quote(options.path), options.write
    if file is None:
        console.print("\nThe data does not declare the meaning of its numbers. A proposal:\n")
        console.print(proposal.text, soft_wrap=True)
        console.print(f"To write it to a file: anyvla data info {path} --write robot.yaml", soft_wrap=True)
        return
    keys = [{"path": options.path, "embodiment": str(file)}]
    source = yaml.safe_dump(keys, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    questions = [f"  {question}" for question in proposal.questions]
    lines = [
        f"\nThe data does not declare the meaning of its numbers. {file} contains a proposal.",
        *([f"Answer its {len(questions)} lines marked CHECK:", *questions] if questions else []),
        "Then use it:",
        f"  anyvla data check {path} --source {shlex.quote(str(file))}      # does it contradict the numbers?",
        f"  anyvla train RECIPE --data.sources {shlex.quote(source.strip())}",
        "In a recipe it is data.sources: the same two keys, path and embodiment.",
    ]
    console.print("\n".join(lines), soft_wrap=True)


def describe(dataset: EpisodeDataset) -> dict[str, Any]:
    """Return the facts of a data set as JSON, without reading a frame."""
    robot, lengths = dataset.embodiment, dataset.lengths
    if not len(lengths):
        raise ValueError(f"{dataset.root} has no episodes")
    tasks = Counter(clean_instruction(dataset.task(i)) for i in range(len(dataset)))
    instructions, first = Counter[str](), None
    for index in spread_evenly(len(dataset), 1000).tolist():
        episode = read_or_none(dataset, index)
        if episode is not None:
            instructions.update(episode.instructions[:1] or ("",))
            first = first or episode
    if first is None:
        first = dataset[0]  # raises the reason
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
        "length": {"min": int(lengths.min()), "median": float(np.median(lengths)), "max": int(lengths.max())},
        "columns": dict(getattr(dataset, "columns", {})),
        **opening.describe_vectors(robot),
        "tasks": {"different": len(tasks), "most": dict(tasks.most_common(_SHOWN))},
        "instructions": {
            "looked_at": sum(instructions.values()),
            "different": len(instructions) - ("" in instructions),
            "without": instructions[""],
            "most": dict((instructions - Counter({"": instructions[""]})).most_common(_SHOWN)),
        },
        "fingerprint": dataset.fingerprint,
    }


def _statistics(dataset: EpisodeDataset) -> Any:
    from anyvla.data.robot_statistics import pool_statistics

    try:
        statistics = pool_statistics([dataset])
    except ValueError as error:
        return f"none: {error}"
    return {"action": statistics.action, "proprio": statistics.proprio}


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{k}: {_line(v) if not isinstance(v, dict) else _short(v)}" for k, v in value.items())
    return str(value)


def _short(value: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items())
