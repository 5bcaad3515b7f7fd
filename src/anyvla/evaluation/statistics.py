"""What a success rate is worth: result lines on disk, Wilson intervals, and summaries per protocol and task.

Every table, page and JSON summary is computed from the lines of `results.jsonl` and nothing else. A rate never travels
without its interval: 20 successes of 20 are anything from 84 % up.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from anyvla.evaluation.results import EpisodeResult


@dataclass(frozen=True)
class Interval:
    """A share of episodes with its confidence interval; all three in [0, 1]."""

    value: float
    low: float
    high: float
    episodes: int

    @property
    def successes(self) -> int:
        """How many of the episodes counted."""
        return round(self.value * self.episodes)

    def to_dict(self) -> dict[str, float | int]:
        """`{"value", "low", "high", "episodes"}`, for JSON."""
        return dataclasses.asdict(self)


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """The Wilson score interval of `successes` out of `n` (Wilson 1927); honest at 0 %, at 100 % and for small n.

    Raises ValueError for n < 1, for successes outside 0..n and for a confidence outside (0, 1).
    """
    if n < 1:
        raise ValueError(f"a success rate needs at least one episode, got n={n}")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in 0..{n}, got {successes}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, as in 0.95, got {confidence}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / n
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    # At the ends the bound is the end itself; floating point alone would put it a hair beside.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(rate, low, high, n)


@dataclass(frozen=True)
class Rates:
    """One share, over all episodes and per task (in the order in which tasks first appear)."""

    overall: Interval
    tasks: Mapping[str, Interval]


@dataclass(frozen=True)
class Summary:
    """What the lines of one checkpoint on one benchmark say; a protocol without episodes is None.

    Tasks are those the episodes belong to, whatever words were given.
    """

    benchmark: str
    checkpoint: str
    told: Rates | None  # own words: the task's goal was reached
    swapped: Rates | None  # the opposite's words: the task's own (first) goal was reached all the same
    swapped_obeyed: Rates | None  # the opposite's words: the told goal was the first one reached
    unrelated: Rates | None  # words of another scene: the task's goal was reached all the same

    def to_dict(self) -> dict[str, Any]:
        """For JSON: `success`, `success_swapped`, `success_shuffled`, `swapped_obeyed`, then the same under `tasks`.

        Each is `{"value", "low", "high", "episodes"}`, or None for a protocol without episodes.
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
        overall = {key: rates.overall.to_dict() if rates else None for key, rates in named.items()}
        return {"benchmark": self.benchmark, "checkpoint": self.checkpoint, **overall, "tasks": tasks}


def summarise(results: Sequence[EpisodeResult], confidence: float = 0.95) -> Summary:
    """Count the episodes of one checkpoint on one benchmark.

    Raises ValueError when there are none, when checkpoints or benchmarks are mixed, and when an episode is there twice
    (its weight would narrow the interval falsely).
    """
    if not results:
        raise ValueError("there are no results to summarise; `anyvla eval` makes them")
    for what in ("checkpoint", "benchmark"):
        given = sorted({getattr(r, what) for r in results})
        if len(given) > 1:
            raise ValueError(f"the results mix {len(given)} {what}s ({', '.join(given)}): summarise one at a time")
    seen: set[tuple[str, str, str, str, int]] = set()
    for r in results:
        key = (r.condition, r.task, r.told, r.instruction, r.seed)
        if key in seen:
            raise ValueError(f"the episode {r.key}, told {r.instruction!r}, is there twice")
        seen.add(key)

    def rates(protocol: str, counts: Callable[[EpisodeResult], bool]) -> Rates | None:
        outcomes: dict[str, list[bool]] = {}
        for r in results:
            if r.condition == protocol:
                outcomes.setdefault(r.task, []).append(counts(r))
        if not outcomes:
            return None
        tasks = {task: wilson(sum(o), len(o), confidence) for task, o in outcomes.items()}
        every = [o for group in outcomes.values() for o in group]
        return Rates(wilson(sum(every), len(every), confidence), tasks)

    return Summary(
        benchmark=results[0].benchmark,
        checkpoint=results[0].checkpoint,
        told=rates("told", lambda r: r.success),
        swapped=rates("swapped", lambda r: r.success),
        swapped_obeyed=rates("swapped", lambda r: r.reached == r.told),
        unrelated=rates("unrelated", lambda r: r.success),
    )
