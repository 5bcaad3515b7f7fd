"""Format the summary of an evaluation as a table."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from anyvla.evaluation.intervals import Interval
from anyvla.evaluation.statistics import ConditionSummary, Summary


def table(summary: Summary) -> Table:
    """Return success rates with intervals: every task of the first condition, and the totals of every condition."""
    found = Table("condition", "task", "success", "95 % interval", "episodes", box=None, pad_edge=False)
    for number, (condition, played) in enumerate(summary.conditions.items()):
        for name, interval in _rows(played, every_task=number == 0):
            share = f"{interval.value:.1%}", f"{interval.low:.1%} to {interval.high:.1%}", str(interval.episodes)
            found.add_row(condition, name, *share)
        if played.chains is not None:
            length = played.chains.average_length
            found.add_row(condition, "average length", f"{length.value:.2f}", f"{length.low:.2f} to {length.high:.2f}")
        for count, label in ((played.errors, "simulator errors"), (played.invalid, "invalid actions")):
            if count:
                found.add_row(condition, label, str(count))
    if summary.chance is not None:
        found.add_row("chance", "without the tested ability", f"{summary.chance:.1%}")
    if summary.language_use is not None:
        use = summary.language_use
        found.add_row("use of language", "", f"{use.value:.1%}", f"{use.low:.1%} to {use.high:.1%}", str(use.episodes))
    return found


def _rows(played: ConditionSummary, every_task: bool) -> Iterator[tuple[str, Interval]]:
    rates = played.success
    if rates is None:
        return
    if played.chains is not None:
        for number, share in enumerate(played.chains.in_a_row, 1):
            yield f"{number} in a row", share
        return
    if every_task:
        yield from rates.tasks.items()
        for name, share in rates.groups.items():
            if name not in played.pairs:
                yield f"mean of {name}", share
        for name, pair in played.pairs.items():
            yield f"{name}: both {pair.both}, one {pair.one}, neither {pair.neither}", pair.rate
    yield "all", rates.overall
    if every_task and len({i.episodes for i in rates.tasks.values()}) > 1:
        yield "mean over tasks", rates.mean_over_tasks
    if rates.mean_over_groups is not None:
        yield "mean over groups", rates.mean_over_groups
    for name, recovery in (("after the disturbance", played.disturbed), ("grasped again", played.regrasped)):
        if recovery is not None:
            yield name, recovery.rate
