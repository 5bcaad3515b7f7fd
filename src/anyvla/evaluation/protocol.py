"""List the episodes of an evaluation. The list depends on suite and configuration only, never on the policy."""

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

VERSION = 1  # of the harness; results of different versions are not comparable
CHAIN = "chain"  # the task name of an episode that plays several tasks in a row


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluationConfig:
    """The section `evaluation:` of a recipe."""

    conditions: tuple[str, ...] = ("original", "swapped", "unrelated")  # or sets, as language and latency
    tasks: tuple[str, ...] = ()  # of the suite; empty: all
    # per task (for chains: in total); None: as the suite's authors count
    episodes: int | None = Field(default=None, ge=1, le=EPISODES)
    unrelated_episodes: int | None = Field(default=None, ge=1, le=EPISODES)  # per task; None: as `episodes`
    first_seed: int = Field(default=0, ge=0, le=COUNT)  # of the start states
    horizon: int | None = Field(default=None, ge=1, le=COUNT)  # actions; None: the suite's
    # actions of a chunk before the next prediction; None: as trained
    execute: int | None = Field(default=None, ge=1, le=STEPS)
    ensemble: Literal["none", "temporal"] = "none"  # temporal: average overlapping chunks (ACT, arXiv 2304.13705)
    implausible: Implausible | None = None  # proprio far outside the training data: error or warn; None: as trained
    processes: int | None = Field(default=None, ge=1, le=PROCESSES)  # simulator processes; None: one per core
    slots: int = Field(default=3, ge=1, le=PROCESSES)  # parallel episodes in each process
    hang_s: float = Field(default=180.0, gt=0, le=WEIGHT)  # a simulator is replaced after so long without an answer
    memory_gb: float = Field(default=8.0, gt=0, le=GB)  # a simulator that uses more is replaced between episodes
    # at most; one success per task and each swapped pair always get a video
    failure_videos: int = Field(default=6, ge=0, le=COUNT)

    def __post_init__(self) -> None:
        for condition in self.conditions:
            if condition not in SETS:
                parse(condition)
        if not self.conditions:
            raise ValueError("conditions: name at least one, as in [original]")


@plain_dataclass(frozen=True)
class Subtask:
    """One instruction and the goal it is judged by. An episode of a single task has one subtask, a chain several."""

    task: str  # its goal decides about success
    instructed: str  # the task that the instruction is for
    instruction: str | None  # None: the environment gives it after the reset


@plain_dataclass(frozen=True)
class EpisodePlan:
    """One episode to play."""

    condition: Condition
    task: str
    seed: int
    subtasks: tuple[Subtask, ...]

    @property
    def key(self) -> str:
        """Unique within an evaluation."""
        return f"{self.condition}-{self.task}-{self.seed}"


def plan_episodes(suite: Suite, config: EvaluationConfig, conditions: Sequence[Condition]) -> list[EpisodePlan]:
    """Return all episodes, ordered by seed, so that an interrupted evaluation covers all tasks about equally.

    Raises ConfigError for an unknown task, and for more episodes than the suite has start states.
    """
    episodes = [episode for condition in conditions for episode in _plan_condition(condition, suite, config)]
    if not episodes:
        raise ConfigError(
            f"suite {suite.name} has no episodes under {', '.join(map(str, conditions))}: no two of its tasks share a "
            "scene (swapped), or all do (unrelated), or all have the same instruction, or none has paraphrases "
            "(paraphrased)"
        )
    return episodes


def harness_protocol(suite: Suite, config: EvaluationConfig) -> dict[str, Any]:
    """Return the settings of the harness that comparable results must share, for JSON."""
    return {
        "harness": VERSION,
        "horizon": config.horizon or {t.name: suite.limit(t.name) for t in suite.tasks if t.horizon} or suite.horizon,
        "judged": suite.success_rule,
        "tasks": len(suite.tasks),
        "groups": {name: list(tasks) for name, tasks in suite.groups.items()},
        "episodes": config.episodes or suite.episodes,
        "first_seed": config.first_seed,
        **({"other_goals": "judged"} if suite.alternatives else {}),
        **_describe_chance(suite),
    }


