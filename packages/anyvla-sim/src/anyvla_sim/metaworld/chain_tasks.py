"""The tasks of the suite `chains`, the states of its scene, and the chains that are possible in them.

As in CALVIN (arXiv 2112.03227), a chain begins in a random state, and each task must be possible in the state that the
task before it leaves. Every possible task is equally likely, so neither the picture nor the previous task tells the
next one: a policy that ignores its instruction succeeds at most as often as a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Mapping, Sequence

import numpy as np

LONGEST = 5  # tasks of a chain
COUNT = 1000  # chains; seed i plays chain i
_CHAINS = 1  # seeds the list


@dataclass(frozen=True)
class Goal:
    """The state of an object that a task asks for, and Meta-World's name of the task."""

    object: str
    state: str
    stock: str


GOALS = {
    "drawer-open": Goal("drawer", "open", "drawer-open"),
    "drawer-close": Goal("drawer", "closed", "drawer-close"),
    "window-open": Goal("window", "open", "window-open"),
    "window-close": Goal("window", "closed", "window-close"),
    "button-press": Goal("button", "pressed", "button-press-topdown"),
}
State = Mapping[str, str]  # of the drawer, the window and the button


@dataclass(frozen=True)
class Chain:
    """Tasks in a row and the state that they start from."""

    start: State
    tasks: Sequence[str]
    alternatives: Sequence[str]  # for each task, another one that is possible in the same state


def possible_tasks(state: State) -> list[str]:
    """Return the tasks whose goal the state does not fulfil yet."""
    return [task for task, goal in GOALS.items() if state[goal.object] != goal.state]


def after(state: State, task: str) -> State:
    """Return the state that a task leaves. The button comes up again during the task that follows."""
    goal = GOALS[task]
    return {**state, "button": "up", goal.object: goal.state}


def sample_chain(rng: np.random.Generator, length: int) -> Chain:
    """Return a random chain. Each task is sampled uniformly from the possible ones."""
    start = state = _sample_state(rng)
    tasks, alternatives = [], []
    for _ in range(length):
        order = rng.permutation(possible_tasks(state)).tolist()
        tasks.append(order[0])
        alternatives.append(order[1])  # two or more are always possible
        state = after(state, order[0])
    return Chain(start, tasks, alternatives)


def sample_lead_in(rng: np.random.Generator, task: str, longest: int) -> Chain:
    """Return a random chain of up to `longest` tasks after which `task` is possible."""
    while True:
        chain = sample_chain(rng, int(rng.integers(longest + 1)))
        state = chain.start
        for done in chain.tasks:
            state = after(state, done)
        if task in possible_tasks(state):
            return chain


def _sample_state(rng: np.random.Generator) -> State:
    drawer, window = (("open", "closed")[rng.integers(2)] for _ in range(2))
    return {"drawer": drawer, "window": window, "button": "up"}


@lru_cache(maxsize=None)
def list_chains(length: int) -> Sequence[Chain]:
    """Return the chains of the suite, the same for every policy. Shorter chains are the beginnings of longer ones."""
    chains = [sample_chain(np.random.default_rng((_CHAINS, seed)), LONGEST) for seed in range(COUNT)]
    return [Chain(chain.start, chain.tasks[:length], chain.alternatives[:length]) for chain in chains]
