"""The contract of the environment side: numpy and a simulator, never torch; Python 3.8 and later.

A `Benchmark` names suites of tasks and makes `Environment`s; an environment plays one episode at a time. Rendering is
what costs, so `step` only simulates and `observe` renders: a policy that executes four actions of a chunk renders once.
The same classes serve in the evaluating process and in a worker of another interpreter (`anyvla_sim.workers.worker`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Mapping, Protocol, Sequence

import numpy as np

from anyvla_sim.names import suggest


class BenchmarkUnusable(Exception):
    """This benchmark cannot be played here, however often it is tried; the message says what to do."""


class NotInstalled(BenchmarkUnusable, ImportError):
    """A simulator is missing; the message says how to install it, and for which Python."""


class ExpertStuck(Exception):
    """A scripted expert knows no way on from this state: its attempt has failed."""


@dataclass(frozen=True)
class Observation:
    """What one robot shows at one step."""

    images: Mapping[str, np.ndarray]  # camera name -> uint8 (H, W, 3), RGB, upright
    proprio: np.ndarray  # float32 (P,), in the robot's own units


@dataclass(frozen=True)
class Task:
    """Something a robot is told to do in a scene."""

    name: str  # unique in its suite: "drawer-open"
    scene: str  # tasks of one scene share its start states: "drawer"
    instructions: Sequence[str]  # phrasings, the first is canonical; none: the environment says it after each reset
    paraphrases: Sequence[str] = ()  # other words for the same, that demonstrations never use
    horizon: int | None = None  # the longest it may last, in actions; None: the suite's
    episodes: int | None = None  # how many its authors play, of as many start states; None: the suite's


@dataclass(frozen=True)
class Suite:
    """A named list of tasks and what its authors say about playing them."""

    name: str  # "half-open"
    tasks: Sequence[Task]
    horizon: int  # the longest an episode (of a chain: each of its tasks) may last, in actions
    episodes: int = 20  # per task (of chains: in all), as its authors count
    starts: int | None = None  # start states per task, seeds 0 .. starts-1; None: any seed makes one
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)  # tasks whose average is reported: "easy"
    chains: Sequence[Sequence[str]] = ()  # tasks in a row without a reset; seed i plays chains[i]
    judged: str = "reached"  # "reached": the episode ends at its goal; "end": the goal must hold after the horizon

    def task(self, name: str) -> Task:
        """The task of that name. Raises ValueError with the nearest names."""
        found = {t.name: t for t in self.tasks}
        if name not in found:
            raise ValueError(f"suite {self.name!r} has no task {name!r}: {suggest(name, found)}")
        return found[name]

    def limit(self, task: str) -> int:
        """The longest that a task may last, in actions."""
        return self.task(task).horizon or self.horizon


class Environment(Protocol):
    """One simulated robot. An action lasts for the control period of the embodiment."""

    def reset(self, task: str, seed: int, factors: Mapping[str, str]) -> None:
        """Start an episode. Equal scene, seed and factors: equal start state, whatever ran before.

        Equal actions from there give equal episodes, bit for bit: videos and demonstrations are played again.
        `factors`: what differs from the suite as it is, factor -> level, both of `Benchmark.factors`.
        Raises ValueError for an unknown task, a seed without a start state, an unknown factor or level.
        """

    def observe(self) -> Observation:
        """Render the cameras and read the proprio of now."""

    def step(self, action: np.ndarray) -> Mapping[str, bool]:
        """Act once, float32 (A,). Returns, for each task whose goal can be judged now, whether it holds."""

    def frame(self, height: int, width: int) -> np.ndarray:
        """A picture for people (videos), uint8 (height, width, 3), larger than what the policy sees."""


class Speaking(Protocol):
    """An environment that says its instruction (its tasks have no `instructions`); it may change in an episode."""

    def instruction(self) -> str:
        """What the robot is told now."""


class Chained(Protocol):
    """An environment that plays tasks in a row without a reset."""

    def begin(self, task: str) -> None:
        """From now on `step` judges this task, starting from the state of now."""


class Expert(Protocol):
    """An environment with scripted experts."""

    def expert(self, task: str) -> np.ndarray:
        """What the scripted expert of `task` would do now, float32 (A,).

        Raises ValueError where there is none, ExpertStuck where it gives up.
        """


class Disturbed(Protocol):
    """An environment that can be disturbed."""

    def disturb(self, kind: str, seed: int) -> bool:
        """Do one of `Benchmark.disturbances` now; False if there is nothing to disturb (no object is held)."""


class Benchmark(Protocol):
    """A simulator with its suites. `type(b)(**b.settings)` is the same benchmark again, in whatever process."""

    name: str
    settings: Mapping[str, Any]  # JSON
    factors: Mapping[str, Sequence[str]]  # what can be changed about a scene: factor -> its levels
    disturbances: Sequence[str]

    def suites(self) -> Sequence[str]:
        """The names of its suites."""

    def suite(self, name: str) -> Suite:
        """Raises ValueError for an unknown name (with the nearest)."""

    def embodiment(self, suite: str) -> Mapping[str, Any]:
        """The robot of a suite: the JSON form of `anyvla.robot.embodiment.Embodiment`."""

    def make(self, suite: str) -> Environment:
        """An environment for tasks of a suite, to be used in this process."""

    def close(self) -> None:
        """Free what its environments share, the renderers above all."""

    def versions(self) -> Mapping[str, str]:
        """What a result depends on: simulator, renderer and their versions."""

    def protocol(self, suite: str) -> Mapping[str, Any]:
        """JSON: what makes its results comparable with others': render setting, image size, settling steps, ..."""
