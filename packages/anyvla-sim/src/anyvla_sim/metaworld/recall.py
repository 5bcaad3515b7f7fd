"""The suite `recall`: the present picture does not tell the answer, so a policy needs to remember the cue.

Every episode shows a cue, then nothing for a while, then a go sign that is the same whatever the cue was. The two tasks
of a pair differ in their cue only: for the same seed they look the same from the end of the cue on. A policy whose
actions depend on the present observation acts alike in both, so it succeeds in one of each pair at most.

- `d0` to `d48`, delayed response (Hunter 1913): a ball is blue or green. At the go sign there is a red ball at each of
  two places, and the hand must reach the place of that color. The number is the delay in actions.
- `press`: a ball blinks once or twice, and the button must be pressed as often, which takes counting as well.

Motion before the go sign is ignored: a hand that may move carries the cue in its position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

import numpy as np

from anyvla_sim.base import Curve, Suite, Task

INSTRUCTION = "go"
CHANCE = 0.5
CUE = 8  # actions that a cue, or a blink, lasts: a policy that executes fewer always observes it
RESPONSE = {"reach": 80, "press": 120}  # control steps from the go sign to the end of the episode


@dataclass(frozen=True)
class Pair:
    """Two tasks that differ in their cue only."""

    name: str
    scene: str  # "reach" or "press"
    delay: tuple[int, int]  # actions from the end of the cue to the go sign: least and most, by the seed
    answers: tuple[str, str]

    @property
    def tasks(self) -> tuple[str, str]:
        """The names of the tasks."""
        first, second = self.answers
        return f"{self.name}-{first}", f"{self.name}-{second}"

    @property
    def cue(self) -> int:
        """The number of actions from the start to the end of the cue: two blinks and the gap between them take 3."""
        return CUE if self.scene == "reach" else 3 * CUE


# Every delay but the control's is longer than the chunks that policies execute here, as a chunk is a memory too.
# `press` has to remember for longer than its delay: the decision is due after the first press.
PAIRS = (
    Pair("d0", "reach", (0, 0), ("blue", "green")),
    Pair("d12", "reach", (12, 15), ("blue", "green")),
    Pair("d24", "reach", (24, 24), ("blue", "green")),
    Pair("d48", "reach", (48, 51), ("blue", "green")),
    Pair("press", "press", (4, 7), ("once", "twice")),
)
MOST_EXECUTED = PAIRS[1].delay[0] - 1


@dataclass(frozen=True)
class Trial:
    """The timeline of an episode."""

    pair: Pair
    answer: int  # the number of the right one of `pair.answers`
    delay: int

    @property
    def go(self) -> int:
        """The number of actions before the go sign."""
        return self.pair.cue + self.delay

    def shows_cue(self, time: int) -> bool:
        """Return whether the cue's ball shows after `time` actions."""
        blinks = 1 + (self.pair.scene == "press" and self.answer == 1)
        return time % (2 * CUE) < CUE and time // (2 * CUE) < blinks


def make_trial(task: str, seed: int) -> Trial:
    """Return the timeline of an episode; its delay depends on the pair and the seed only."""
    number, pair = next((i, pair) for i, pair in enumerate(PAIRS) if task in pair.tasks)
    low, high = pair.delay
    delay = int(np.random.default_rng((seed, number)).integers(low, high + 1))
    return Trial(pair, pair.tasks.index(task), delay)


def get_scenes() -> Mapping[str, str]:
    """Return the scene of Meta-World, "reach" or "press", of each task. Each task is a scene of its own: in another
    scene, the same seed shows another cue.
    """
    return {task: pair.scene for pair in PAIRS for task in pair.tasks}


def make_suite(repeat: int) -> Suite:
    """Return the suite for actions of `repeat` control steps."""
    return Suite(
        "recall",
        [_make_task(pair, task, repeat) for pair in PAIRS for task in pair.tasks],
        horizon=max(_limit(pair, repeat) for pair in PAIRS),
        groups={pair.name: pair.tasks for pair in PAIRS},
        chance=CHANCE,
        pairs=[pair.tasks for pair in PAIRS],
        curve=Curve("delay, actions", {pair.name: pair.delay[0] for pair in PAIRS if pair.scene == "reach"}),
        most_executed=MOST_EXECUTED,
    )


def _make_task(pair: Pair, name: str, repeat: int) -> Task:
    return Task(name, name, (INSTRUCTION,), horizon=_limit(pair, repeat))


def _limit(pair: Pair, repeat: int) -> int:
    return pair.cue + pair.delay[1] + RESPONSE[pair.scene] // repeat
