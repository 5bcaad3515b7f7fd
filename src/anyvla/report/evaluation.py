"""The page of an evaluation: `index.html` beside `results.jsonl`, computed from its lines and nothing else.

Tables with intervals by task, group and condition, chains, recovery, delay, the protocol in full, published numbers
with what differs in how they were obtained, and the videos that were filmed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from anyvla.evaluation.conditions import parse
from anyvla.evaluation.intervals import Interval
from anyvla.evaluation.results import EpisodeResult, read_results
from anyvla.evaluation.statistics import Played, Rates, Summary, delays, summarise
from anyvla.report.page import environment
from anyvla.report.published import Fit, Published, fit, published_for
from anyvla.report.run import read_clips

TEMPLATES = Path(__file__).parent / "templates"
# What each kind of words asks, and whether a high share is good ("told"), bad ("first"), or neither ("other").
LANGUAGE = {
    "told": ("the task's own words", "told"),
    "paraphrased": ("words that no demonstration used", "told"),
    "swapped": ("words of another task of the scene; its own goal all the same", "first"),
    "unrelated": ("words of another scene; its own goal all the same", "other"),
    "empty": ("no words; its own goal all the same", "other"),
}


@dataclass(frozen=True)
class Row:
    """One bar of a table."""

    name: str
    interval: Interval
    detail: str = ""
    kind: str = "told"  # a class of the style sheet


@dataclass(frozen=True)
class Beside:
    """A published number beside ours."""

    published: Published
    ours: str | None  # in its unit; None where this evaluation has no such number
    fit: Fit


def write_evaluation_page(folder: Path) -> Path:
    """Write `folder/index.html` from `folder/results.jsonl` and `folder/videos`; returns its path.

    Raises ValueError for results that cannot be read or are none, FileNotFoundError where there are none at all.
    """
    results = read_results(folder / "results.jsonl")
    summary = summarise(results)
    page = environment().get_template("evaluation.html.j2").render(_context(folder, results, summary))
    index = folder / "index.html"
    partial = folder / f".index.{os.getpid()}.partial"
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(index)
    finally:
        partial.unlink(missing_ok=True)
    return index


def _context(folder: Path, results: Sequence[EpisodeResult], summary: Summary) -> dict[str, Any]:
    main_name, main = _main(summary)
    clips = [clip for clip in read_clips(folder / "videos") if clip.path.is_file()]
    first = results[0]
    return {
        "summary": summary,
        "css": Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        "condition": main_name,
        "main": main,
        "words": {r.told: r.instruction for r in reversed(results)},
        "tasks": [] if main.chains else _tasks(main.success),
        "language": list(_language(summary)),
        "generalisation": list(_generalisation(summary)),
        "correction": list(_correction(summary)),
        "latency": list(_latency(summary, first.protocol.get("control_hz"))),
        "chains": _chains(main),
        "beside": _beside(summary, first.protocol),
        "videos": {clip.path: f"videos/{clip.path.name}" for clip in clips},
        "successes": [clip for clip in clips if clip.obeyed],
        "failures": [clip for clip in clips if not clip.obeyed],
        "protocol": list(_flat(first.protocol)),
        "policy": list(_flat(first.policy)),
        "versions": list(_flat(first.versions)),
        "mixed": len({str(sorted(r.versions.items())) for r in results}) > 1,
        "latency_ms": sum(r.latency_ms for r in results) / len(results),
        "errors": [r for r in results if r.outcome == "error"],
    }


def _main(summary: Summary) -> tuple[str, Played]:
    """The condition that the headline is about: told, or what was played first."""
    name = "told" if "told" in summary.conditions else next(iter(summary.conditions))
    return name, summary.conditions[name]


def _tasks(rates: Rates | None) -> list[Row]:
    return [Row(task, interval) for task, interval in rates.tasks.items()] if rates else []


def _language(summary: Summary) -> Iterator[Row]:
    for name, played in summary.conditions.items():
        condition = parse(name)
        if name != condition.language or played.success is None:
            continue
        detail, kind = LANGUAGE[name]
        yield Row(name, played.success.overall, detail, kind)
        if name == "swapped" and played.obeyed:
            yield Row("swapped, obeyed", played.obeyed.overall, "the told goal is the first one reached")


def _generalisation(summary: Summary) -> Iterator[Row]:
    for name, played in summary.conditions.items():
        condition = parse(name)
        if condition.factors and condition.disturbance is None and not condition.delay and played.success:
            yield Row(name, played.success.overall, LANGUAGE[condition.language][0])


def _correction(summary: Summary) -> Iterator[Row]:
    for name, played in summary.conditions.items():
        for what, recovery in (("disturbed", played.disturbed), ("grasped again", played.regrasped)):
            if recovery is not None:
                steps = "" if recovery.steps is None else f"; {recovery.steps:g} actions to success, median"
                yield Row(f"{name}: {what}", recovery.rate, f"of {recovery.rate.episodes} episodes{steps}")


def _latency(summary: Summary, hz: float | None) -> Iterator[Row]:
    found = delays(summary)
    if set(found) - {0}:
        for delay, interval in found.items():
            yield Row(f"{delay} actions", interval, f"{1000 * delay / hz:.0f} ms" if hz else "")


def _chains(played: Played) -> list[Row]:
    if played.chains is None:
        return []
    return [Row(f"{number} in a row", interval) for number, interval in enumerate(played.chains.in_a_row, 1)]


def _beside(summary: Summary, protocol: Mapping[str, Any]) -> list[Beside]:
    played = summary.conditions.get("told")
    ours: dict[str, str] = {}
    if played and played.success:
        ours["episodes"] = f"{100 * played.success.overall.value:.1f} %"
        if played.success.group_mean:
            ours["groups"] = f"{100 * played.success.group_mean.value:.1f} %"
    if played and played.chains:
        ours["length"] = f"{played.chains.length.value:.2f} tasks"
    return [Beside(p, ours.get(p.measure), fit(p, protocol)) for p in published_for(summary.benchmark)]


def _flat(values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of nested settings, as "settings.render", "fast"."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{where}{key}.")
        elif isinstance(value, list) and all(isinstance(v, int | str) for v in value):
            yield f"{where}{key}", ", ".join(map(str, value)) or "none"
        else:
            yield f"{where}{key}", "none" if value in (None, {}, []) else str(value)
