"""The process that simulates: answers commands on its standard input, in whatever interpreter it was started.

Several environments of one suite live in it, numbered by slots. The simulator runs in the main thread, where GL
contexts belong. What a simulator prints goes to standard error; standard output carries messages (`wire`).
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

GRACE_S = 2.0  # how long a worker whose parent is gone may take to end by itself


class Played:
    """The environments of a worker and what they play."""

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark = benchmark
        self._environments: dict[Any, Any] = {}
        self._steps: dict[Any, int] = {}
        self._clipped: dict[Any, int] = {}

    def answer(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out one command. Raises what the benchmark raises."""
        verb = command["verb"]
        if verb == "about":
            return self._about()
        if verb == "describe":
            return self._describe(command["suite"])
        slot = command["slot"]
        environment = self._environments.get(slot)
        if environment is None:
            environment = self._environments[slot] = self.benchmark.make(command["suite"])
        return getattr(self, "_" + verb)(environment, slot, command)

    def drop(self, slot: Any) -> None:
        """Forget an environment that failed: the next command makes another."""
        self._environments.pop(slot, None)

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

    def _reset(self, environment: Any, slot: Any, command: Mapping[str, Any]) -> dict[str, Any]:
        environment.reset(command["task"], command["seed"], command["factors"])
        self._steps[slot] = self._clipped[slot] = 0
        return self._shown(environment, slot, {})

    def _begin(self, environment: Any, slot: Any, command: Mapping[str, Any]) -> dict[str, Any]:
        environment.begin(command["task"])
        self._steps[slot] = 0
        return self._shown(environment, slot, {})

    def _execute(self, environment: Any, slot: Any, command: Mapping[str, Any]) -> dict[str, Any]:
        """Up to n actions; fewer if a goal holds before and `until_goal` is set."""
        goals: Mapping[str, bool] = {}
        limits = getattr(environment, "limits", None)
        for action in command["actions"]:
            if limits is not None:
                tolerance = 1e-3 * (limits[1] - limits[0])
                self._clipped[slot] += bool(np.any((action < limits[0] - tolerance) | (action > limits[1] + tolerance)))
            goals = environment.step(action)
            self._steps[slot] += 1
            if command["until_goal"] and any(goals.values()):
                break
        return self._shown(environment, slot, goals, over=command["until_goal"] and any(goals.values()))

    def _disturb(self, environment: Any, slot: Any, command: Mapping[str, Any]) -> dict[str, Any]:
        done = bool(environment.disturb(command["kind"], command["seed"]))
        return {**self._shown(environment, slot, {}), "disturbed": done}

    def _shown(self, environment: Any, slot: Any, goals: Mapping[str, bool], over: bool = False) -> dict[str, Any]:
        seen = None if over else environment.observe()  # once a goal holds the episode is over, and rendering costs
        speak = getattr(environment, "instruction", None)
        return {
            "instruction": speak() if speak else None,
            "observation": None if seen is None else {"images": dict(seen.images), "proprio": seen.proprio},
            "goals": {task: bool(holds) for task, holds in goals.items()},
            "steps": self._steps[slot],
            "clipped": self._clipped[slot],
        }

    # One command at a time, for demonstrations and videos (`remote`).

    def _observe(self, environment: Any, slot: Any, command: Mapping[str, Any]) -> dict[str, Any]:
        seen = environment.observe()
        return {"images": dict(seen.images), "proprio": seen.proprio}

    def _step(self, environment: Any, slot: Any, command: Mapping[str, Any]) -> dict[str, Any]:
        return {"goals": {task: bool(holds) for task, holds in environment.step(command["action"]).items()}}

    def _expert(self, environment: Any, slot: Any, command: Mapping[str, Any]) -> dict[str, Any]:
        return {"action": environment.expert(command["task"])}

    def _frame(self, environment: Any, slot: Any, command: Mapping[str, Any]) -> dict[str, Any]:
        return {"frame": environment.frame(command["height"], command["width"])}


def _resident_mb() -> float:
    """The memory of this process, in MB; 0 where it cannot be told."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, ValueError):
        return 0.0


def _commands(stream: IO[bytes]) -> "queue.Queue[dict[str, Any] | None]":
    """Commands as they come, None at their end; a main thread that hangs does not outlive its parent."""
    commands: "queue.Queue[dict[str, Any] | None]" = queue.Queue()

    def read() -> None:
        command: dict[str, Any] | None = {}
        while command is not None:
            try:
                command = receive(stream)
            except ValueError:  # not ours: as good as gone
                command = None
            commands.put(command)
        end = threading.Timer(GRACE_S, os._exit, (1,))
        end.daemon = True
        end.start()

    threading.Thread(target=read, daemon=True).start()
    return commands


def _message(error: BaseException) -> str:
    """What a person needs: the sentence of an error that was made for people, the traceback of any other."""
    if isinstance(error, (ImportError, ValueError, BenchmarkUnusable)):
        return str(error)
    return "".join(traceback.format_exception(type(error), error, error.__traceback__)).strip()


def main() -> None:
    """Answer until standard input ends. The first command opens the benchmark."""
    signals.ignore()
    os.environ["LP_NUM_THREADS"] = "1"  # Mesa's software renderer would take all cores in each process
    commands = _commands(os.fdopen(os.dup(0), "rb"))
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a simulator that asks questions reads an end
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    played: Played | None = None
    while True:
        command = commands.get()
        if command is None:
            return
        slot = command.get("slot")
        try:
            if played is None:
                played = Played(Spec(command["target"], command["settings"]).open())
                answer: dict[str, Any] = {"python": platform.python_version()}
            else:
                answer = played.answer(command)
            answer["kind"] = "answer"
        except ExpertStuck as error:  # the environment is as good as before
            answer = {"kind": "stuck", "message": str(error)}
        except Exception as error:
            bad_input = isinstance(error, ValueError) and command["verb"] in ("open", "describe", "reset", "begin")
            unusable = bad_input or isinstance(error, (ImportError, BenchmarkUnusable))
            answer = {"kind": "unusable" if unusable else "failed", "message": _message(error)}
            if played is not None:
                played.drop(slot)
        answer.update(verb=command["verb"], slot=slot, resident_mb=_resident_mb())
        try:
            send(out, answer)
        except OSError:  # the parent is gone
            return


if __name__ == "__main__":
    main()
