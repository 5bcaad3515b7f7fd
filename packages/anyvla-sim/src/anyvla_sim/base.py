"""The contract of benchmarks and environments. It needs numpy and a simulator, never torch; Python 3.8 or later.

A `Benchmark` has suites of tasks and makes `Environment`s, each of which plays one episode at a time. Rendering is
slow, so `step` only simulates and `observe` renders: a policy that executes four actions of a chunk renders once. The
same classes serve in the evaluating process and in a worker of another interpreter (`anyvla_sim.workers.worker`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Mapping, Protocol, Sequence

import numpy as np

from anyvla_sim.names import check_name


class BenchmarkUnusable(Exception):
    """The benchmark cannot be played here, and a retry cannot help; the message says what to do."""


class NotInstalled(BenchmarkUnusable, ImportError):
    """A simulator is missing; the message says how to install it, and for which Python."""


class ExpertStuck(Exception):
    """A scripted expert cannot continue from this state, so its attempt has failed."""


@dataclass(frozen=True)
class Observation:
    """The images and the proprio of one robot at one step."""

    images: Mapping[str, np.ndarray]  # camera name -> uint8 (H, W, 3), RGB, upright
    proprio: np.ndarray  # float32 (P,), in the robot's own units


@dataclass(frozen=True)
class Task:
    """A goal for a robot in a scene, with its instructions."""

    name: str  # unique in its suite: "drawer-open"
    scene: str  # tasks of one scene share its start states: "drawer"
    instructions: Sequence[str]  # phrasings, the first is canonical; empty if the environment has `instruction()`
    paraphrases: Sequence[str] = ()  # other phrasings, which demonstrations never use
    horizon: int | None = None  # the maximum length in actions; None: the suite's
    episodes: int | None = None  # episodes in the official evaluation, each with its own start state; None: the suite's


@dataclass(frozen=True)
class Curve:
    """A number on which the success of a suite depends: a curve of the rates of its groups over it."""

    axis: str  # "delay, actions"
    groups: Mapping[str, int]  # group of the suite -> the number


@dataclass(frozen=True)
class Suite:
    """A named list of tasks and the official settings of its evaluation."""

    name: str  # "half-open"
    tasks: Sequence[Task]
    horizon: int  # the maximum length in actions of an episode, or of each task of a chain
    episodes: int = 20  # per task, or chains in all, in the official evaluation
    starts: int | None = None  # start states per task, seeds 0 .. starts-1; None: every seed is one
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)  # tasks whose average is reported: "easy"
    chains: Sequence[Sequence[str]] = ()  # tasks in a row without a reset; seed i plays chains[i]
    # For each task of each chain, another that is possible in the same state: the instruction under `swapped`.
    # The environment then judges all goals, not only that of the current task. (): any task of the scene is instructed.
    alternatives: Sequence[Sequence[str]] = ()
    success_rule: str = "reached"  # or "end": the episode lasts until the horizon, and its goal must hold then
    chance: float | None = None  # the highest success rate of a policy that lacks what the suite tests; None: unknown
    pairs: Sequence[Sequence[str]] = ()  # two tasks that, for one seed, such a policy cannot tell apart
    curve: Curve | None = None
    most_executed: int | None = None  # actions of a chunk: executing more would solve tasks that need a history

    def task(self, name: str) -> Task:
        """Return the task with that name. Raises ValueError with the nearest names."""
        found = {t.name: t for t in self.tasks}
        check_name(name, found, f"suite {self.name!r} has no task")
        return found[name]

    def limit(self, task: str) -> int:
        """Return the maximum length of a task in actions."""
        return self.task(task).horizon or self.horizon


class Environment(Protocol):
    """One simulated robot. An action lasts for the control period of the embodiment.

    Some environments have more methods:

    - `instruction() -> str` returns the current instruction, which may change during an episode. An environment whose
      tasks have no `instructions` needs it.
    - `begin(task)` starts the next task of a chain: `step` judges it from the current state on.
    - `expert(task)` returns the scripted expert's next action, float32 (A,). It raises ValueError for a task without
      an expert, ExpertStuck if the expert gives up.
    - `disturb(kind, seed)` does one of `Benchmark.disturbances`. It returns False if there is nothing to disturb.
    - `close_up(height, width)` returns a picture like `frame`, of the part where the objects are.
    - `foresee(actions)` returns the path of the gripper in the last such picture if it followed actions (n, A): float32
      (n + 1, 2), fractions of its width and height from the upper left.
    - `locate()` returns where in that picture the object is, float32 (2,); None if none can be moved.
    - `move(shift)` moves the object over the table so that it is shifted by (2,) in that picture. It returns False if
      the object stays where it is, as at the end of its range.
    - `limits` is a pair of float32 (A,), the lowest and highest actions; actions beyond them are counted as clipped.
    - `close()` frees the simulator.
    """

    def reset(self, task: str, seed: int, factors: Mapping[str, str]) -> None:
        """Start an episode. Scene, seed and factors determine the start state, whatever was played before.

        In a suite with chains, a seed below their number starts that chain; a later one starts somewhere in a chain in
        which the task is possible, and then the task decides about the start state, too.

        Equal actions from there give equal episodes, bit for bit, so that videos and demonstrations can be replayed.
        `factors` maps some of `Benchmark.factors` to a level. Raises ValueError for an unknown task, a seed without a
        start state, an unknown factor or level.
        """

    def observe(self) -> Observation:
        """Render the cameras and read the proprio."""

    def step(self, action: np.ndarray) -> Mapping[str, bool]:
        """Execute an action, float32 (A,). Return for each task that can be judged whether its goal holds."""

    def frame(self, height: int, width: int) -> np.ndarray:
        """Return a picture for videos, uint8 (height, width, 3), larger than the images that a policy gets."""


class Benchmark(Protocol):
    """A simulator with its suites. `type(b)(**b.settings)` makes an equal benchmark in another process."""

    name: str
    settings: Mapping[str, Any]  # JSON
    factors: Mapping[str, Sequence[str]] = {}  # changes of a scene: factor -> its levels
    disturbances: Sequence[str] = ()

    def suites(self) -> Sequence[str]:
        """Return the names of the suites."""

    def suite(self, name: str) -> Suite:
        """Return a suite. Raises ValueError for an unknown name, with the nearest."""

    def embodiment(self, suite: str) -> Mapping[str, Any]:
        """Return the robot of a suite, the JSON form of `anyvla.robot.embodiment.Embodiment`."""

    def make(self, suite: str) -> Environment:
        """Return an environment for the tasks of a suite, for use in this process."""

    def close(self) -> None:
        """Free the resources that environments share, such as renderers."""

    def versions(self) -> Mapping[str, str]:
        """Return the versions that a result depends on: of the simulator, the renderer, ..."""

    def protocol(self, suite: str) -> Mapping[str, Any]:
        """Return, as JSON, the settings that results must share to be compared: rendering, image size, settling, ..."""
