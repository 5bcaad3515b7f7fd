"""Measure and check on one GPU, in under eight minutes, all that a machine without one cannot.

    make gpu                                       # writes outputs/gpu/gpu.json and outputs/gpu/gpu.md
    python benchmarks/gpu.py [--parts NAME ...] [--out FOLDER]
    python benchmarks/gpu.py --small --device cpu  # the parts that can run here, on models of a million weights

Each part (`gpu_parts.py`) runs in a process of its own with a limit of time, so that one that fails, or takes all
memory, ends alone. A part that cannot run is skipped with the reason. Rows that were measured before the limit stay.
Weights are random, in the shapes of published models: no network is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MINUTES = 8.0  # of all parts together
STATUSES = ("done", "skipped", "failed", "out of time")


@dataclass(frozen=True)
class Outcome:
    """The outcome of a part."""

    part: str
    status: str  # one of STATUSES
    seconds: float
    reason: str = ""  # why it is not done
    rows: Sequence[Mapping[str, Any]] = field(default_factory=list)  # the measured numbers of each case


def run_part(name: str, options: Sequence[str], limit_s: float) -> Outcome:
    """Run a part in a process of its own, for `limit_s` seconds at most."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        command = [sys.executable, str(Path(__file__).with_name("gpu_parts.py")), name, "--rows", str(rows), *options]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8", start_new_session=True)
        try:
            _, errors = process.communicate(timeout=limit_s)
            status, reason = ("done", "") if not process.returncode else _explain(process.returncode, errors)
        except subprocess.TimeoutExpired:
            _end_group(process)
            status, reason = "out of time", f"after {limit_s:.0f} s"
        found = [json.loads(line) for line in rows.read_text("utf-8").splitlines()] if rows.is_file() else []
    return Outcome(name, status, time.monotonic() - begin, reason, found)


def _explain(code: int, errors: str) -> tuple[str, str]:
    from gpu_parts import SKIPPED

    lines = [line for line in errors.splitlines() if line.strip()]
    return "skipped" if code == SKIPPED else "failed", lines[-1] if lines else f"exit status {code}"


def _end_group(process: subprocess.Popen[str]) -> None:
    """End a part and the processes that it started."""
    os.killpg(process.pid, 9)
    process.communicate()


def describe_machine(device: str) -> dict[str, Any]:
    """Return the machine, the versions and the commit."""
    import torch
    import transformers

    gpu = device.startswith("cuda")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, encoding="utf-8", check=False)
    return {
        "machine": torch.cuda.get_device_name(device) if gpu else platform.processor() or platform.machine(),
        "driver": torch.version.cuda if gpu else None,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or None,
    }


def write_table(facts: Mapping[str, Any], outcomes: Sequence[Outcome], goals: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table in Markdown: a line for each measured case, and one for each part without any."""
    versions = ", ".join(f"{key} {facts[key]}" for key in ("torch", "transformers", "commit") if facts.get(key))
    lines = [f"{facts['machine']}, {versions}; {facts['command']}", "", "| part | case | result | goal |"]
    lines.append("|---|---|---|---|")
    for outcome in outcomes:
        for row in outcome.rows:
            numbers = {key: value for key, value in row.items() if key != "case"}
            shown = ", ".join(f"{_shown(value)} {key}" for key, value in numbers.items())
            lines.append(f"| {outcome.part} | {row['case']} | {shown} | {_compare(row, goals.get(outcome.part, {}))} |")
        if outcome.status != "done" or not outcome.rows:
            lines.append(f"| {outcome.part} | | {outcome.status}{f': {outcome.reason}' if outcome.reason else ''} | |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _compare(row: Mapping[str, Any], goals: Mapping[str, Any]) -> str:
    """Return the goals of a row, and whether it reaches them. A goal: a name and ">= number" or "<= number"."""
    shown = []
    for key, goal in goals.items():
        if key in row and row[key] is not None:
            sign, number = goal.split()
            reached = row[key] >= float(number) if sign == ">=" else row[key] <= float(number)
            shown.append(f"{key} {goal}: {'reached' if reached else 'missed'}")
    return ", ".join(shown)


def main() -> None:
    import torch
    from gpu_parts import GOALS, PARTS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="models of a million weights, to see that it runs")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all parts; the limit of each follows")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"))
    options = parser.parse_args()
    if options.device == "cpu" and not options.small:
        parser.error("there is no GPU here: --small runs the parts that can run on a CPU")
    given = ["--device", options.device, *(["--small"] if options.small else [])]
    begin, outcomes = time.monotonic(), list[Outcome]()
    for name in options.parts:
        left = 60 * options.minutes - (time.monotonic() - begin)
        if left < 5:
            outcomes.append(Outcome(name, "out of time", 0.0, f"the {options.minutes:g} minutes are over"))
            continue
        limit_s = PARTS[name].limit_s * options.minutes / MINUTES
        outcomes.append(run_part(name, given, min(limit_s, left)))
        newest = outcomes[-1]
        print(f"{name:12} {newest.status:12} {newest.seconds:5.0f} s  {newest.reason}", flush=True)
        for row in newest.rows:
            print(f"{'':12} {json.dumps(row)}", flush=True)
    facts = describe_machine(options.device) | {
        "command": " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        "small": options.small,
        "seconds": time.monotonic() - begin,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    document = facts | {"parts": [asdict(outcome) for outcome in outcomes], "goals": GOALS}
    (options.out / "gpu.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (options.out / "gpu.md").write_text(write_table(facts, outcomes, GOALS), encoding="utf-8")
    print(f"{options.out / 'gpu.json'}, {options.out / 'gpu.md'}; {facts['seconds']:.0f} s")
    if any(outcome.status == "failed" for outcome in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
