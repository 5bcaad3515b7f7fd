"""A benchmark of another interpreter behind the same contract: for listing, demonstrations and videos.

An evaluation of many episodes uses `pool`, which overlaps simulation with the policy; this asks and waits.
"""

from __future__ import annotations

import queue
from typing import Any, Mapping, Sequence

import numpy as np

from anyvla_sim.base import Benchmark, BenchmarkUnusable, ExpertStuck, Observation, Suite, Task
from anyvla_sim.spec import Spec
from anyvla_sim.workers.process import Event, WorkerProcess, lacking

PATIENCE_S = 600.0  # for one answer: the first of an environment loads its models


class Failed(RuntimeError):
    """A simulator raised, or its process died."""


class Remote:
    """One worker, asked synchronously. Use as a context manager, or close it."""

    def __init__(self, spec: Spec) -> None:
        """Raises BenchmarkUnusable if the benchmark cannot be opened there."""
        self._python = spec.python
        self._events: "queue.Queue[Event]" = queue.Queue()
        self._worker = WorkerProcess(spec, self._events)
        self._answer()

    def ask(self, verb: str, **command: Any) -> dict[str, Any]:
        """Carry out a command.

        Raises BenchmarkUnusable for bad input, ExpertStuck if an expert gives up, Failed if the simulator fails.
        """
        self._worker.send({"verb": verb, **command})
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        try:
            _, answer = self._events.get(timeout=PATIENCE_S)
        except queue.Empty:
            raise Failed(f"the simulator did not answer for {PATIENCE_S:.0f} s") from None
        if answer is None:
            said = self._worker.death()
            missing = lacking(said, self._python)
            raise BenchmarkUnusable(missing) if missing else Failed(said)
        if answer["kind"] != "answer":
            raise {"unusable": BenchmarkUnusable, "stuck": ExpertStuck}.get(answer["kind"], Failed)(answer["message"])
        return answer

    def close(self) -> None:
        """End the worker."""
        self._worker.close()

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def connect(spec: Spec) -> Benchmark:
    """The benchmark: itself where it runs in this interpreter, else its stand-in."""
    return spec.open() if spec.python is None else RemoteBenchmark(spec)


class RemoteBenchmark:
    """A benchmark whose simulator lives in another interpreter."""

    def __init__(self, spec: Spec) -> None:
        """Raises BenchmarkUnusable if it cannot be opened there."""
        self._spec = spec
        self._remote = Remote(spec)
        about = self._remote.ask("about")
        self.name: str = about["name"]
        self.settings: Mapping[str, Any] = about["settings"]
        self.factors: Mapping[str, Sequence[str]] = about["factors"]
        self.disturbances: Sequence[str] = about["disturbances"]
        self._suites: list[str] = about["suites"]
        self._described: dict[str, dict[str, Any]] = {}
        self._environments: list[RemoteEnvironment] = []

    def _about(self, suite: str) -> dict[str, Any]:
        if suite not in self._described:
            try:
                self._described[suite] = self._remote.ask("describe", suite=suite)
            except BenchmarkUnusable as error:
                raise ValueError(str(error)) from None
        return self._described[suite]

    def suites(self) -> Sequence[str]:
        """The names of its suites."""
        return self._suites

    def suite(self, name: str) -> Suite:
        """Raises ValueError for an unknown name."""
        described = dict(self._about(name)["suite"])
        tasks = [Task(**task) for task in described.pop("tasks")]
        return Suite(tasks=tasks, **described)

    def embodiment(self, suite: str) -> Mapping[str, Any]:
        """The robot of a suite."""
        return self._about(suite)["embodiment"]

    def protocol(self, suite: str) -> Mapping[str, Any]:
        """What makes its results comparable with others'."""
        return self._about(suite)["protocol"]

    def versions(self) -> Mapping[str, str]:
        """Of what runs there."""
        return self._remote.ask("about")["versions"]

    def make(self, suite: str) -> "RemoteEnvironment":
        """An environment with a worker of its own."""
        self._environments.append(RemoteEnvironment(self._spec, suite))
        return self._environments[-1]

    def close(self) -> None:
        """End the workers."""
        for environment in self._environments:
            environment.close()
        self._environments.clear()
        self._remote.close()


class RemoteEnvironment:
    """One environment of a worker."""

    def __init__(self, spec: Spec, suite: str) -> None:
        self._remote = Remote(spec)
        self._suite = suite
        self._instruction: str | None = None

    def _ask(self, verb: str, **command: Any) -> dict[str, Any]:
        return self._remote.ask(verb, slot=0, suite=self._suite, **command)

    def reset(self, task: str, seed: int, factors: Mapping[str, str]) -> None:
        """Start an episode."""
        self._instruction = self._ask("reset", task=task, seed=seed, factors=dict(factors))["instruction"]

    def instruction(self) -> str | None:
        """What the robot is told now; None if its task's phrases say it."""
        return self._instruction

    def observe(self) -> Observation:
        """Render the cameras and read the proprio of now."""
        shown = self._ask("observe")
        return Observation(shown["images"], shown["proprio"])

    def begin(self, task: str) -> None:
        """The next task of a chain."""
        self._ask("begin", task=task)

    def step(self, action: np.ndarray) -> Mapping[str, bool]:
        """Act once."""
        return self._ask("step", action=np.asarray(action, np.float32))["goals"]

    def expert(self, task: str) -> np.ndarray:
        """What the scripted expert would do now."""
        return self._ask("expert", task=task)["action"]

    def disturb(self, kind: str, seed: int) -> bool:
        """Disturb it now."""
        return self._ask("disturb", kind=kind, seed=seed)["disturbed"]

    def frame(self, height: int, width: int) -> np.ndarray:
        """A picture for people."""
        return self._ask("frame", height=height, width=width)["frame"]

    def close(self) -> None:
        """End its worker."""
        self._remote.close()
