"""What the lines of an evaluation say: rates by condition, task and group, chains, recovery, use of language.

Every table, page and JSON summary is computed from the lines of `results.jsonl` and nothing else. Definitions:
docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from anyvla.evaluation.conditions import LANGUAGES, Condition, parse
from anyvla.evaluation.intervals import Interval, bootstrap_mean, mean_of_shares, wilson
from anyvla.evaluation.results import EpisodeResult

__all__ = ["Interval", "Summary", "summarize", "wilson"]


@dataclass(frozen=True)
class Rates:
    """One share: over all episodes, per task (by name: the order in which they end is chance), and as means."""

    overall: Interval  # of all episodes
    tasks: Mapping[str, Interval]
    mean: Interval  # over tasks, each worth the same
    groups: Mapping[str, Interval]  # over the tasks of each group that the suite names
    group_mean: Interval | None  # over groups, each worth the same

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "overall": self.overall.to_dict(),
            "mean_over_tasks": self.mean.to_dict(),
            "mean_over_groups": self.group_mean.to_dict() if self.group_mean else None,
            "groups": {name: interval.to_dict() for name, interval in self.groups.items()},
            "tasks": {name: interval.to_dict() for name, interval in self.tasks.items()},
        }


@dataclass(frozen=True)
class Chains:
    """Tasks in a row without a reset."""

    in_a_row: Sequence[Interval]  # share of chains of which the first 1, 2, ... tasks were solved
    length: Interval  # tasks solved in a row, on average; by bootstrap

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"in_a_row": [i.to_dict() for i in self.in_a_row], "average_length": self.length.to_dict()}


@dataclass(frozen=True)
class Recovery:
    """What became of episodes in which something went wrong."""

    rate: Interval  # share of them that succeeded all the same
    steps: float | None  # median of the actions from the disturbance to success; None if none succeeded

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"rate": self.rate.to_dict(), "median_steps": self.steps}


@dataclass(frozen=True)
class ConditionSummary:
    """All episodes of one condition."""

    success: Rates | None  # None if every episode was an error of the simulator
    obeyed: Rates | None  # the first goal reached is the one in the words
    episodes: int
    errors: int  # the simulator failed twice: counted neither way
    invalid: int  # the policy gave NaN or inf: counted as failures
    clipped: int  # episodes with actions outside of what the environment accepts
    repeated: int  # episodes that were played twice because the simulator failed the first time
    chains: Chains | None
    disturbed: Recovery | None  # of episodes that were disturbed
    regrasped: Recovery | None  # of undisturbed episodes in which the gripper closed more than once

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        counts = ("episodes", "errors", "invalid", "clipped", "repeated")
        parts = ("success", "obeyed", "chains", "disturbed", "regrasped")
        found = {name: getattr(self, name) for name in parts}
        return {c: getattr(self, c) for c in counts} | {n: p.to_dict() if p else None for n, p in found.items()}


@dataclass(frozen=True)
class Summary:
    """What the lines of one checkpoint on one benchmark say.

    Tasks are those the episodes belong to, whatever words were given.
    """

    benchmark: str
    checkpoint: str
    conditions: Mapping[str, ConditionSummary]  # `told` first, each kind of words before what else may differ
    language_use: Interval | None  # see `_language_use`; None for chains

    def _rates(self, condition: str) -> Rates | None:
        return self.conditions[condition].success if condition in self.conditions else None

    @property
    def told(self) -> Rates | None:
        """Own words: the task's goal was reached."""
        return self._rates("told")

    @property
    def swapped(self) -> Rates | None:
        """The words of another task of the scene: the task's own (first) goal was reached all the same."""
        return self._rates("swapped")

    @property
    def swapped_obeyed(self) -> Rates | None:
        """The words of another task of the scene: the told goal was the first one reached."""
        return self.conditions["swapped"].obeyed if "swapped" in self.conditions else None

    @property
    def unrelated(self) -> Rates | None:
        """Words of another scene: the task's goal was reached all the same."""
        return self._rates("unrelated")

    def to_dict(self) -> dict[str, Any]:
        """For JSON: `success`, `success_swapped`, `success_shuffled`, `swapped_obeyed`, the same under `tasks`, ...

        Each is `{"value", "low", "high", "episodes"}`, or None for a condition without episodes.
        """
        named = {
            "success": self.told,
            "success_swapped": self.swapped,
            "success_shuffled": self.unrelated,
            "swapped_obeyed": self.swapped_obeyed,
        }
        tasks: dict[str, dict[str, Any]] = {}
        for key, rates in named.items():
            for task, interval in (rates.tasks if rates else {}).items():
                tasks.setdefault(task, {})[key] = interval.to_dict()
        return {
            "benchmark": self.benchmark,
            "checkpoint": self.checkpoint,
            **{key: rates.overall.to_dict() if rates else None for key, rates in named.items()},
            "language_use": self.language_use.to_dict() if self.language_use else None,
            "tasks": tasks,
            "conditions": {name: played.to_dict() for name, played in self.conditions.items()},
        }


