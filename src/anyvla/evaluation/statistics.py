"""Summarize results: rates by condition, task and group, chains, recovery, and the use of language.

Every table, report and JSON summary is computed from the lines of `results.jsonl` only; docs/statistics.md has the
definitions. The names of the fields here are the keys of the JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from anyvla.evaluation.conditions import LANGUAGES, ORIGINAL, Condition, parse
from anyvla.evaluation.intervals import Interval, bootstrap_mean, mean_of_pairs, mean_of_shares, wilson
from anyvla.evaluation.results import EpisodeResult


@dataclass(frozen=True)
class Rates:
    """A success rate over all episodes, as means, and per task (sorted by name)."""

    overall: Interval
    mean_over_tasks: Interval  # equally weighted
    mean_over_groups: Interval | None  # equally weighted; None for a suite without groups
    groups: Mapping[str, Interval]  # means over the tasks of each group of the suite
    tasks: Mapping[str, Interval]


@dataclass(frozen=True)
class Chains:
    """Rates of chains: several tasks in a row without a reset."""

    in_a_row: Sequence[Interval]  # rates of chains with the first 1, 2, ... tasks solved
    average_length: Interval  # number of tasks solved in a row; by bootstrap


@dataclass(frozen=True)
class PairedRate:
    """The success rate of pairs of episodes: the two tasks of a pair, which one seed starts alike."""

    rate: Interval  # per episode; the interval is over pairs
    both: int  # pairs with two successes
    one: int
    neither: int


@dataclass(frozen=True)
class Recovery:
    """Success of the episodes in which something went wrong."""

    rate: Interval  # of success
    median_steps: float | None  # number of actions from the disturbance to success; None if unknown


@dataclass(frozen=True)
class ConditionSummary:
    """Rates and counts of the episodes of one condition."""

    episodes: int
    errors: int  # the simulator failed twice; excluded from the rates
    invalid: int  # the policy returned NaN or inf; counted as failures
    clipped: int  # episodes with actions outside the range that the environment accepts
    repeated: int  # episodes played twice because the simulator failed the first time
    success: Rates | None  # None if every episode was a simulator error
    obeyed: Rates | None  # the instructed goal was reached first
    chains: Chains | None
    pairs: Mapping[str, PairedRate]  # by the name of the group that has the two tasks; empty for a suite without pairs
    disturbed: Recovery | None  # of disturbed episodes
    regrasped: Recovery | None  # of undisturbed episodes in which the gripper closed more than once


@dataclass(frozen=True)
class Summary:
    """The results of one checkpoint on one benchmark. Rates per task go by the task of the scene."""

    benchmark: str
    checkpoint: str
    conditions: Mapping[str, ConditionSummary]  # `original` first, each kind of instruction before its variations
    language_use: Interval | None  # see `_measure_language_use`
    chance: float | None = None  # the success rate that a policy without the tested ability can reach; None: unknown

    def _rates(self, condition: str) -> Rates | None:
        return self.conditions[condition].success if condition in self.conditions else None

    @property
    def original(self) -> Rates | None:
        """Rates of success under the task's own instruction."""
        return self._rates(ORIGINAL)

    @property
    def swapped(self) -> Rates | None:
        """Rates of reaching the original goal although another task of the scene was instructed."""
        return self._rates("swapped")

    @property
    def swapped_obeyed(self) -> Rates | None:
        """Rates of reaching the instructed goal first when another task of the scene was instructed."""
        return self.conditions["swapped"].obeyed if "swapped" in self.conditions else None

    @property
    def unrelated(self) -> Rates | None:
        """Rates of reaching the task's goal although a task of another scene was instructed."""
        return self._rates("unrelated")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: `success`, `success_swapped`, `success_shuffled`, `swapped_obeyed`, `tasks`, ...

        Each rate is `{"value", "low", "high", "episodes"}`, or None for a condition without episodes.
        """
        named = {
            "success": self.original,
            "success_swapped": self.swapped,
            "success_shuffled": self.unrelated,
            "swapped_obeyed": self.swapped_obeyed,
        }
        tasks: dict[str, dict[str, Any]] = {}
        for key, rates in named.items():
            for task, interval in (rates.tasks if rates else {}).items():
                tasks.setdefault(task, {})[key] = asdict(interval)
        return {
            "benchmark": self.benchmark,
            "checkpoint": self.checkpoint,
            **{key: asdict(rates.overall) if rates else None for key, rates in named.items()},
            "language_use": asdict(self.language_use) if self.language_use else None,
            "chance": self.chance,
            "tasks": tasks,
            "conditions": {name: asdict(played) for name, played in self.conditions.items()},
        }


def summarize(results: Sequence[EpisodeResult]) -> Summary:
    """Summarize the episodes of one checkpoint on one benchmark.

    Raises ValueError for no results, for several checkpoints or benchmarks, and for a duplicate episode, which would
    narrow the interval falsely.
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
            raise ValueError(f"the episode {r.key}, instruction {r.instruction!r}, is there twice")
        seen.add(r.key)
    conditions: dict[str, list[EpisodeResult]] = {}
    for r in results:
        conditions.setdefault(r.condition, []).append(r)
    # The order of the lines is random if conditions are played together.
    conditions = {name: conditions[name] for name in sorted(conditions, key=_rank_condition)}
    return Summary(
        benchmark=results[0].benchmark,
        checkpoint=results[0].checkpoint,
        conditions={name: _summarize_condition(own) for name, own in conditions.items()},
        language_use=_measure_language_use(conditions),
        chance=results[0].protocol.get("chance"),
    )


