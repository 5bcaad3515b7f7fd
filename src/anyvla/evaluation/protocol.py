"""Which episodes an evaluation plays: the same list for every policy, a pure function of suite and configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT, ConfigError
from anyvla.evaluation.conditions import SETS, Condition, parse
from anyvla.evaluation.suites import FIRST_DEMONSTRATION_SEED
from anyvla.limits import COUNT, EPISODES, GB, PROCESSES, STEPS, WEIGHT
from anyvla.observing import Implausible
from anyvla_sim.base import Suite, Task

VERSION = 1  # of what the harness means by its settings; a change of it makes results incomparable
CHAIN = "chain"  # the task of an episode that plays several in a row


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluationConfig:
    """The section `evaluation:` of a recipe."""

    conditions: tuple[str, ...] = ("told", "swapped", "unrelated")  # see `conditions`; or sets: language, latency, ...
    tasks: tuple[str, ...] = ()  # of the suite; none: all
    # per task (of chains: in all); None: as the suite's authors count
    episodes: int | None = Field(default=None, ge=1, le=EPISODES)
    unrelated_episodes: int | None = Field(
        default=None, ge=1, le=EPISODES
    )  # per task, under `unrelated`; None: the same
    first_seed: int = Field(default=0, ge=0, le=COUNT)  # of the start states
    horizon: int | None = Field(default=None, ge=1, le=COUNT)  # actions; None: the suite's
    # actions of a chunk before predicting again; None: as trained
    execute: int | None = Field(default=None, ge=1, le=STEPS)
    ensemble: Literal["none", "temporal"] = "none"  # temporal: overlapping chunks are averaged (ACT, arXiv 2304.13705)
    implausible: Implausible | None = None  # proprio far outside of the training data: error, warn; None: as trained
    processes: int | None = Field(default=None, ge=1, le=PROCESSES)  # that simulate; None: one per core
    slots: int = Field(default=3, ge=1, le=PROCESSES)  # episodes at a time in each process
    hang_s: float = Field(default=180.0, gt=0, le=WEIGHT)  # a simulator that says nothing for so long is replaced
    memory_gb: float = Field(default=8.0, gt=0, le=GB)  # a simulator that holds more is replaced between episodes
    # at most; one success per task and each swapped pair are always filmed
    failure_videos: int = Field(default=6, ge=0, le=COUNT)

    def __post_init__(self) -> None:
        for condition in self.conditions:
            if condition not in SETS:
                parse(condition)
        if not self.conditions:
            raise ValueError("conditions: name one at least, as in [told]")


@plain_dataclass(frozen=True)
class Subtask:
    """One thing that is told: an episode of a single task has one, a chain several."""

    task: str  # whose goal counts
    told: str  # the task whose words are given
    instruction: str | None  # None: the environment says it after the reset


@plain_dataclass(frozen=True)
class EpisodePlan:
    """One episode to play."""

    condition: Condition
    task: str
    seed: int
    stages: tuple[Subtask, ...]

    @property
    def key(self) -> str:
        """Unique within an evaluation."""
        return f"{self.condition}-{self.task}-{self.seed}"


def plan(suite: Suite, config: EvaluationConfig, conditions: Sequence[Condition]) -> list[EpisodePlan]:
    """All episodes, seed by seed, so that an interrupted evaluation has seen every task about equally often.

    Raises ConfigError for a task that the suite does not have, and for more episodes than it has start states.
    """
    episodes = [episode for condition in conditions for episode in _of(condition, suite, config)]
    if not episodes:
        raise ConfigError(
            f"suite {suite.name} has no episodes under {', '.join(map(str, conditions))}: no two of its tasks share a "
            "scene (swapped), or all do (unrelated), or none has other words (paraphrased)"
        )
    return episodes


def settings(suite: Suite, config: EvaluationConfig) -> dict[str, Any]:
    """JSON: the harness's side of what makes two results comparable."""
    return {
        "harness": VERSION,
        "horizon": config.horizon or {t.name: suite.limit(t.name) for t in suite.tasks if t.horizon} or suite.horizon,
        "judged": suite.judged,
        "tasks": len(suite.tasks),
        "groups": {name: list(tasks) for name, tasks in suite.groups.items()},
        "episodes": config.episodes or suite.episodes,
        "first_seed": config.first_seed,
    }


def _of(condition: Condition, suite: Suite, config: EvaluationConfig) -> Iterator[EpisodePlan]:
    if suite.chains:
        yield from _chains(condition, suite, config)
        return
    tasks = [suite.task(name) for name in _asked(suite, config)]
    asked = config.unrelated_episodes if condition.language == "unrelated" else None
    counts = {t.name: asked or config.episodes or t.episodes or suite.episodes for t in tasks}
    for task in tasks:
        _check_seeds(suite, task, config.first_seed, counts[task.name])
    for number in range(max(counts.values())):
        for task in tasks:
            seed = config.first_seed + number  # alone decides what is told, so that `key` says it all
            stage = _stage(condition.language, suite, task, seed) if number < counts[task.name] else None
            if stage is not None:
                yield EpisodePlan(condition, task.name, seed, (stage,))


def _chains(condition: Condition, suite: Suite, config: EvaluationConfig) -> Iterator[EpisodePlan]:
    count = config.episodes or suite.episodes
    if config.first_seed + count > len(suite.chains):
        raise ConfigError(
            f"suite {suite.name} has {len(suite.chains)} chains; {count} from number {config.first_seed} on are asked"
        )
    for seed in range(config.first_seed, config.first_seed + count):
        stages = [_stage(condition.language, suite, suite.task(name), seed) for name in suite.chains[seed]]
        told = tuple(stage for stage in stages if stage is not None)
        if len(told) == len(stages):
            yield EpisodePlan(condition, CHAIN, seed, told)


def _asked(suite: Suite, config: EvaluationConfig) -> list[str]:
    try:
        return [suite.task(name).name for name in config.tasks] or [task.name for task in suite.tasks]
    except ValueError as error:
        raise ConfigError(f"evaluation.tasks: {error}") from None


def _check_seeds(suite: Suite, task: Task, first: int, count: int) -> None:
    starts = task.episodes or suite.starts
    if starts is not None and first + count > starts:
        raise ConfigError(
            f"{suite.name}/{task.name} has {starts} start states; {count} from number {first} on are asked: "
            f"--episodes {starts - first} at most"
        )
    if first + count > FIRST_DEMONSTRATION_SEED:
        raise ConfigError(f"seeds from {FIRST_DEMONSTRATION_SEED} on belong to demonstrations; lower first_seed")


def _stage(language: str, suite: Suite, task: Task, seed: int) -> Subtask | None:
    """What is told; None if there is no such thing to tell."""
    if language == "empty":
        return Subtask(task.name, task.name, "")
    told, phrases = task, task.instructions
    if language == "paraphrased":
        phrases = task.paraphrases
        if not phrases:
            return None
    elif language in ("swapped", "unrelated"):
        inside = language == "swapped"
        others = [t for t in suite.tasks if (t.scene == task.scene) == inside and t.name != task.name]
        others = [t for t in others if t.instructions]
        if not others:
            return None
        told = others[seed % len(others)]
        phrases = told.instructions
    return Subtask(task.name, told.name, phrases[seed % len(phrases)] if phrases else None)