def summarize(results: Sequence[EpisodeResult], confidence: float = 0.95) -> Summary:
    """Count the episodes of one checkpoint on one benchmark.

    Raises ValueError when there are none, when checkpoints or benchmarks are mixed, and when an episode is there twice
    (its weight would narrow the interval falsely).
    """
    if not results:
        raise ValueError("there are no results to summarize; `anyvla eval` makes them")
    for what in ("checkpoint", "benchmark"):
        given = sorted({getattr(r, what) for r in results})
        if len(given) > 1:
            raise ValueError(f"the results mix {len(given)} {what}s ({', '.join(given)}): summarize one at a time")
    seen: set[str] = set()
    for r in results:
        if r.key in seen:
            raise ValueError(f"the episode {r.key}, told {r.instruction!r}, is there twice")
        seen.add(r.key)
    conditions: dict[str, list[EpisodeResult]] = {}
    for r in results:
        conditions.setdefault(r.condition, []).append(r)
    # Lines stand as episodes ended, which is chance where conditions are played together.
    conditions = {name: conditions[name] for name in sorted(conditions, key=_order)}
    return Summary(
        benchmark=results[0].benchmark,
        checkpoint=results[0].checkpoint,
        conditions={name: _played(own, confidence) for name, own in conditions.items()},
        language_use=_language_use(conditions, confidence),
    )


def _order(name: str) -> tuple[int, bool]:
    condition = parse(name)
    return LANGUAGES.index(condition.language), condition != Condition(condition.language)


def _played(results: Sequence[EpisodeResult], confidence: float) -> ConditionSummary:
    counted = [r for r in results if r.outcome != "error"]
    chained = [r for r in counted if r.length > 1]
    disturbed = [r for r in counted if "disturbed_at" in r.extra]
    regrasped = [r for r in counted if "disturbed_at" not in r.extra and r.extra.get("grasps", 0) > 1]
    return ConditionSummary(
        success=_rates(counted, lambda r: r.success, confidence),
        obeyed=_rates([r for r in counted if r.length == 1], lambda r: r.reached == r.told, confidence),
        episodes=len(results),
        errors=len(results) - len(counted),
        invalid=sum(r.outcome == "invalid_action" for r in results),
        clipped=sum(r.clipped > 0 for r in results),
        repeated=sum(r.attempts > 1 for r in results),
        chains=_chains(chained, confidence) if chained else None,
        disturbed=_recovery(disturbed, confidence) if disturbed else None,
        regrasped=_recovery(regrasped, confidence) if regrasped else None,
    )


def _rates(
    results: Sequence[EpisodeResult], counts: Callable[[EpisodeResult], bool], confidence: float
) -> Rates | None:
    outcomes: dict[str, list[bool]] = {}
    for r in sorted(results, key=lambda r: r.task):
        outcomes.setdefault(r.task, []).append(counts(r))
    if not outcomes:
        return None
    tasks = {task: wilson(sum(o), len(o), confidence) for task, o in outcomes.items()}
    every = [o for group in outcomes.values() for o in group]
    named: Mapping[str, Sequence[str]] = results[0].protocol.get("groups", {})
    members = {name: [tasks[t] for t in wanted if t in tasks] for name, wanted in named.items()}
    members = {name: own for name, own in members.items() if own}
    weights = [1 / len(own) for own in members.values() for _ in own]
    return Rates(
        overall=wilson(sum(every), len(every), confidence),
        tasks=tasks,
        mean=mean_of_shares(list(tasks.values())),
        groups={name: mean_of_shares(own) for name, own in members.items()},
        group_mean=mean_of_shares([i for own in members.values() for i in own], weights) if members else None,
    )


def _chains(results: Sequence[EpisodeResult], confidence: float) -> Chains:
    longest = max(r.length for r in results)
    done = [r.completed for r in results]
    row = [wilson(sum(d >= k for d in done), len(done), confidence) for k in range(1, longest + 1)]
    return Chains(row, bootstrap_mean(done, confidence))


def _recovery(results: Sequence[EpisodeResult], confidence: float) -> Recovery:
    won = [r for r in results if r.success]
    steps = [r.steps - r.extra["disturbed_at"] for r in won if "disturbed_at" in r.extra]
    return Recovery(wilson(len(won), len(results), confidence), float(median(steps)) if steps else None)


def _language_use(conditions: Mapping[str, Sequence[EpisodeResult]], confidence: float) -> Interval | None:
    """How often the first goal reached is the one in the words, where only the words can tell.

    Over the start states that were played both with the task's own words and with those of another task of the scene,
    nothing else changed; each counts twice. A policy that ignores its words gets at most one of the two right. In a
    chain only the goal of the task whose turn it is can be judged, so there is no such number.
    """
    own, other = (
        {(r.task, r.seed): r for r in conditions.get(name, ()) if r.outcome != "error" and r.length == 1}
        for name in ("told", "swapped")
    )
    both = [r for key in own.keys() & other.keys() for r in (own[key], other[key])]
    return wilson(sum(r.reached == r.told for r in both), len(both), confidence) if both else None


def success_by_delay(summary: Summary) -> dict[int, Interval]:
    """Success by the actions that pass before a chunk is known, among conditions that differ in nothing else."""
    found = {}
    for name, played in summary.conditions.items():
        condition = parse(name)
        if condition.language == "told" and not condition.factors and not condition.disturbance and played.success:
            found[condition.delay] = played.success.overall
    return dict(sorted(found.items()))
