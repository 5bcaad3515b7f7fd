"""Parse and expand the conditions under which episodes are played.

A condition names the instruction that is given, and optionally changes of the scene, a disturbance and a delay:
`original`, `swapped`, `original+light=dim`, `original+push@20`, `original+delay=4`. Docs: docs/conditions.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anyvla.config import ConfigError
from anyvla.registry import suggest
from anyvla_sim.base import Benchmark

ORIGINAL = "original"  # the task's own instruction; also the scene as the benchmark has it
# paraphrased: a phrasing that no demonstration used. swapped (contradicting): the instruction of another task of the
# same scene. unrelated (shuffled): the instruction of a task of another scene. empty: an empty instruction.
LANGUAGES = (ORIGINAL, "paraphrased", "swapped", "unrelated", "empty")
OF_ANOTHER_TASK = ("swapped", "unrelated")  # the instructed task is not the one that the scene belongs to
DELAYS = (0, 1, 2, 4, 8)  # of the set `latency`, in actions
MOMENTS = (10, 30)  # of the set `correction`, in actions
SETS = ("language", "generalization", "correction", "latency")


@dataclass(frozen=True)
class Condition:
    """The conditions of an episode."""

    language: str = ORIGINAL
    factors: tuple[tuple[str, str], ...] = ()  # (factor, level), sorted
    disturbance: tuple[str, int] | None = None  # (kind, the earliest action at which it happens)
    delay: int = 0  # actions between an observation and the arrival of its chunk; the robot does not wait

    def __str__(self) -> str:
        parts = [self.language, *(f"{factor}={level}" for factor, level in self.factors)]
        if self.disturbance is not None:
            parts.append("@".join(map(str, self.disturbance)))
        if self.delay:
            parts.append(f"delay={self.delay}")
        return "+".join(parts)


def parse(text: str) -> Condition:
    """Return the condition that a text describes. Raises ConfigError with the part that cannot be read."""
    language, *parts = text.split("+")
    if language not in LANGUAGES:
        raise ConfigError(
            f"condition {text!r}: it must begin with the kind of instruction; {suggest(language, LANGUAGES)}"
        )
    factors: dict[str, str] = {}
    disturbance, delay = None, 0
    for part in parts:
        if match := re.fullmatch(r"delay=(\d+)", part):
            delay = int(match[1])
        elif match := re.fullmatch(r"([\w-]+)=([\w-]+)", part):
            if match[1] in factors:
                raise ConfigError(f"condition {text!r}: the factor {match[1]} occurs twice")
            factors[match[1]] = match[2]
        elif (match := re.fullmatch(r"([\w-]+)@(\d+)", part)) and disturbance is None:
            disturbance = (match[1], int(match[2]))
        else:
            raise ConfigError(
                f"condition {text!r}: {part!r} is none of FACTOR=LEVEL, DISTURBANCE@ACTION (one), delay=ACTIONS"
            )
    return Condition(language, tuple(sorted(factors.items())), disturbance, delay)


def parse_scene(scene: str) -> dict[str, str]:
    """Return the changed factors of a scene: "light=dim+texture=dark" -> {"light": "dim", "texture": "dark"}.

    "original" has none. Raises ConfigError for a scene in another form.
    """
    condition = parse(ORIGINAL if scene == ORIGINAL else f"{ORIGINAL}+{scene}")
    if condition.disturbance or condition.delay:
        raise ConfigError(f"scene {scene!r}: it must consist of FACTOR=LEVEL only, or be {ORIGINAL}")
    return dict(condition.factors)


def check_factors(factors: Mapping[str, str], benchmark: Benchmark, where: str) -> None:
    """Check the factors and levels of a scene. Raises a ConfigError that begins with `where` for an unknown one."""
    for factor, level in factors.items():
        if factor not in benchmark.factors:
            known = "; ".join(f"{f}: {', '.join(levels)}" for f, levels in benchmark.factors.items()) or "none"
            raise ConfigError(f"{where}: {benchmark.name} has no factor {factor!r}; known: {known}")
        levels = benchmark.factors[factor]
        if level not in levels:
            raise ConfigError(f"{where}: {factor} has no level {level!r}; {suggest(level, list(levels))}")


def expand_conditions(written: Sequence[str], benchmark: Benchmark) -> list[Condition]:
    """Return the conditions of a configuration: sets are expanded, duplicates are removed.

    Raises ConfigError for a factor, level or disturbance that the benchmark does not have.
    """
    conditions: list[Condition] = []
    for text in written:
        named = _expand_set(text, benchmark) if text in SETS else [parse(text)]
        for condition in named:
            _check_condition(condition, benchmark)
        conditions += [c for c in named if c not in conditions]
    return conditions


def _expand_set(name: str, benchmark: Benchmark) -> list[Condition]:
    if name == "language":
        return [Condition(language) for language in LANGUAGES]
    if name == "latency":
        return [Condition(delay=delay) for delay in DELAYS]
    if name == "generalization":
        levels = [(factor, level) for factor, levels in benchmark.factors.items() for level in levels]
        return [Condition(), *(Condition(factors=(level,)) for level in levels)]
    disturbances = [(kind, moment) for kind in benchmark.disturbances for moment in MOMENTS]
    return [Condition(), *(Condition(disturbance=d) for d in disturbances)]


def _check_condition(condition: Condition, benchmark: Benchmark) -> None:
    check_factors(dict(condition.factors), benchmark, f"condition {condition}")
    if condition.disturbance is not None and condition.disturbance[0] not in benchmark.disturbances:
        kinds = ", ".join(benchmark.disturbances) or "none"
        raise ConfigError(
            f"condition {condition}: {benchmark.name} has no disturbance {condition.disturbance[0]!r}; known: {kinds}"
        )
