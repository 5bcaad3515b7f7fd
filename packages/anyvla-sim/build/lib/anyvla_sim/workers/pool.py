"""Environments in worker processes, which simulate and render while the policy computes.

A pool has `processes * slots` slots, one environment each. Commands return at once; `ready` returns the answers. A
worker that crashes or hangs is replaced, and each of its episodes is reported as a `LostEpisode`. A worker that exceeds
its memory limit is replaced once the last of its episodes is over.
"""

from __future__ import annotations

import queue
import time
from dataclasses import dataclass
from typing import Any, Mapping

import numpy as np

from anyvla_sim.base import BenchmarkUnusable, Observation
from anyvla_sim.spec import Spec
from anyvla_sim.workers.process import Event, WorkerProcess, explain_missing_package


@dataclass(frozen=True)
class WorkerLimits:
    """The limits beyond which a worker is replaced."""

    hang_s: float = 180.0  # time for an answer; the first, which loads the simulator, may take five times as long
    memory_mb: float = 8000.0  # resident memory


@dataclass(frozen=True)
class Reply:
    """The state of a slot after a command."""

    slot: int
    observation: Observation | None  # None once a goal ended the episode
    goals: Mapping[str, bool]  # task -> its goal holds now
    steps: int  # actions since the reset, or since the task of the chain began
    clipped: int = 0  # actions since the reset that exceeded the environment's limits
    instruction: str | None = None  # the current instruction, if the environment gives it
    disturbed: bool | None = None  # after a disturbance: whether there was something to disturb


@dataclass(frozen=True)
class LostEpisode:
    """The episode of a slot ended because its simulator raised an error, crashed or hung."""

    slot: int
    message: str


class EnvironmentPool:
    """Environments in worker processes. Use it as a context manager."""

    def __init__(self, spec: Spec, suite: str, processes: int, slots: int, limits: WorkerLimits | None = None) -> None:
        """Start the workers, which open the benchmark. Raises BenchmarkUnusable if there is no such interpreter."""
        self.size = processes * slots
        self.restarts = 0  # workers that were replaced
        self._spec, self._suite, self._slots, self._limits = spec, suite, slots, limits or WorkerLimits()
        self._events: "queue.Queue[Event]" = queue.Queue()
        self._workers = [WorkerProcess(spec, self._events) for _ in range(processes)]
        self._since = [time.monotonic()] * processes  # when each last answered, or got a command while idle
        self._fresh = [True] * processes  # whether it has not answered a command yet
        self._playing: set[int] = set()  # slots with an episode
        self._waiting: dict[int, list[dict[str, Any]]] = {}  # resets that wait until their worker is replaced

    def reset(self, slot: int, task: str, seed: int, factors: Mapping[str, str] | None = None) -> None:
        """Start an episode in a slot."""
        number = slot // self._slots
        command = {"verb": "reset", "slot": slot, "task": task, "seed": seed, "factors": dict(factors or {})}
        self._playing.discard(slot)
        if self._workers[number].resident_mb > self._limits.memory_mb:
            self._waiting.setdefault(number, []).append(command)
            self._replace_if_idle(number)
        else:
            self._send(command)

    def _replace_if_idle(self, number: int) -> None:
        """Replace a worker that exceeds its memory limit, once no episode runs in it."""
        if number in self._waiting and not self._playing & set(self._slots_of(number)):
            self._replace(number)

    def execute(self, slot: int, actions: np.ndarray, until_goal: bool = True) -> None:
        """Execute actions (n, A); with `until_goal`, stop once a goal holds."""
        actions = np.asarray(actions, np.float32)
        self._send({"verb": "execute", "slot": slot, "actions": actions, "until_goal": until_goal})

    def begin(self, slot: int, task: str) -> None:
        """Start another task of a chain without a reset."""
        self._send({"verb": "begin", "slot": slot, "task": task})

    def disturb(self, slot: int, kind: str, seed: int) -> None:
        """Disturb the scene."""
        self._send({"verb": "disturb", "slot": slot, "kind": kind, "seed": seed})

    def release(self, slot: int) -> None:
        """End the episode of a slot; no other follows."""
        self._playing.discard(slot)
        self._replace_if_idle(slot // self._slots)

    def _send(self, command: dict[str, Any]) -> None:
        if command["verb"] == "reset":
            self._playing.add(command["slot"])
        number = command["slot"] // self._slots
        if self._workers[number].pending == 0:
            self._since[number] = time.monotonic()
        self._workers[number].send({**command, "suite": self._suite})

    def ready(self, timeout: float) -> list[Reply | LostEpisode]:
        """Wait up to `timeout` seconds and return the answers of slots; a lost episode replaces the slot's reply.

        Raises BenchmarkUnusable where a retry cannot help: a missing simulator, an unknown task.
        """
        events: list[Event] = []
        try:
            events.append(self._events.get(timeout=timeout))
            while True:
                events.append(self._events.get_nowait())
        except queue.Empty:
            pass
        answers: dict[int, Reply | LostEpisode] = {}
        for worker, message in events:
            if worker not in self._workers:
                continue  # replaced since
            number = self._workers.index(worker)
            self._since[number] = time.monotonic()
            if message is None:
                self._lose_episodes(number, worker.describe_death(), answers)
            else:
                self._handle_message(number, message, answers)
        for number, worker in enumerate(self._workers):
            patience = self._limits.hang_s * (5 if self._fresh[number] else 1)
            if worker.pending and time.monotonic() - self._since[number] > patience:
                self._lose_episodes(number, f"the simulator hung: no answer for {patience:.0f} s", answers)
        return list(answers.values())

    def _handle_message(self, number: int, message: dict[str, Any], answers: dict[int, Reply | LostEpisode]) -> None:
        worker = self._workers[number]
        worker.pending -= 1
        worker.resident_mb = message["resident_mb"]
        if message["kind"] == "unusable":
            raise BenchmarkUnusable(message["message"])
        if message["verb"] == "open":
            return
        slot = message["slot"]
        if message["kind"] == "failed":
            self._playing.discard(slot)
            answers[slot] = LostEpisode(slot, message["message"])
            return
        self._fresh[number] = False
        shown = message["observation"]
        state: dict[str, Any] = {k: message.get(k) for k in ("goals", "steps", "clipped", "instruction", "disturbed")}
        answers[slot] = Reply(slot, None if shown is None else Observation(**shown), **state)

    def _lose_episodes(self, number: int, why: str, answers: dict[int, Reply | LostEpisode]) -> None:
        """Report the episodes of a worker as lost and replace it. Raises BenchmarkUnusable if it lacks a package."""
        missing = explain_missing_package(why, self._spec.python)
        if missing is not None:
            raise BenchmarkUnusable(missing)
        for slot in self._slots_of(number):
            if slot in self._playing:
                answers[slot] = LostEpisode(slot, why)
                self._playing.discard(slot)
        self._replace(number)

    def _replace(self, number: int) -> None:
        """Replace a worker and start the episodes that waited for it."""
        self._workers[number].close()
        self._workers[number] = WorkerProcess(self._spec, self._events)
        self._since[number], self._fresh[number] = time.monotonic(), True
        self.restarts += 1
        for command in self._waiting.pop(number, []):
            self._send(command)

    def _slots_of(self, number: int) -> range:
        return range(number * self._slots, (number + 1) * self._slots)

    def __enter__(self) -> "EnvironmentPool":
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.close()
