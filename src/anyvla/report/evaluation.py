"""Write the report of an evaluation: `index.html` beside `results.jsonl`, computed from its lines only.

It has tables with intervals by task, group and condition, chains, recovery, delay, the full protocol, published numbers
with the differences of their protocols, and the videos.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from anyvla.evaluation.conditions import ORIGINAL, parse
from anyvla.evaluation.intervals import Interval
from anyvla.evaluation.results import EpisodeResult, read_results
from anyvla.evaluation.statistics import ConditionSummary, Rates, Summary, success_by_delay, summarize
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
    results = read_results(folder / "results.jsonl")
    context = _context(folder, results, summarize(results))
    return write_html(page, environment().get_template("evaluation.html.j2").render(context))


def _context(folder: Path, results: Sequence[EpisodeResult], summary: Summary) -> dict[str, Any]:
    main_name, main = _main(summary)
    clips = [clip for clip in read_clips(folder / "videos") if clip.path.is_file()]
    protocol = results[0].protocol
    return {
        "summary": summary,
        "css": style(),
        "condition": main_name,
        "main": main,
        "tasks": [] if main.chains else _tasks(main.success),
        "means": [] if main.chains else _means(main.success),
        "language": list(_language(summary)),
        "factors": _factors(summary),
        "correction": list(_correction(summary)),
        "latency": list(_latency(summary, protocol.get("control_hz"), results[0].policy.get("chunk"))),
        "delays": _delay_curve(summary),
        "combined": list(_combined(summary)),
        "chains": _chains(main),
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


def _main(summary: Summary) -> tuple[str, ConditionSummary]:
    """Return the condition of the headline: `original`, or the first one."""
    name = ORIGINAL if ORIGINAL in summary.conditions else next(iter(summary.conditions))
    return name, summary.conditions[name]


def _tasks(rates: Rates | None) -> list[RateRow]:
    return [RateRow(task, interval) for task, interval in rates.tasks.items()] if rates else []


def _means(rates: Rates | None) -> list[RateRow]:
    if rates is None:
        return []
    rows = [RateRow(name, i, "mean over the group's tasks", counted=False) for name, i in rates.groups.items()]
    rows.append(RateRow("Mean over tasks", rates.mean, "tasks equally weighted", counted=False))
    if rates.group_mean:
        rows.append(RateRow("Mean over groups", rates.group_mean, "groups equally weighted", counted=False))
    return rows


def _make_rows(name: str, played: ConditionSummary, detail: str = "", kind: str = "high") -> Iterator[RateRow]:
    """Yield the row of a condition with its errors and invalid actions; none if every episode was an error."""
    if played.success is None:
        return
    counts = {"simulator errors": played.errors, "invalid actions": played.invalid}
    parts = [detail, *(f"{what}: {count}" for what, count in counts.items() if count)]
    yield RateRow(name, played.success.overall, "; ".join(filter(None, parts)), kind)


def _language(summary: Summary) -> Iterator[RateRow]:
    for name, played in summary.conditions.items():
        if name in LANGUAGE:
            yield from _make_rows(name, played, *LANGUAGE[name])
            if name == "swapped" and played.obeyed:
                yield RateRow("swapped, obeyed", played.obeyed.overall, "the instructed goal was reached first")


def _factors(summary: Summary) -> dict[str, list[RateRow]]:
    """Return rows by factor: the original scene, then each level on its own."""
    found: dict[str, list[RateRow]] = {}
    for name, played in summary.conditions.items():
        c = parse(name)
        if c.language == ORIGINAL and len(c.factors) == 1 and c.disturbance is None and not c.delay:
            factor, level = c.factors[0]
            found.setdefault(factor, []).extend(_make_rows(level, played))
    original = summary.conditions.get(ORIGINAL)
    base = list(_make_rows("as in training", original, kind="neutral")) if original else []
    return {factor: [*base, *rows] for factor, rows in found.items()}


def _correction(summary: Summary) -> Iterator[RateRow]:
    for name, played in summary.conditions.items():
        for what, recovery in (("disturbed", played.disturbed), ("grasped again", played.regrasped)):
            if recovery is not None:
                steps = "" if recovery.steps is None else f"; {recovery.steps:g} actions to success, median"
                yield RateRow(f"{name}: {what}", recovery.rate, f"of {recovery.rate.episodes} episodes{steps}")


def _latency(summary: Summary, hz: float | None, chunk: int | None) -> Iterator[RateRow]:
    found = success_by_delay(summary)
    if set(found) - {0}:
        for delay, interval in found.items():
            parts = [f"{1000 * delay / hz:.0f} ms"] if hz else []
            if chunk is not None and delay >= chunk:
                parts.append(f"a chunk of {chunk} actions ends before it arrives: the robot holds still")
            yield RateRow(f"{delay} actions", interval, "; ".join(parts))


def _delay_curve(summary: Summary) -> Markup | None:
    found = success_by_delay(summary)
    return plots.draw_rate_curve(found, "delay, actions", "Success by delay") if len(found) > 1 else None


def _combined(summary: Summary) -> Iterator[RateRow]:
    """Yield rows of the conditions that no other table has: several changes, or a change with another instruction."""
    for name, played in summary.conditions.items():
        c = parse(name)
        changes = len(c.factors) + (c.disturbance is not None) + (c.delay > 0)
        if changes > 1 or (changes and c.language != ORIGINAL):
            yield from _make_rows(name, played, *LANGUAGE[c.language])


def _chains(played: ConditionSummary) -> list[RateRow]:
    if played.chains is None:
        return []
    return [RateRow(f"{number} in a row", interval) for number, interval in enumerate(played.chains.in_a_row, 1)]


def _compare_published(summary: Summary, protocol: Mapping[str, Any]) -> list[PublishedRow]:
    played = summary.conditions.get(ORIGINAL)
    ours: dict[str, str] = {}
    if played and played.success:
        ours["episodes"] = f"{100 * played.success.overall.value:.1f} %"
        if played.success.group_mean:
            ours["groups"] = f"{100 * played.success.group_mean.value:.1f} %"
    if played and played.chains:
        ours["length"] = f"{played.chains.length.value:.2f} tasks"
    found = [(p, match_protocol(p, protocol)) for p in find_published(summary.benchmark)]
    notes = _note_missing_tasks(played, protocol.get("tasks"))
    return [
        PublishedRow(
            p, MEASURES[p.measure], ours.get(p.measure), ProtocolMatch([*match.differs, *notes], match.unstated)
        )
        for p, match in found
    ]


def _note_missing_tasks(played: ConditionSummary | None, tasks: int | None) -> list[str]:
    """Return a note if only a part of the suite was played."""
    rates = played.success if played and not played.chains else None
    played_tasks = len(rates.tasks) if rates else None
    if not played_tasks or not tasks or played_tasks >= tasks:
        return []
    return [f"{played_tasks} of its {tasks} tasks were played"]
