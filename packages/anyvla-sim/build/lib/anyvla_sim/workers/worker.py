"""The worker process: runs environments in its own interpreter and answers commands from its standard input.

It holds several environments of one suite, numbered by slots. The simulator runs in the main thread, as GL contexts
require. Output of the simulator goes to standard error; standard output carries messages (`wire`).
"""

from __future__ import annotations

import os
import platform
import queue
import sys
import threading
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Mapping

import numpy as np

from anyvla_sim import signals
from anyvla_sim.base import Benchmark, BenchmarkUnusable, ExpertStuck
from anyvla_sim.spec import Spec
from anyvla_sim.workers.wire import receive, send

GRACE_S = 2.0  # time that a worker has to end by itself after its parent is gone


class SlotEnvironments:
    """The environments of a worker, one per slot, and the commands that they answer."""

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark = benchmark
        self._slots: dict[Any, _Slot] = {}

    def answer(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Run one command and return its answer. Raises the errors of the benchmark."""
        if command["verb"] == "about":
            return self._about()
        if command["verb"] == "describe":
            return self._describe(command["suite"])
        if command["slot"] not in self._slots:
            self._slots[command["slot"]] = _Slot(self.benchmark.make(command["suite"]))
        return self._slots[command["slot"]].answer(command)

    def drop(self, slot: Any) -> None:
        """Drop an environment that failed. The next command for the slot makes another."""
        self._slots.pop(slot, None)

    def _about(self) -> dict[str, Any]:
        benchmark = self.benchmark
        return {
            "name": benchmark.name,
            "settings": dict(benchmark.settings),
            "factors": {factor: list(levels) for factor, levels in benchmark.factors.items()},
            "disturbances": list(benchmark.disturbances),
            "suites": list(benchmark.suites()),
            "versions": {**benchmark.versions(), "python": platform.python_version()},
        }

    def _describe(self, suite: str) -> dict[str, Any]:
        benchmark = self.benchmark
        return {
            "suite": asdict(benchmark.suite(suite)),
            "embodiment": dict(benchmark.embodiment(suite)),
            "protocol": dict(benchmark.protocol(suite)),
        }


class _Slot:
    """An environment, and the counts of its actions."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment
        self._steps = 0  # since the reset, or since the task of the chain began
        self._clipped = 0  # since the reset

    def answer(self, command: Mapping[str, Any]) -> dict[str, Any]:
        environment, verb = self._environment, command["verb"]
        if verb == "execute":
            return self._execute(command["actions"], command["until_goal"])
        if verb == "disturb":
            done = bool(environment.disturb(command["kind"], command["seed"]))
            return {**self._state({}), "disturbed": done}
        # `remote` uses these four.
        if verb == "observe":
            return self._observe()
        if verb == "step":
            return {"goals": _as_flags(environment.step(command["action"]))}
        if verb == "expert":
            return {"action": environment.expert(command["task"])}
        if verb == "frame":
            return {"frame": environment.frame(command["height"], command["width"])}
        if verb in ("foresee", "locate", "move"):
            return self._touch(verb, command)
        if verb == "close_up":
            height, width = command["height"], command["width"]
            if hasattr(environment, "close_up"):
                return {"frame": environment.close_up(height, width)}
            return {"frame": environment.frame(min(height, width), min(height, width))}  # some are square
        if verb == "reset":
            environment.reset(command["task"], command["seed"], command["factors"])
            self._clipped = 0
        elif verb == "begin":
            environment.begin(command["task"])
        else:
            raise ValueError(f"unknown command {verb!r}: both interpreters need the same version of anyvla-sim")
        self._steps = 0
        return self._state({})

    def _touch(self, verb: str, command: Mapping[str, Any]) -> dict[str, Any]:
        """Run one of the commands for visitors, which not all environments have; the answer is None without it."""
        method = getattr(self._environment, verb, None)
        if method is None:
            return {verb: None}
        return {verb: method(*(np.asarray(command[key]) for key in ("actions", "shift") if key in command))}

    def _execute(self, actions: np.ndarray, until_goal: bool) -> dict[str, Any]:
        """Execute actions (n, A); with `until_goal`, stop once a goal holds."""
        goals: Mapping[str, bool] = {}
        limits = getattr(self._environment, "limits", None)
        for action in actions:
            if limits is not None:
                tolerance = 1e-3 * (limits[1] - limits[0])
                self._clipped += bool(np.any((action < limits[0] - tolerance) | (action > limits[1] + tolerance)))
            goals = self._environment.step(action)
            self._steps += 1
            if until_goal and any(goals.values()):
                break
        return self._state(goals, over=until_goal and any(goals.values()))

    def _state(self, goals: Mapping[str, bool], over: bool = False) -> dict[str, Any]:
        """Return the state after a command, without an observation if the episode is over."""
        get_instruction = getattr(self._environment, "instruction", None)
        return {
            "instruction": get_instruction() if get_instruction else None,
            "observation": None if over else self._observe(),
            "goals": _as_flags(goals),
            "steps": self._steps,
            "clipped": self._clipped,
        }

    def _observe(self) -> dict[str, Any]:
        observation = self._environment.observe()
        return {"images": dict(observation.images), "proprio": observation.proprio}


def _as_flags(goals: Mapping[str, Any]) -> dict[str, bool]:
    return {task: bool(holds) for task, holds in goals.items()}


def _measure_resident_mb() -> float:
    """Return the resident memory of this process in MB, or 0 if it is unknown."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, ValueError):
        return 0.0


def _read_commands(stream: IO[bytes]) -> "queue.Queue[dict[str, Any] | None]":
    """Return a queue of the commands, with None at their end. Then end the process, even if its main thread hangs."""
    commands: "queue.Queue[dict[str, Any] | None]" = queue.Queue()

    def read() -> None:
        command: dict[str, Any] | None = {}
        while command is not None:
            try:
                command = receive(stream)
            except ValueError:  # no message of anyvla: treat it as the end
                command = None
            commands.put(command)
        end = threading.Timer(GRACE_S, os._exit, (1,))
        end.daemon = True
        end.start()

    threading.Thread(target=read, daemon=True).start()
    return commands


def _format_error(error: BaseException) -> str:
    """Return the message of an error that is written for users, the traceback of any other."""
    if isinstance(error, (ImportError, ValueError, BenchmarkUnusable)):
        return str(error)
    return "".join(traceback.format_exception(type(error), error, error.__traceback__)).strip()


def main() -> None:
    """Answer commands until standard input ends. The first command opens the benchmark."""
    signals.ignore()
    os.environ["LP_NUM_THREADS"] = "1"  # else Mesa's software renderer takes all cores in each process
    commands = _read_commands(os.fdopen(os.dup(0), "rb"))
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a simulator that asks a question reads the end of the file
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    environments: SlotEnvironments | None = None
    while True:
        command = commands.get()
        if command is None:
            return
        slot = command.get("slot")
        try:
            if environments is None:
                environments = SlotEnvironments(Spec(command["target"], command["settings"]).open())
                answer: dict[str, Any] = {"python": platform.python_version()}
            else:
                answer = environments.answer(command)
            answer["kind"] = "answer"
        except ExpertStuck as error:  # the environment is still usable
            answer = {"kind": "stuck", "message": str(error)}
        except Exception as error:
            bad_input = isinstance(error, ValueError) and command["verb"] in ("open", "describe", "reset", "begin")
            unusable = bad_input or isinstance(error, (ImportError, BenchmarkUnusable))
            answer = {"kind": "unusable" if unusable else "failed", "message": _format_error(error)}
            if environments is not None:
                environments.drop(slot)
        answer.update(verb=command["verb"], slot=slot, resident_mb=_measure_resident_mb())
        try:
            send(out, answer)
        except OSError:  # the parent is gone
            return


if __name__ == "__main__":
    main()
