"""The contract of the environment side: numpy and a simulator, never torch.

So it can live in an interpreter of its own. A `Benchmark` names suites of tasks and makes `Environment`s; an
environment plays one episode at a time. Rendering is what costs, so `step` only simulates and `observe` renders: a
policy that executes four actions of a chunk renders once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32, UInt8

from anyvla.data.episode import Embodiment
from anyvla.registry import nearest
from anyvla.types import Observation


@dataclass(frozen=True)
class Task:
    """Something a robot is told to do in a scene."""

    name: str  # unique in its benchmark: "drawer-open"
    scene: str  # tasks of one scene share its start states: "drawer"
    instructions: Sequence[str]  # phrasings; the first is the canonical one, all are used for demonstrations


@dataclass(frozen=True)
class Suite:
    """A named list of tasks."""

    name: str  # "half-open"
    tasks: Sequence[Task]
    horizon: int  # the longest an episode may last, in actions

    def task(self, name: str) -> Task:
        """The task of that name. Raises ValueError with the nearest names."""
        found = {t.name: t for t in self.tasks}
        if name not in found:
            raise ValueError(f"suite {self.name!r} has no task {name!r}: {nearest(name, found)}")
        return found[name]

    def opposite(self, task: Task) -> Task | None:
        """The other task of the same scene, if there is exactly one."""
        others = [t for t in self.tasks if t.scene == task.scene and t.name != task.name]
        return others[0] if len(others) == 1 else None


class Environment(Protocol):
    """One simulated robot. An action repeats for the control period of the embodiment."""

    def reset(self, task: str, seed: int) -> None:
        """Start an episode. Equal scene and seed: equal start state, whatever ran before.

        Equal actions from there give equal episodes, bit for bit: videos and demonstrations are played again.
        """

    def observe(self) -> Observation:
        """Render the cameras and read the proprio of now."""

    def step(self, action: Float32[np.ndarray, "A"]) -> Mapping[str, bool]:
        """Act once. Returns, for each task of the scene, whether its goal holds now."""

    def expert(self, task: str) -> Float32[np.ndarray, "A"]:
        """What the scripted expert of `task` would do now. Raises ValueError where there is none."""

    def frame(self, height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
        """A picture for people (videos), larger than what the policy sees."""


class Benchmark(Protocol):
    """A simulator with its suites. Worker processes get a copy by pickle, so it holds settings and makes the rest."""

    name: str
    embodiment: Embodiment

    def suites(self) -> Mapping[str, Suite]: ...

    def make(self) -> Environment:
        """An environment, to be used in this process."""

    def close(self) -> None:
        """Free what its environments share, the renderers above all."""

    def versions(self) -> Mapping[str, str]:
        """What a result depends on: simulator, renderer and their versions, render setting."""


@dataclass(frozen=True)
class EpisodeResult:
    """One finished evaluation episode: one JSON line of `results.jsonl`."""

    benchmark: str  # "metaworld/half-open"
    protocol: str  # "told" | "swapped" | "unrelated"
    task: str  # the task the episode belongs to; its scene gives the start state
    told: str  # the task whose instruction was given (== task under "told")
    instruction: str
    seed: int
    success: bool  # the goal of `task` was reached
    reached: str | None  # the first goal that was reached, None if none
    steps: int  # actions executed
    latency_ms: float  # mean time of one policy call, per call
    checkpoint: str  # hash of the weights
    versions: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Unique within an evaluation; names the files of the episode."""
        return f"{self.protocol}-{self.task}-{self.seed}"
