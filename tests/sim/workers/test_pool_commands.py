"""Commands of a pool to its workers, and their answers, without processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anyvla_sim.spec import Spec
from anyvla_sim.workers import pool as pools
from anyvla_sim.workers.pool import EnvironmentPool, LostEpisode, Reply, WorkerLimits

SHOWN = {"images": {"eye": np.zeros((2, 2, 3), np.uint8)}, "proprio": np.zeros(1, np.float32)}


class Worker:
    """A replacement of a process: it records commands, and answers when a test calls `answer`."""

    def __init__(self, spec: Spec, events: Any) -> None:
        self.pending, self.resident_mb, self.closed = 1, 0.0, False  # it opens the benchmark
        self.events, self.sent = events, list[dict[str, Any]]()

    def send(self, command: dict[str, Any]) -> None:
        self.pending += 1
        self.sent.append(command)

    def answer(self, slot: int, verb: str = "execute", **message: Any) -> None:
        usual = {"kind": "answer", "resident_mb": 0.0, "observation": SHOWN, "goals": {}, "steps": 0, "clipped": 0}
        self.events.put((self, {**usual, "verb": verb, "slot": slot, **message}))

    def describe_death(self) -> str:
        return "it died"

    def close(self) -> None:
        self.closed = True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pools, "WorkerProcess", Worker)
    monkeypatch.setattr(pools, "time", clock)
    return clock


def make_pool(processes: int = 2, slots: int = 3, **limits: float) -> Any:
    return EnvironmentPool(Spec("none:None"), "line", processes, slots, WorkerLimits(**limits))


def test_commands_go_to_the_worker_of_their_slot_unchanged(clock: Clock) -> None:
    """The first worker has slots 0 to 2, the second 3 to 5."""
    one = make_pool()
    assert one.size == 6
    one.reset(2, "left", 7, {"light": "dim"})
    one.execute(3, np.ones((2, 4)))
    one.execute(4, np.ones((2, 4)), until_goal=False)
    one.begin(1, "up")
    one.disturb(5, "push", 41)
    sent = [[{k: v for k, v in c.items() if k != "actions"} for c in worker.sent] for worker in one._workers]
    assert sent == [
        [
            {"verb": "reset", "slot": 2, "task": "left", "seed": 7, "factors": {"light": "dim"}, "suite": "line"},
            {"verb": "begin", "slot": 1, "task": "up", "suite": "line"},
        ],
        [
            {"verb": "execute", "slot": 3, "until_goal": True, "suite": "line"},
            {"verb": "execute", "slot": 4, "until_goal": False, "suite": "line"},
            {"verb": "disturb", "slot": 5, "kind": "push", "seed": 41, "suite": "line"},
        ],
    ]
    assert one._workers[1].sent[0]["actions"].dtype == np.float32


def test_answers_become_replies(clock: Clock) -> None:
    one = make_pool()
    one._workers[1].answer(4, steps=5, clipped=2, goals={"left": True}, instruction="go left", disturbed=False)
    one._workers[0].answer(0, observation=None, steps=3)
    replies = {reply.slot: reply for reply in one.ready(0)}
    assert (replies[4].steps, replies[4].clipped, replies[4].goals) == (5, 2, {"left": True})
    assert (replies[4].instruction, replies[4].disturbed) == ("go left", False)
    assert replies[4].observation.proprio is SHOWN["proprio"]
    assert replies[0] == Reply(0, None, {}, 3)


def test_only_slots_that_play_are_lost_with_their_worker(clock: Clock) -> None:
    one = make_pool()
    for slot in (0, 2, 3):
        one.reset(slot, "left", 1)
    one.release(2)
    first = one._workers[0]
    one._events.put((first, None))
    assert one.ready(0) == [LostEpisode(0, "it died")]
    assert (first.closed, one._workers[0] is first, one.restarts) == (True, False, 1)
    first.answer(0)
    assert one.ready(0) == []  # of a worker that was replaced


@pytest.mark.parametrize(("started", "patience"), [(False, 900), (True, 180)])
def test_a_worker_hangs_after_three_minutes_and_one_that_has_not_answered_yet_after_fifteen(
    clock: Clock, started: bool, patience: float
) -> None:
    one = make_pool(processes=1, slots=1)
    one.reset(0, "left", 1)
    if started:
        one._workers[0].pending -= 1  # it has opened the benchmark
        one._workers[0].answer(0, "reset")
        one.ready(0)
        one.execute(0, np.ones((1, 4)))
    clock.now = patience - 1
    assert one.ready(0) == []
    clock.now = patience + 1
    assert [lost.message for lost in one.ready(0)] == [f"the simulator hung: no answer for {patience} s"]


def test_a_worker_that_waits_for_a_command_does_not_hang(clock: Clock) -> None:
    one = make_pool(processes=1, slots=1)
    one._workers[0].pending = 0
    clock.now = 100_000
    assert one.ready(0) == []
    one.execute(0, np.ones((1, 4)))  # its time counts from here
    clock.now += 800
    assert one.ready(0) == []


def test_a_worker_beyond_eight_gigabytes_is_replaced_when_its_last_episode_ends(clock: Clock) -> None:
    one = make_pool(processes=1, slots=2)
    first = one._workers[0]
    for slot in (0, 1):
        one.reset(slot, "left", slot)
        first.answer(slot, "reset", resident_mb=7999.0)
    one.ready(0)
    one.reset(0, "left", 2)
    assert len(first.sent) == 3  # not yet
    first.answer(0, "reset", resident_mb=8001.0)
    one.ready(0)
    one.reset(0, "left", 3)
    assert (len(first.sent), one.restarts) == (3, 0)  # slot 1 still plays
    one.release(1)
    assert (one.restarts, [command["seed"] for command in one._workers[0].sent]) == (1, [3])
