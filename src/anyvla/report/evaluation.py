"""Write the report of an evaluation: `index.html` beside `results.jsonl`, computed from its lines only.

It has tables with intervals by task, group and condition, chains, recovery, delay, the full protocol, published numbers
with the differences of their protocols, and the videos.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anyvla.evaluation.conditions import ORIGINAL, Condition, parse
from anyvla.evaluation.intervals import Interval
from anyvla.evaluation.results import EpisodeResult, read_results
from anyvla.evaluation.statistics import (
    ConditionSummary,
    Rates,
    Summary,
    success_by_delay,
    success_over_curve,
    summarize,
)
from anyvla.report import plots
from anyvla.report.published import ProtocolMatch, PublishedResult, describe_protocols, find_published, match_protocol
from anyvla.report.run_folder import read_clips
from anyvla.report.template import environment, style, write_html

# A description of each kind of instruction, and which success rate is good: "high", "low", or neither ("neutral").
LANGUAGE = {
    ORIGINAL: ("the task's own instruction", "high"),
    "paraphrased": ("a phrasing that no demonstration used", "high"),
    "swapped": ("another task of the scene was instructed; the original goal was reached", "low"),
    "unrelated": ("a task of another scene was instructed; the original goal was reached", "neutral"),
    "empty": ("an empty instruction; the original goal was reached", "neutral"),
}
MEASURES = {"episodes": "over all episodes", "groups": "mean over groups", "length": "average length of chains"}


@dataclass(frozen=True)
class RateRow:
    """One bar of a table."""

    name: str
    interval: Interval
    detail: str = ""
    kind: str = "high"  # a class of the style sheet
    counted: bool = True  # a rate over episodes, not a mean of rates


@dataclass(frozen=True)
class PublishedRow:
    """A published number next to ours."""

    published: PublishedResult
    measure: str
    ours: str | None  # in the same unit; None if this evaluation has no such number
    match: ProtocolMatch


def write_evaluation_report(folder: Path, page: Path | None = None) -> Path:
    """Write `page` from `folder/results.jsonl` and `folder/videos`, and return its path. None: `folder/index.html`.

    The page links to videos in the folder `videos` beside it. Raises ValueError for unreadable or empty results, and
    FileNotFoundError if the file of results is missing.
    """
    page = page or folder / "index.html"
    context = _make_context(folder, read_results(folder / "results.jsonl"))
    return write_html(page, environment().get_template("evaluation.html.j2").render(context))


def _make_context(folder: Path, results: Sequence[EpisodeResult]) -> dict[str, Any]:
    summary = summarize(results)
    main_name = ORIGINAL if ORIGINAL in summary.conditions else next(iter(summary.conditions))
    main = summary.conditions[main_name]
    rates = None if main.chains else main.success
    by_delay = success_by_delay(summary)
    curve = success_over_curve(results, main)
    clips = [clip for clip in read_clips(folder / "videos") if clip.path.is_file()]
    protocol = results[0].protocol
    return {
        "summary": summary,
        "css": style(),
        "condition": main_name,
        "main": main,
        "tasks": [RateRow(task, interval) for task, interval in rates.tasks.items()] if rates else [],
        "means": list(_list_means(rates, main)) if rates else [],
        "pairs": list(_list_pairs(main)),
        "curve": _draw_curve(curve, results[0].protocol, summary.chance),
        "language": list(_list_instructions(summary)),
        "factors": _list_factors(summary),
        "correction": list(_list_recoveries(summary)),
        "latency": list(_list_delays(by_delay, protocol.get("control_hz"), results[0].policy.get("chunk"))),
        "delays": plots.draw_rate_curve(by_delay, "delay, actions", "Success by delay") if len(by_delay) > 1 else None,
        "combined": list(_list_combined(summary)),
        "chains": [RateRow(f"{n} in a row", i) for n, i in enumerate(main.chains.in_a_row, 1)] if main.chains else [],
        "beside": _compare_published(summary, protocol),
        "videos": {clip.path: f"videos/{clip.path.name}" for clip in clips},
        "successes": [clip for clip in clips if clip.obeyed],
        "failures": [clip for clip in clips if not clip.obeyed],
        "protocol": describe_protocols(r.protocol for r in results),
        "policy": describe_protocols({**r.policy, **r.versions} for r in results),
        "latency_ms": sum(r.latency_ms for r in results) / len(results),
        "errors": [r for r in results if r.outcome == "error"],
        "invalid": sum(r.outcome == "invalid_action" for r in results),
        "clipped": sum(r.clipped > 0 for r in results),
        "repeated": sum(r.attempts > 1 for r in results),
    }


def _list_means(rates: Rates, played: ConditionSummary) -> Iterator[RateRow]:
    for name, interval in rates.groups.items():
        if name in played.pairs:  # they have a table of their own
            continue
        yield RateRow(name, interval, "mean over the group's tasks", counted=False)
    yield RateRow("Mean over tasks", rates.mean_over_tasks, "tasks equally weighted", counted=False)
    if rates.mean_over_groups:
        yield RateRow("Mean over groups", rates.mean_over_groups, "groups equally weighted", counted=False)


def _list_pairs(played: ConditionSummary) -> Iterator[RateRow]:
    for name, pair in played.pairs.items():
        yield RateRow(name, pair.rate, f"pairs: both right {pair.both}, one {pair.one}, neither {pair.neither}")


def _draw_curve(rates: Mapping[int, Interval], protocol: Mapping[str, Any], chance: float | None) -> str | None:
    """Return the curve that the suite declares, if it has two points or more."""
    if len(rates) < 2:
        return None
    axis = protocol["curve"]["axis"]
    return plots.draw_rate_curve(rates, axis, f"Success by {axis.partition(',')[0]}", chance)


def _make_rows(name: str, played: ConditionSummary, detail: str = "", kind: str = "high") -> Iterator[RateRow]:
    """Yield the row of a condition with its errors and invalid actions; none if every episode was an error."""
    if played.success is None:
        return
    counts = {"simulator errors": played.errors, "invalid actions": played.invalid}
    parts = [detail, *(f"{what}: {count}" for what, count in counts.items() if count)]
    yield RateRow(name, played.success.overall, "; ".join(filter(None, parts)), kind)


def _list_instructions(summary: Summary) -> Iterator[RateRow]:
    for name, played in summary.conditions.items():
        if name in LANGUAGE:
            yield from _make_rows(name, played, *LANGUAGE[name])
            if name == "swapped" and played.obeyed:
                yield RateRow("swapped, obeyed", played.obeyed.overall, "the instructed goal was reached first")


def _list_factors(summary: Summary) -> dict[str, list[RateRow]]:
    """Return rows by factor: the original scene, then each level on its own."""
    found: dict[str, list[RateRow]] = {}
    for name, played in summary.conditions.items():
        c = parse(name)
        if len(c.factors) == 1 and c == Condition(factors=c.factors):
            factor, level = c.factors[0]
            found.setdefault(factor, []).extend(_make_rows(level, played))
    original = summary.conditions.get(ORIGINAL)
    base = list(_make_rows("as in training", original, kind="neutral")) if original else []
    return {factor: [*base, *rows] for factor, rows in found.items()}


def _list_recoveries(summary: Summary) -> Iterator[RateRow]:
    for name, played in summary.conditions.items():
        for what, recovery in (("disturbed", played.disturbed), ("grasped again", played.regrasped)):
            if recovery is not None:
                detail = f"of {recovery.rate.episodes} episodes"
                if recovery.median_steps is not None:
                    detail += f"; {recovery.median_steps:g} actions to success, median"
                yield RateRow(f"{name}: {what}", recovery.rate, detail)


def _list_delays(rates: Mapping[int, Interval], hz: float | None, chunk: int | None) -> Iterator[RateRow]:
    if set(rates) - {0}:
        for delay, interval in rates.items():
            parts = [f"{1000 * delay / hz:.0f} ms"] if hz else []
            if chunk is not None and delay >= chunk:
                parts.append(f"a chunk of {chunk} actions ends before it arrives: the robot holds still")
            yield RateRow(f"{delay} actions", interval, "; ".join(parts))


def _list_combined(summary: Summary) -> Iterator[RateRow]:
    """Yield rows of the conditions that no other table has: several changes, or a change with another instruction."""
    for name, played in summary.conditions.items():
        c = parse(name)
        changes = len(c.factors) + (c.disturbance is not None) + (c.delay > 0)
        if changes > 1 or (changes and c.language != ORIGINAL):
            yield from _make_rows(name, played, *LANGUAGE[c.language])


def _compare_published(summary: Summary, protocol: Mapping[str, Any]) -> list[PublishedRow]:
    played = summary.conditions.get(ORIGINAL)
    ours: dict[str, str] = {}
    if played and played.success:
        ours["episodes"] = f"{100 * played.success.overall.value:.1f} %"
        if played.success.mean_over_groups:
            ours["groups"] = f"{100 * played.success.mean_over_groups.value:.1f} %"
    if played and played.chains:
        ours["length"] = f"{played.chains.average_length.value:.2f} tasks"
    rates = played.success if played and not played.chains else None
    tasks, all_tasks = len(rates.tasks) if rates else 0, protocol.get("tasks") or 0
    partly = [f"{tasks} of its {all_tasks} tasks were played"] if 0 < tasks < all_tasks else []
    rows = []
    for p in find_published(summary.benchmark):
        match = match_protocol(p, protocol)
        match = replace(match, differs=[*match.differs, *partly])
        rows.append(PublishedRow(p, MEASURES[p.measure], ours.get(p.measure), match))
    return rows
