"""Write a report that compares evaluations on the episodes that all of them share.

The first evaluation is the baseline. Different protocols are refused, as in `compare`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyvla.config import ConfigError
from anyvla.evaluation.comparison import FEWEST, Comparison, compare_many
from anyvla.evaluation.conditions import ORIGINAL
from anyvla.evaluation.intervals import Interval
from anyvla.evaluation.results import EpisodeResult, read_results
from anyvla.evaluation.statistics import summarize
from anyvla.report import plots
from anyvla.report.published import describe_protocols
from anyvla.report.template import Verdict, environment, style, write_html

REACHES = (0.1, 0.25, 0.5, 1.0)  # scales of the difference bars; the smallest one that fits all intervals is used


@dataclass(frozen=True)
class ConditionComparison:
    """The rates and differences of one condition, on the episodes that all evaluations share."""

    condition: str
    rates: Mapping[str, Interval]  # by evaluation
    compared: Mapping[str, Comparison]  # all but the first; empty if they share too few episodes
    reach: float  # the largest difference on the scale of the bars


def write_comparison_report(folders: Sequence[Path], page: Path, condition: str | None = None) -> Path:
    """Compare the evaluations in `folders`, each with a results.jsonl, and write `page`. Return its path.

    The headline is about `condition`; None: `original`, or the first condition that all share. Raises ConfigError for
    fewer than two folders, for different protocols, and if no condition has enough shared episodes.
    """
    if len(folders) < 2:
        raise ConfigError("a comparison needs at least two evaluations")
    names = make_labels(folders)
    results = {name: read_results(folder / "results.jsonl") for name, folder in zip(names, folders, strict=True)}
    html = environment().get_template("comparison.html.j2").render(_make_context(results, condition))
    return write_html(page, html)


def make_labels(folders: Sequence[Path]) -> list[str]:
    """Return the shortest distinct ends of the paths, without a final `eval`, which all runs have."""
    parts = [f.resolve().parts for f in folders]
    if len(set(parts)) < len(parts):
        raise ConfigError("a comparison needs different folders, but one occurs twice")
    shown = [p[:-1] if p[-1] == "eval" and len(p) > 2 else p for p in parts]
    if len(set(shown)) < len(shown):
        shown = parts
    for length in range(1, max(map(len, shown)) + 1):
        short_ones = ["/".join(p[-length:]) for p in shown]
        if len(set(short_ones)) == len(short_ones):
            return short_ones
    raise AssertionError("different paths have different ends")


def _make_context(results: Mapping[str, Sequence[EpisodeResult]], condition: str | None) -> dict[str, Any]:
    played = [{r.condition for r in own} for own in results.values()]
    order = dict.fromkeys(r.condition for own in results.values() for r in own)
    every = [name for name in order if all(name in own for own in played)]
    blocks = [block for name in every if (block := _compare_condition(results, name)) is not None]
    usable = [block for block in blocks if block.compared]
    wanted = condition or (ORIGINAL if any(b.condition == ORIGINAL for b in usable) else None)
    head = next((b for b in usable if wanted in (None, b.condition)), None)
    if head is None:
        asked = f"of {condition} " if condition else ""
        raise ConfigError(
            f"{', '.join(results)} have too few episodes {asked}in common (equal condition, task and seed; {FEWEST} "
            "are needed): evaluate them with the same --conditions, --tasks and --first_seed"
        )
    shared = _find_shared(results, head.condition)
    first = next(iter(results))
    return {
        "css": style(),
        "benchmark": results[first][0].benchmark,
        "names": list(results),
        "first": first,
        "head": head,
        "others": [b for b in blocks if b is not head],
        "fewest": FEWEST,
        "sentences": [judge(first, name, c) for name, c in head.compared.items()],
        "tasks": _rate_tasks(shared),
        "protocol": describe_protocols(r.protocol for own in results.values() for r in own),
        "policies": _describe_policies(results),
    }


def _find_shared(results: Mapping[str, Sequence[EpisodeResult]], condition: str) -> dict[str, list[EpisodeResult]]:
    """Return the episodes of a condition that all evaluations share, without simulator errors."""
    own = {
        name: {r.key: r for r in of if r.condition == condition and r.outcome != "error"}
        for name, of in results.items()
    }
    keys = set.intersection(*(set(of) for of in own.values()))
    return {name: [r for key, r in of.items() if key in keys] for name, of in own.items()}


def _compare_condition(results: Mapping[str, Sequence[EpisodeResult]], condition: str) -> ConditionComparison | None:
    shared = _find_shared(results, condition)
    count = len(next(iter(shared.values())))
    if not count:
        return None
    rates = {}
    for name, own in shared.items():
        found = summarize(own).conditions[condition].success
        assert found is not None  # errors are excluded
        rates[name] = found.overall
    compared = compare_many(shared) if count >= FEWEST else {}
    ends = [abs(end) for c in compared.values() for end in (c.difference.low, c.difference.high)]
    reach = next(r for r in REACHES if r >= min(1.0, max(ends, default=0.0)))
    return ConditionComparison(condition, rates, compared, reach)


def judge(first: str, other: str, compared: Comparison) -> Verdict:
    """State the result of a comparison. A difference is significant if the corrected p is below 0.05."""
    d = compared.difference
    points, low, high = (plots.format_points(value) for value in (d.value, d.low, d.high))
    numbers = (
        f"{plots.format_percent(compared.b.value)} against {plots.format_percent(compared.a.value)}, a difference of "
        f"{points} points (95 % interval {low} to {high}) over "
        f"{d.episodes} shared episodes, p = {compared.p_adjusted:.2g}"
    )
    if compared.p_adjusted < 0.05:
        return Verdict("good", f"{other} is {'better' if d.value > 0 else 'worse'} than {first}: {numbers}.")
    return Verdict("open", f"{other} and {first} do not differ significantly: {numbers}.")


def _rate_tasks(shared: Mapping[str, Sequence[EpisodeResult]]) -> dict[str, dict[str, Interval]]:
    """Return rates by task, then by evaluation; empty for chains, which have no single task."""
    found: dict[str, dict[str, Interval]] = {}
    for name, own in shared.items():
        for played in summarize(own).conditions.values():
            rates = played.success if played.chains is None else None
            for task, interval in (rates.tasks if rates else {}).items():
                found.setdefault(task, {})[name] = interval
    return found


def _describe_policies(results: Mapping[str, Sequence[EpisodeResult]]) -> dict[str, list[str]]:
    """Return the properties of each policy, a value per evaluation. If its lines differ, all values are listed."""
    sides: dict[str, dict[str, dict[str, None]]] = {}
    for name, own in results.items():
        properties = [{"checkpoint": r.checkpoint, **describe_protocols([{**r.policy, **r.versions}])} for r in own]
        properties.append(
            {
                "ms per policy call": f"{sum(r.latency_ms for r in own) / len(own):.1f}",
                "invalid actions": f"{sum(r.outcome == 'invalid_action' for r in own)} episodes",
                "simulator errors": f"{sum(r.outcome == 'error' for r in own)} episodes",
            }
        )
        for key, value in (item for found in properties for item in found.items()):
            sides.setdefault(key, {}).setdefault(name, {})[value] = None
    return {key: [", ".join(by.get(name, {"not given": None})) for name in results] for key, by in sides.items()}
