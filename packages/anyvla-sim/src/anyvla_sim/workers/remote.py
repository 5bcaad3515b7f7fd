"""A benchmark in another interpreter with the same interface, for listing, demonstrations and videos.

Every call waits for its answer. An evaluation of many episodes uses `pool`, which overlaps simulation and policy.
"""

from __future__ import annotations

import queue
from typing import Any, Mapping, Sequence

import numpy as np

from anyvla_sim.base import Benchmark, BenchmarkUnusable, Curve, Environment, ExpertStuck, Observation, Suite, Task
from anyvla_sim.spec import Spec
from anyvla_sim.workers.process import Event, WorkerProcess, explain_missing_package

PATIENCE_S = 600.0  # for one answer; the first of an environment loads its models


class SimulatorFailed(RuntimeError):
    """A simulator raised an error, or its process died."""


class RemoteWorker:
    """A worker with synchronous calls."""

    def __init__(self, spec: Spec) -> None:
        """Start the worker. Raises BenchmarkUnusable if the benchmark cannot be opened there."""
        self._python = spec.python
        self._events: "queue.Queue[Event]" = queue.Queue()
        self._worker = WorkerProcess(spec, self._events)
        self._answer()

    def ask(self, verb: str, **command: Any) -> dict[str, Any]:
        """Run a command and return its answer.

        Raises BenchmarkUnusable for bad input, ExpertStuck if an expert gives up, SimulatorFailed if the simulator
        fails or does not answer.
        """
        self._worker.send({"verb": verb, **command})
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        try:
            _, answer = self._events.get(timeout=PATIENCE_S)
        except queue.Empty:
            raise SimulatorFailed(f"the simulator did not answer for {PATIENCE_S:.0f} s") from None
        if answer is None:
            death = self._worker.describe_death()
            missing = explain_missing_package(death, self._python)
            raise BenchmarkUnusable(missing) if missing else SimulatorFailed(death)
        if answer["kind"] != "answer":
            raise {"unusable": BenchmarkUnusable, "stuck": ExpertStuck}.get(answer["kind"], SimulatorFailed)(
                answer["message"]
            )
        return answer

    def close(self) -> None:
        """End the worker."""
        self._worker.close()


def connect(spec: Spec) -> Benchmark:
    """Open a benchmark, in this interpreter or, if `spec.python` is set, in another one."""
    return spec.open() if spec.python is None else RemoteBenchmark(spec)


class RemoteBenchmark(Benchmark):
    """A benchmark whose simulator runs in another interpreter."""

    def __init__(self, spec: Spec) -> None:
        """Start a worker. Raises BenchmarkUnusable if the benchmark cannot be opened there."""
        self._spec = spec
        self._remote = RemoteWorker(spec)
        about = self._remote.ask("about")
        self.name: str = about["name"]
        self.settings: Mapping[str, Any] = about["settings"]
        self.factors: Mapping[str, Sequence[str]] = about["factors"]
        self.disturbances: Sequence[str] = about["disturbances"]
        self._suites: list[str] = about["suites"]
        self._described: dict[str, dict[str, Any]] = {}
        self._environments: list[RemoteEnvironment] = []

    def _describe(self, suite: str) -> dict[str, Any]:
        if suite not in self._described:
            try:
                self._described[suite] = self._remote.ask("describe", suite=suite)
            except BenchmarkUnusable as error:
                raise ValueError(str(error)) from None
        return self._described[suite]

    def suites(self) -> Sequence[str]:
        return self._suites

    def suite(self, name: str) -> Suite:
        described = dict(self._describe(name)["suite"])
        tasks = [Task(**task) for task in described.pop("tasks")]
        curve = described.pop("curve")
        return Suite(tasks=tasks, curve=None if curve is None else Curve(**curve), **described)

    def embodiment(self, suite: str) -> Mapping[str, Any]:
        return self._describe(suite)["embodiment"]

    def protocol(self, suite: str) -> Mapping[str, Any]:
        return self._describe(suite)["protocol"]

    def versions(self) -> Mapping[str, str]:
        return self._remote.ask("about")["versions"]

    def make(self, suite: str) -> "RemoteEnvironment":
        self._environments.append(RemoteEnvironment(self._spec, suite))
        return self._environments[-1]

    def close(self) -> None:
        for environment in self._environments:
            environment.close()
        self._environments.clear()
        self._remote.close()


class RemoteEnvironment(Environment):
    """One environment in its own worker."""

    def __init__(self, spec: Spec, suite: str) -> None:
        self._remote = RemoteWorker(spec)
        self._suite = suite
        self._instruction: str | None = None

    def _ask(self, verb: str, **command: Any) -> dict[str, Any]:
        return self._remote.ask(verb, slot=0, suite=self._suite, **command)

    def reset(self, task: str, seed: int, factors: Mapping[str, str]) -> None:
        self._instruction = self._ask("reset", task=task, seed=seed, factors=dict(factors))["instruction"]

    def instruction(self) -> str | None:
        """Return the instruction at the last reset; None if the suite has it."""
        return self._instruction

    def observe(self) -> Observation:
        answer = self._ask("observe")
        return Observation(answer["images"], answer["proprio"])

    def begin(self, task: str) -> None:
        self._ask("begin", task=task)

    def step(self, action: np.ndarray) -> Mapping[str, bool]:
        return self._ask("step", action=np.asarray(action, np.float32))["goals"]

    def expert(self, task: str) -> np.ndarray:
        return self._ask("expert", task=task)["action"]

    def disturb(self, kind: str, seed: int) -> bool:
        return self._ask("disturb", kind=kind, seed=seed)["disturbed"]

    def frame(self, height: int, width: int) -> np.ndarray:
        return self._ask("frame", height=height, width=width)["frame"]

    def close(self) -> None:
        self._remote.close()
