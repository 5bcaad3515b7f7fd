"""Which episodes an evaluation plays: the same list for every policy, a pure function of suite and configuration.

Three protocols. `told`: the instruction of the task. `swapped`: the instruction of the opposite task of the same scene,
so that only a policy that listens leaves the first goal alone. `unrelated`: the instruction of another scene's task.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT
from anyvla.evaluation.collect import FIRST_SEED as FIRST_DEMONSTRATION_SEED
from anyvla.evaluation.environments.base import Suite, Task

Protocol = Literal["told", "swapped", "unrelated"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluationConfig:
    """The section `evaluation:` of a recipe."""

    protocols: tuple[Protocol, ...] = ("told", "swapped", "unrelated")
    episodes: int = Field(default=20, ge=1)  # per task, under `told` and `swapped`
    unrelated_episodes: int = Field(default=10, ge=1)  # per task, under `unrelated`
    first_seed: int = Field(default=0, ge=0)  # of the start states
    processes: int | None = Field(default=None, ge=1)  # that simulate; None: one per core
    slots: int = Field(default=3, ge=1)  # episodes at a time in each process
    failure_videos: int = Field(
        default=6, ge=0
    )  # at most; one success per task and each swapped pair are always filmed

    def __post_init__(self) -> None:
        if self.first_seed + max(self.episodes, self.unrelated_episodes) > FIRST_DEMONSTRATION_SEED:
            raise ValueError(f"seeds from {FIRST_DEMONSTRATION_SEED} on belong to demonstrations; lower first_seed")


@plain_dataclass(frozen=True)
class EpisodePlan:
    """One episode to play."""

    protocol: Protocol
    task: str
    told: str  # the task whose words are given
    instruction: str
    seed: int

    @property
    def key(self) -> str:
        """Unique within an evaluation."""
        return f"{self.protocol}-{self.task}-{self.seed}"


def plan(suite: Suite, config: EvaluationConfig) -> list[EpisodePlan]:
    """All episodes, seed by seed, so that an interrupted evaluation has seen every task about equally often."""
    return [episode for protocol in config.protocols for episode in _of(protocol, suite, config)]


def _of(protocol: Protocol, suite: Suite, config: EvaluationConfig) -> Iterator[EpisodePlan]:
    count = config.unrelated_episodes if protocol == "unrelated" else config.episodes
    for number in range(count):
        for task in suite.tasks:
            seed = config.first_seed + number  # alone decides what is told, so that `key` says it all
            told = _told(protocol, suite, task, seed)
            if told is not None:
                phrase = told.instructions[seed % len(told.instructions)]
                yield EpisodePlan(protocol, task.name, told.name, phrase, seed)


def _told(protocol: Protocol, suite: Suite, task: Task, seed: int) -> Task | None:
    if protocol == "told":
        return task
    if protocol == "swapped":
        return suite.opposite(task)
    others = [t for t in suite.tasks if t.scene != task.scene]
    return others[seed % len(others)] if others else None
