"""`anyvla list benchmarks`: list the suites that this machine can run, and how to install the others."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Table

from anyvla.cli.console import Console
from anyvla.registry import benchmarks
from anyvla_sim.base import BenchmarkUnusable, Suite
from anyvla_sim.spec import Spec


def show(as_json: bool) -> int:
    """Print a table with one row per suite, or JSON."""
    found = [_describe(name) for name in benchmarks]
    if as_json:
        print(json.dumps(found, indent=1))
        return 0
    table = Table("suite", "tasks", "episodes", "actions", "robot", box=None, pad_edge=False)
    for benchmark in found:
        for suite in benchmark["suites"]:
            cells = (suite[key] for key in ("name", "tasks", "episodes", "horizon", "robot"))
            table.add_row(*map(str, cells))
    console = Console()
    console.print(table)
    for benchmark in found:
        if "missing" in benchmark:
            console.print(f"{benchmark['name']}: {benchmark['missing']}")
        if benchmark.get("factors"):
            levels = "; ".join(f"{factor}: {', '.join(names)}" for factor, names in benchmark["factors"].items())
            console.print(f"{benchmark['name']}, factors: {levels}")
        if benchmark.get("disturbances"):
            console.print(f"{benchmark['name']}, disturbances: {', '.join(benchmark['disturbances'])}")
    return 0


def _episodes(suite: Suite) -> int:
    return suite.episodes if suite.chains else sum(task.episodes or suite.episodes for task in suite.tasks)


def _describe(name: str) -> dict[str, Any]:
    """Return the facts of a benchmark. The key `missing`, if present, says why it cannot run here."""
    try:
        benchmark = Spec(benchmarks.target(name)).open()
    except (BenchmarkUnusable, ImportError, ValueError) as error:  # not installed, or needs settings as gym does
        return {"name": name, "suites": [], "missing": str(error)}
    suites = []
    for suite_name in benchmark.suites():
        suite = benchmark.suite(suite_name)
        suites.append(
            {
                "name": f"{name}/{suite_name}",
                "tasks": len(suite.tasks),
                "episodes": _episodes(suite),
                "horizon": suite.horizon,
                "robot": benchmark.embodiment(suite_name)["name"],
                "groups": sorted(suite.groups),
            }
        )
    factors = {factor: list(levels) for factor, levels in benchmark.factors.items()}
    return {"name": name, "suites": suites, "factors": factors, "disturbances": list(benchmark.disturbances)}
