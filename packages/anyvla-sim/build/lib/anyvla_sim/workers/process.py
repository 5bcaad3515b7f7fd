"""The evaluating side of a worker process: starts it in its interpreter, sends commands and queues the answers."""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple

from anyvla_sim import signals
from anyvla_sim.base import BenchmarkUnusable
from anyvla_sim.spec import Spec
from anyvla_sim.workers.wire import receive, send

# Another interpreter runs this copy of the package, so it needs numpy and msgpack but no installation of anyvla-sim.
_BOOT = """
import importlib.util, os, sys
path = sys.argv[1]
spec = importlib.util.spec_from_file_location("anyvla_sim", path, submodule_search_locations=[os.path.dirname(path)])
sys.modules["anyvla_sim"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from anyvla_sim.workers.worker import main
main()
"""
_LINES = 40  # lines of standard error that are kept for the error message

Event = Tuple["WorkerProcess", Optional[Dict[str, Any]]]  # None: it died, or was stopped


class WorkerProcess:
    """One process that simulates. It puts its answers and its end into the given queue."""

    def __init__(self, spec: Spec, events: "queue.Queue[Event]") -> None:
        """Start the process and open the benchmark in it. Raises BenchmarkUnusable if there is no such interpreter."""
        python = find_interpreter(spec.python)
        environment = dict(os.environ)
        if spec.python is None:  # the same modules can be imported there
            environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        self.pending = 0  # commands without an answer
        self.resident_mb = 0.0
        self._errors: collections.deque[str] = collections.deque(maxlen=_LINES)
        self._events = events
        with signals.blocked():
            self._process = subprocess.Popen(
                [python, "-c", _BOOT, str(Path(__file__).parents[1] / "__init__.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                start_new_session=True,  # a terminal's signals do not reach it
            )
        self._readers = [threading.Thread(target=r, daemon=True) for r in (self._read_answers, self._read_errors)]
        for reader in self._readers:
            reader.start()
        self.send({"verb": "open", "target": spec.target, "settings": dict(spec.settings)})

    def send(self, command: Mapping[str, Any]) -> None:
        """Send a command. If the process is gone, the queue has its end."""
        self.pending += 1
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            send(self._process.stdin, command)

    def _read_answers(self) -> None:
        assert self._process.stdout is not None
        while True:
            try:
                answer = receive(self._process.stdout)
            except (OSError, ValueError):
                answer = None
            self._events.put((self, answer))
            if answer is None:
                return

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._errors.append(line.decode(errors="replace").rstrip())

    def describe_death(self) -> str:
        """Return an error message with the exit status and the last lines of standard error."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._readers[1].join(1)
        status = self._process.returncode
        hint = "; -9 is often a lack of memory: try fewer processes or slots" if status == -9 else ""
        errors = "\n".join(self._errors)
        return f"the simulator's process died (exit status {status}{hint})" + (f":\n{errors}" if errors else "")

    def close(self, patience_s: float = 2.0) -> None:
        """Close the input of the process, and kill it if it does not end."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:  # hangs in its simulator
            self._process.kill()
            self._process.wait()
        for reader, stream in zip(self._readers, (self._process.stdout, self._process.stderr)):
            reader.join(1)
            # Closing a stream waits for its reader, and a child of the worker may still hold the other end open.
            if stream is not None and not reader.is_alive():
                stream.close()


def find_interpreter(python: str | None) -> str:
    """Return the path of an interpreter, by default this one. Raises BenchmarkUnusable if there is none."""
    if python is None:
        return sys.executable
    found = shutil.which(str(Path(python).expanduser()))
    if found is None:
        raise BenchmarkUnusable(
            f"there is no interpreter {python}: give the path of a python, as ~/envs/calvin/bin/python"
        )
    return found


def explain_missing_package(message: str, python: str | None) -> str | None:
    """Return the install command if `message` is of a worker that lacks numpy or msgpack, else None."""
    for package in ("numpy", "msgpack"):
        if f"No module named '{package}'" in message:
            return f"the interpreter {python} lacks {package}: run {python} -m pip install anyvla-sim"
    return None
