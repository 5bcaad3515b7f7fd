"""The chains of the suite `chains`: possible, fixed, and unpredictable without the instruction."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import numpy as np
import pytest

from anyvla_sim.metaworld.chain_tasks import COUNT, LONGEST, list_chains, sample_lead_in
from anyvla_sim.metaworld.suites import make_suite

# A chain is part of the protocol: a change makes results incomparable with earlier ones.
CHAINS_HASH = "c5760f3cbcb130f4"


class Room:
    """The scene as a person would describe it, to check the rules of the chains."""

    def __init__(self, drawer: str, window: str) -> None:
        self.open = {"drawer": drawer == "open", "window": window == "open"}
        self.pressed = False

    def possible(self) -> set[str]:
        found = {f"{name}-{'close' if is_open else 'open'}" for name, is_open in self.open.items()}
        return found if self.pressed else found | {"button-press"}

    def do(self, task: str) -> None:
        assert task in self.possible()
        name, verb = task.split("-")
        self.pressed = name == "button"
        if name != "button":
            self.open[name] = verb == "open"


def test_each_task_is_possible_when_it_begins_and_so_is_its_alternative() -> None:
    for chain in list_chains(LONGEST):
        room = Room(chain.start["drawer"], chain.start["window"])
        assert len(chain.tasks) == len(chain.alternatives) == 5
        for task, other in zip(chain.tasks, chain.alternatives, strict=True):
            assert other in room.possible() - {task}
            room.do(task)


def test_the_chains_are_always_the_same() -> None:
    chains = [[dict(chain.start), list(chain.tasks), list(chain.alternatives)] for chain in list_chains(LONGEST)]
    assert len(chains) == COUNT == 1000
    assert hashlib.sha256(json.dumps(chains).encode()).hexdigest()[:16] == CHAINS_HASH
    suite = make_suite("chains", 2)
    assert [[*own] for own in suite.chains] == [tasks for _, tasks, _ in chains]
    assert [[*own] for own in suite.alternatives] == [others for *_, others in chains]
    assert (suite.starts, suite.episodes, suite.horizon, suite.success_rule) == (1000, 100, 150, "reached")
    assert [t.name for t in suite.tasks] == [
        "drawer-open", "drawer-close", "window-open", "window-close", "button-press",
    ]  # fmt: skip


@pytest.mark.parametrize("length", [1, 3, 5])
def test_shorter_chains_are_the_beginnings_of_longer_ones(length: int) -> None:
    for short, whole in zip(make_suite("chains", 2, length).chains, list_chains(LONGEST), strict=True):
        assert list(short) == list(whole.tasks[:length])


def test_neither_the_state_nor_the_last_task_tells_the_next_one() -> None:
    """Otherwise a policy could do without its instruction."""
    following: dict[tuple[object, ...], Counter[str]] = {}
    for chain in list_chains(LONGEST):
        room = Room(chain.start["drawer"], chain.start["window"])
        for number, task in enumerate(chain.tasks):
            before = chain.tasks[number - 1] if number else None
            following.setdefault((*room.open.values(), before), Counter())[task] += 1
            room.do(task)
    for (*_, before), counts in following.items():
        options = 2 if before == "button-press" else 3
        assert len(counts) == options
        total = sum(counts.values())
        for count in counts.values():
            assert abs(count - total / options) < 4 * np.sqrt(total / options)  # standard deviations


def test_the_rates_of_guessing_are_those_of_the_docs() -> None:
    """A policy that always solves one of the possible tasks, without regard to its instruction."""
    rates = np.zeros(5)
    for chain in list_chains(LONGEST):
        room, chance = Room(chain.start["drawer"], chain.start["window"]), 1.0
        for number, task in enumerate(chain.tasks):
            chance /= len(room.possible())
            rates[number] += chance / COUNT
            room.do(task)
    assert rates == pytest.approx([0.333, 0.129, 0.047, 0.018, 0.006], abs=0.0005)
    assert rates.sum() == pytest.approx(0.53, abs=0.005)


@pytest.mark.parametrize("task", ["drawer-open", "window-close", "button-press"])
def test_a_task_is_possible_after_its_lead_in(task: str) -> None:
    lengths = Counter[int]()
    for seed in range(60):
        chain = sample_lead_in(np.random.default_rng(seed), task, 2)
        room = Room(chain.start["drawer"], chain.start["window"])
        for before in chain.tasks:
            room.do(before)
        assert task in room.possible()
        lengths[len(chain.tasks)] += 1
    assert set(lengths) == {0, 1, 2}
