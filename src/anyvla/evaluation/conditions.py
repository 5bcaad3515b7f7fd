"""Under which conditions an episode is played: the words given, what differs in the scene, what happens meanwhile.

A condition is written as words and what is added to them: `told`, `swapped`, `told+light=dim`, `told+push@20`,
`told+delay=4`. Docs: docs/conditions.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anyvla.config import ConfigError
from anyvla.registry import suggest
from anyvla_sim.base import Benchmark

# told: the task's own phrase. paraphrased: other words for it, that no demonstration used. empty: nothing. swapped
# (contradicting): the words of another task of the same scene. unrelated (shuffled): those of another scene's task.
LANGUAGES = ("told", "paraphrased", "swapped", "unrelated", "empty")
DELAYS = (0, 1, 2, 4, 8)  # of the set `latency`, in actions
MOMENTS = (10, 30)  # of the set `correction`, in actions
SETS = ("language", "generalization", "correction", "latency")
ORIGINAL = "original"  # the scene as the benchmark has it


@dataclass(frozen=True)
class Condition:
    """How episodes are played."""

    language: str = "told"
    factors: tuple[tuple[str, str], ...] = ()  # (factor, level), sorted
    disturbance: tuple[str, int] | None = None  # (kind, the earliest action at which it happens)
    delay: int = 0  # actions that pass between a picture and the chunk that answers it; the robot does not wait

    def __str__(self) -> str:
        parts = [self.language, *(f"{factor}={level}" for factor, level in self.factors)]
        if self.disturbance is not None:
            parts.append("@".join(map(str, self.disturbance)))
        if self.delay:
            parts.append(f"delay={self.delay}")
        return "+".join(parts)


def parse(text: str) -> Condition:
    """A condition as it is written. Raises ConfigError that says what cannot be read."""
    language, *parts = text.split("+")
    if language not in LANGUAGES:
        raise ConfigError(f"condition {text!r}: it begins with one of the languages; {suggest(language, LANGUAGES)}")
    factors: dict[str, str] = {}
    disturbance, delay = None, 0
    for part in parts:
        if match := re.fullmatch(r"delay=(\d+)", part):
            delay = int(match[1])
        elif match := re.fullmatch(r"([\w-]+)=([\w-]+)", part):
            if match[1] in factors:
                raise ConfigError(f"condition {text!r}: the factor {match[1]} is there twice")
            factors[match[1]] = match[2]
        elif (match := re.fullmatch(r"([\w-]+)@(\d+)", part)) and disturbance is None:
            disturbance = (match[1], int(match[2]))
        else:
            raise ConfigError(
                f"condition {text!r}: {part!r} is none of FACTOR=LEVEL, DISTURBANCE@ACTION (one), delay=ACTIONS"
            )
    return Condition(language, tuple(sorted(factors.items())), disturbance, delay)


def parse_scene(scene: str) -> dict[str, str]:
    """What differs in a scene: "light=dim+texture=dark" -> {"light": "dim", "texture": "dark"}; "original": nothing.

    Raises ConfigError for what is written otherwise.
    """
    condition = parse("told" if scene == ORIGINAL else f"told+{scene}")
    if condition.disturbance or condition.delay:
        raise ConfigError(f"scene {scene!r}: it is made of FACTOR=LEVEL alone, or {ORIGINAL}")
    return dict(condition.factors)


def check_factors(factors: Mapping[str, str], benchmark: Benchmark, where: str) -> None:
    """Raises ConfigError, beginning with `where`, for a factor or level that the benchmark does not have."""
    for factor, level in factors.items():
        if factor not in benchmark.factors:
            known = "; ".join(f"{f}: {', '.join(levels)}" for f, levels in benchmark.factors.items()) or "none"
            raise ConfigError(f"{where}: {benchmark.name} has no factor {factor!r}; known: {known}")
        levels = benchmark.factors[factor]
        if level not in levels:
            raise ConfigError(f"{where}: {factor} has no level {level!r}; {suggest(level, list(levels))}")


def expand_conditions(written: Sequence[str], benchmark: Benchmark) -> list[Condition]:
    """The conditions of a configuration, sets written out, each once.

    Raises ConfigError for a factor, level or disturbance that the benchmark does not have.
    """
    conditions: list[Condition] = []
    for text in written:
        named = _set(text, benchmark) if text in SETS else [parse(text)]
        for condition in named:
            _check(condition, benchmark)
        conditions += [c for c in named if c not in conditions]
    return conditions


def _set(name: str, benchmark: Benchmark) -> list[Condition]:
    if name == "language":
        return [Condition(language) for language in LANGUAGES]
    if name == "latency":
        return [Condition(delay=delay) for delay in DELAYS]
    if name == "generalization":
        levels = [(factor, level) for factor, levels in benchmark.factors.items() for level in levels]
        return [Condition(), *(Condition(factors=(level,)) for level in levels)]
    disturbances = [(kind, moment) for kind in benchmark.disturbances for moment in MOMENTS]
    return [Condition(), *(Condition(disturbance=d) for d in disturbances)]


def _check(condition: Condition, benchmark: Benchmark) -> None:
    check_factors(dict(condition.factors), benchmark, f"condition {condition}")
    if condition.disturbance is not None and condition.disturbance[0] not in benchmark.disturbances:
        kinds = ", ".join(benchmark.disturbances) or "none"
        raise ConfigError(
            f"condition {condition}: {benchmark.name} has no disturbance {condition.disturbance[0]!r}; known: {kinds}"
        )