def _describe_chance(suite: Suite) -> dict[str, Any]:
    """Return the chance level, the pairs and the curve of a suite that declares a chance level; else nothing."""
    if suite.chance is None:
        return {}
    curve = None if suite.curve is None else {"axis": suite.curve.axis, "groups": dict(suite.curve.groups)}
    return {"chance": suite.chance, "pairs": [list(pair) for pair in suite.pairs], "curve": curve}


def _plan_condition(condition: Condition, suite: Suite, config: EvaluationConfig) -> Iterator[EpisodePlan]:
    if suite.chains:
        yield from _plan_chains(condition, suite, config)
        return
    tasks = [suite.task(name) for name in _asked_tasks(suite, config)]
    asked = config.unrelated_episodes if condition.language == "unrelated" else None
    counts = {t.name: asked or config.episodes or t.episodes or suite.episodes for t in tasks}
    for task in tasks:
        _check_seeds(suite, task, config.first_seed, counts[task.name])
    for number in range(max(counts.values())):
        for task in tasks:
            seed = config.first_seed + number  # alone decides the instruction, so that `key` is complete
            subtask = _make_subtask(condition.language, suite, task, seed) if number < counts[task.name] else None
            if subtask is not None:
                yield EpisodePlan(condition, task.name, seed, (subtask,))


def _plan_chains(condition: Condition, suite: Suite, config: EvaluationConfig) -> Iterator[EpisodePlan]:
    if config.tasks:
        _asked_tasks(suite, config)  # refuses unknown names first
        raise ConfigError(f"evaluation.tasks: suite {suite.name} plays whole chains; choose their number with episodes")
    count = config.episodes or suite.episodes
    if config.first_seed + count > len(suite.chains):
        raise ConfigError(
            f"suite {suite.name} has {len(suite.chains)} chains; {count} from number {config.first_seed} on are "
            "requested"
        )
    for seed in range(config.first_seed, config.first_seed + count):
        tasks = suite.chains[seed]
        others = suite.alternatives[seed] if suite.alternatives else [None] * len(tasks)
        made = [
            _make_subtask(condition.language, suite, suite.task(name), seed, other)
            for name, other in zip(tasks, others, strict=True)
        ]
        subtasks = tuple(subtask for subtask in made if subtask is not None)
        if len(subtasks) == len(made):
            yield EpisodePlan(condition, CHAIN, seed, subtasks)


def _asked_tasks(suite: Suite, config: EvaluationConfig) -> list[str]:
    try:
        return [suite.task(name).name for name in config.tasks] or [task.name for task in suite.tasks]
    except ValueError as error:
        raise ConfigError(f"evaluation.tasks: {error}") from None


def _check_seeds(suite: Suite, task: Task, first: int, count: int) -> None:
    starts = task.episodes or suite.starts
    if starts is not None and first + count > starts:
        raise ConfigError(
            f"{suite.name}/{task.name} has {starts} start states; {count} from number {first} on are requested: "
            f"use at most --episodes {starts - first}"
        )
    if first + count > FIRST_DEMONSTRATION_SEED:
        raise ConfigError(f"seeds from {FIRST_DEMONSTRATION_SEED} on belong to demonstrations; lower first_seed")


def _make_subtask(language: str, suite: Suite, task: Task, seed: int, alternative: str | None = None) -> Subtask | None:
    """Return the task with its instruction under a condition; None if the suite has no such instruction.

    `alternative`: the task to instruct under `swapped`; None: any other of the scene.
    """
    if language == "empty":
        return Subtask(task.name, task.name, "")
    instructed, phrases = task, task.instructions
    if language == "paraphrased":
        phrases = task.paraphrases
        if not phrases:
            return None
    elif language in ("swapped", "unrelated"):
        if len({tuple(t.instructions) for t in suite.tasks}) == 1:
            return None
        same_scene = language == "swapped"
        others = [t for t in suite.tasks if (t.scene == task.scene) == same_scene and t.name != task.name]
        others = [t for t in others if t.instructions and (not same_scene or alternative in (None, t.name))]
        if not others:
            return None
        instructed = others[seed % len(others)]
        phrases = instructed.instructions
    return Subtask(task.name, instructed.name, phrases[seed % len(phrases)] if phrases else None)
