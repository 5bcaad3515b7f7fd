"""The table of an evaluation, for people."""

from __future__ import annotations

from rich.table import Table

from anyvla.evaluation.statistics import Summary


def table(summary: Summary) -> Table:
    """Success rates by condition and task, with intervals."""
    found = Table("condition", "task", "success", "95 % interval", "episodes", box=None, pad_edge=False)
    rows = {"told": summary.told, "swapped: first goal": summary.swapped, "unrelated": summary.unrelated}
    for condition, rates in rows.items():
        for task, interval in [*rates.tasks.items(), ("all", rates.overall)] if rates else []:
            share = f"{interval.value:.1%}", f"{interval.low:.1%} to {interval.high:.1%}", str(interval.episodes)
            found.add_row(condition, task, *share)
    return found