def _rank_condition(name: str) -> tuple[int, bool]:
    condition = parse(name)
    return LANGUAGES.index(condition.language), condition != Condition(condition.language)


def _summarize_condition(results: Sequence[EpisodeResult]) -> ConditionSummary:
    counted = [r for r in results if r.outcome != "error"]
    chained = [r for r in counted if r.length > 1]
    disturbed = [r for r in counted if "disturbed_at" in r.extra]
    regrasped = [r for r in counted if "disturbed_at" not in r.extra and r.extra.get("grasps", 0) > 1]
    return ConditionSummary(
        episodes=len(results),
        errors=len(results) - len(counted),
        invalid=sum(r.outcome == "invalid_action" for r in results),
        clipped=sum(r.clipped > 0 for r in results),
        repeated=sum(r.attempts > 1 for r in results),
        success=_compute_rates(counted, lambda r: r.success),
        obeyed=_compute_rates([r for r in counted if r.judges_all], lambda r: r.obeyed),
        chains=_summarize_chains(chained) if chained else None,
        pairs=_summarize_pairs(counted),
        disturbed=_summarize_recovery(disturbed) if disturbed else None,
        regrasped=_summarize_recovery(regrasped) if regrasped else None,
    )


def _compute_rates(results: Sequence[EpisodeResult], counts: Callable[[EpisodeResult], bool]) -> Rates | None:
    outcomes: dict[str, list[bool]] = {}
    for r in sorted(results, key=lambda r: r.task):
        outcomes.setdefault(r.task, []).append(counts(r))
    if not outcomes:
        return None
    tasks = {task: wilson(sum(o), len(o)) for task, o in outcomes.items()}
    every = [o for group in outcomes.values() for o in group]
    named: Mapping[str, Sequence[str]] = results[0].protocol.get("groups", {})
    members = {name: [tasks[t] for t in wanted if t in tasks] for name, wanted in named.items()}
    members = {name: own for name, own in members.items() if own}
    weights = [1 / len(own) for own in members.values() for _ in own]
    return Rates(
        overall=wilson(sum(every), len(every)),
        mean_over_tasks=mean_of_shares(list(tasks.values())),
        mean_over_groups=mean_of_shares([i for own in members.values() for i in own], weights) if members else None,
        groups={name: mean_of_shares(own) for name, own in members.items()},
        tasks=tasks,
    )


def _summarize_chains(results: Sequence[EpisodeResult]) -> Chains:
    longest = max(r.length for r in results)
    done = [r.completed for r in results]
    row = [wilson(sum(d >= k for d in done), len(done)) for k in range(1, longest + 1)]
    return Chains(row, bootstrap_mean(done))


def _summarize_pairs(results: Sequence[EpisodeResult]) -> dict[str, PairedRate]:
    """Return the rates of the pairs of the suite, over the seeds for which both of a pair were played."""
    found = {}
    protocol = results[0].protocol if results else {}
    names = {tuple(tasks): name for name, tasks in protocol.get("groups", {}).items()}
    won = {(r.task, r.seed): r.success for r in results}
    for one, other in protocol.get("pairs", ()):
        counts = Counter(
            won[one, seed] + won[other, seed] for task, seed in won if task == one and (other, seed) in won
        )
        if counts:
            rate = mean_of_pairs(counts[2], counts[0], counts.total())
            found[names.get((one, other), f"{one}, {other}")] = PairedRate(rate, counts[2], counts[1], counts[0])
    return found


def _summarize_recovery(results: Sequence[EpisodeResult]) -> Recovery:
    won = [r for r in results if r.success]
    steps = [r.steps - r.extra["disturbed_at"] for r in won if "disturbed_at" in r.extra]
    return Recovery(wilson(len(won), len(results)), float(median(steps)) if steps else None)


def _measure_language_use(conditions: Mapping[str, Sequence[EpisodeResult]]) -> Interval | None:
    """Return how often the instructed goal is reached first where only the instruction identifies it.

    The rate is over the start states that were played under both `original` and `swapped`; each counts twice. A policy
    that ignores its instruction gets at most one of the two right. Of a chain, the first task counts. CALVIN's chains
    have no such rate, because only the goal of the current task is judged.
    """
    own, other = (
        {(r.task, r.seed): r for r in conditions.get(name, ()) if r.outcome != "error" and r.judges_all}
        for name in (ORIGINAL, "swapped")
    )
    both = [r for key in own.keys() & other.keys() for r in (own[key], other[key])]
    return wilson(sum(r.first_obeyed for r in both), len(both)) if both else None


def success_over_curve(results: Sequence[EpisodeResult], condition: ConditionSummary) -> dict[int, Interval]:
    """Return the success rates of a condition over the number that the suite declares, such as a delay in actions."""
    numbers = (results[0].protocol.get("curve") or {}).get("groups", {})
    rates = dict(condition.success.groups) if condition.success else {}
    rates |= {name: pair.rate for name, pair in condition.pairs.items()}
    return {number: rates[name] for name, number in numbers.items() if name in rates}


def success_by_delay(summary: Summary) -> dict[int, Interval]:
    """Return the success rate per delay in actions, over the conditions that change nothing else."""
    found = {}
    for name, of_condition in summary.conditions.items():
        condition = parse(name)
        if condition == Condition(delay=condition.delay) and of_condition.success:
            found[condition.delay] = of_condition.success.overall
    return dict(sorted(found.items()))
