"""The page of an evaluation: `index.html` beside `results.jsonl`, computed from its lines and nothing else.

Tables with intervals by task, group and condition, chains, recovery, delay, the protocol in full, published numbers
with what differs in how they were obtained, and the videos that were filmed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from anyvla.evaluation.conditions import parse
from anyvla.evaluation.intervals import Interval
from anyvla.evaluation.results import EpisodeResult, read_results
from anyvla.evaluation.statistics import ConditionSummary, Rates, Summary, success_by_delay, summarize
from anyvla.report import plots
from anyvla.report.published import ProtocolMatch, PublishedResult, describe_protocols, find_published, fit
from anyvla.report.run_folder import read_clips
from anyvla.report.template import environment, style, write_html

# What each kind of words asks, and whether a high share is good ("told"), bad ("first"), or neither ("other").
LANGUAGE = {
    "told": ("the task's own words", "told"),
    "paraphrased": ("words that no demonstration used", "told"),
    "swapped": ("words of another task of the scene; its own goal all the same", "first"),
    "unrelated": ("words of another scene; its own goal all the same", "other"),
    "empty": ("no words; its own goal all the same", "other"),
}
MEASURES = {"episodes": "over all episodes", "groups": "mean over groups", "length": "average length of chains"}


@dataclass(frozen=True)
class RateRow:
    """One bar of a table."""

    name: str
    interval: Interval
    detail: str = ""
    kind: str = "told"  # a class of the style sheet
    counted: bool = True  # a share of episodes, not a mean of shares


@dataclass(frozen=True)
class PublishedRow:
    """A published number beside ours."""

    published: PublishedResult
    measure: str
    ours: str | None  # in its unit; None where this evaluation has no such number
    fit: ProtocolMatch


def write_evaluation_report(folder: Path, page: Path | None = None) -> Path:
    """Write `page` from `folder/results.jsonl` and `folder/videos`; returns its path. None: `folder/index.html`.

    Videos are looked for in the folder `videos` beside the page. Raises ValueError for results that cannot be read or
    are none, FileNotFoundError where there is no file of them.
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
        "beside": _beside(summary, protocol),
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
    """The condition that the headline is about: told, or what was played first."""
    name = "told" if "told" in summary.conditions else next(iter(summary.conditions))
    return name, summary.conditions[name]


def _tasks(rates: Rates | None) -> list[RateRow]:
    return [RateRow(task, interval) for task, interval in rates.tasks.items()] if rates else []


def _means(rates: Rates | None) -> list[RateRow]:
    if rates is None:
        return []
    rows = [RateRow(name, i, "mean over the group's tasks", counted=False) for name, i in rates.groups.items()]
    rows.append(RateRow("Mean over tasks", rates.mean, "each task worth the same", counted=False))
    if rates.group_mean:
        rows.append(RateRow("Mean over groups", rates.group_mean, "each group worth the same", counted=False))
    return rows


def _played(name: str, played: ConditionSummary, detail: str = "", kind: str = "told") -> Iterator[RateRow]:
    """A row of its success, with what was not a plain failure; none if every episode was an error."""
    if played.success is None:
        return
    counts = {"simulator errors": played.errors, "invalid actions": played.invalid}
    parts = [detail, *(f"{what}: {count}" for what, count in counts.items() if count)]
    yield RateRow(name, played.success.overall, "; ".join(filter(None, parts)), kind)


def _language(summary: Summary) -> Iterator[RateRow]:
    for name, played in summary.conditions.items():
        if name in LANGUAGE:
            yield from _played(name, played, *LANGUAGE[name])
            if name == "swapped" and played.obeyed:
                yield RateRow("swapped, obeyed", played.obeyed.overall, "the told goal is the first one reached")


def _factors(summary: Summary) -> dict[str, list[RateRow]]:
    """By factor, its levels alone, below the scene as in training."""
    found: dict[str, list[RateRow]] = {}
    for name, played in summary.conditions.items():
        c = parse(name)
        if c.language == "told" and len(c.factors) == 1 and c.disturbance is None and not c.delay:
            factor, level = c.factors[0]
            found.setdefault(factor, []).extend(_played(level, played))
    told = summary.conditions.get("told")
    own = list(_played("as in training", told, kind="other")) if told else []
    return {factor: [*own, *rows] for factor, rows in found.items()}


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
                parts.append(f"a chunk of {chunk} actions is over before it is known: the robot holds still")
            yield RateRow(f"{delay} actions", interval, "; ".join(parts))


def _delay_curve(summary: Summary) -> Markup | None:
    found = success_by_delay(summary)
    return plots.rate_curve(found, "delay, actions", "Success by delay") if len(found) > 1 else None


def _combined(summary: Summary) -> Iterator[RateRow]:
    """What no other table has: more than one thing differs, or other words and another scene."""
    for name, played in summary.conditions.items():
        c = parse(name)
        changes = len(c.factors) + (c.disturbance is not None) + (c.delay > 0)
        if changes > 1 or (changes and c.language != "told"):
            yield from _played(name, played, *LANGUAGE[c.language])


def _chains(played: ConditionSummary) -> list[RateRow]:
    if played.chains is None:
        return []
    return [RateRow(f"{number} in a row", interval) for number, interval in enumerate(played.chains.in_a_row, 1)]


def _beside(summary: Summary, protocol: Mapping[str, Any]) -> list[PublishedRow]:
    played = summary.conditions.get("told")
    ours: dict[str, str] = {}
    if played and played.success:
        ours["episodes"] = f"{100 * played.success.overall.value:.1f} %"
        if played.success.group_mean:
            ours["groups"] = f"{100 * played.success.group_mean.value:.1f} %"
    if played and played.chains:
        ours["length"] = f"{played.chains.length.value:.2f} tasks"
    found = [(p, fit(p, protocol)) for p in find_published(summary.benchmark)]
    part = _part(played, protocol.get("tasks"))
    return [
        PublishedRow(p, MEASURES[p.measure], ours.get(p.measure), ProtocolMatch([*f.differs, *part], f.unstated))
        for p, f in found
    ]


def _part(played: ConditionSummary | None, tasks: int | None) -> list[str]:
    """What of the suite was not played, if anything."""
    rates = played.success if played and not played.chains else None
    there = len(rates.tasks) if rates else None
    return [f"{there} of its {tasks} tasks were played"] if there and tasks and there < tasks else []
