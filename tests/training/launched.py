"""Run functions of tests, or anyvla, in several processes that find each other as those of a launcher do.

`python -m tests.training.launched` imports anyvla once and forks the processes, because each import costs seconds.
Where a test needs the real launcher, `torchrun` starts it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
Target = Callable[..., object] | str  # a function of a module of tests, or the name "anyvla"


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int  # of the exit; -9 if it was killed
    out: str
    err: str

    @property
    def said(self) -> list[Any]:
        """The lines of JSON that it printed."""
        return [json.loads(line) for line in self.out.splitlines()]


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """Return the environment of this process without the variables of launchers."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "ACCELERATE_", "TORCHELASTIC_"))}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        own.pop(name, None)
    paths = os.pathsep.join([str(ROOT), *(p for p in sys.path if p)])
    # PyTorch reads the level when it is imported; `anyvla train` sets it before
    return own | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", **more}


def variables(count: int) -> list[dict[str, str]]:
    """Return what torchrun sets in each of some processes of one machine."""
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


class Running:
    """Processes that were started together."""

    def __init__(self, launcher: Launcher, processes: list[int], folder: Path) -> None:
        self.processes, self._launcher, self._folder = processes, launcher, folder

    def read(self, rank: int, stream: str = "err") -> str:
        """Return what a process has printed so far."""
        path = self._folder / f"{rank}.{stream}"
        return path.read_text() if path.is_file() else ""

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 60) -> None:
        """Wait for a condition. Raises TimeoutError with the output of all processes."""
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError("\n".join(self.read(rank) for rank in range(len(self.processes))))
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill all processes."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def wait(self, timeout_s: float = 120) -> list[Ended]:
        """Wait for all processes, and kill them if they do not end in time."""
        statuses = self._launcher.ask("wait", processes=self.processes, timeout_s=timeout_s)
        return [Ended(s, self.read(rank, "out"), self.read(rank, "err")) for rank, s in enumerate(statuses)]


class Launcher:
    """Starts processes in forked children."""

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        self._server, self._folder, self._count = server, folder, 0

    def start(self, target: Target, *arguments: Any, own: Sequence[Mapping[str, str]]) -> Running:
        """Start `target` with texts as arguments, in one process for each of these environments."""
        name = target if isinstance(target, str) else f"{target.__module__}:{target.__name__}"
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        given = [str(argument) for argument in arguments]
        own = [dict(of) for of in own]
        return Running(self, self.ask("start", target=name, arguments=given, own=own, folder=str(folder)), folder)

    def __call__(self, target: Target, count: int, *arguments: Any, timeout_s: float = 120, **more: str) -> list[Ended]:
        """Run `target` in processes with the variables of torchrun and these, and return how they ended."""
        return self.start(target, *arguments, own=[of | more for of in variables(count)]).wait(timeout_s)

    def ask(self, what: str, **facts: Any) -> Any:
        """Send a request to the process that forks, and return its answer."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps({"what": what, **facts}) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


@contextmanager
def launcher() -> Iterator[Launcher]:
    """Start the process that imports anyvla and forks."""
    with tempfile.TemporaryDirectory(prefix="anyvla-launched-") as folder:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.training.launched"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        try:
            yield Launcher(server, Path(folder))
        finally:
            server.communicate()


def torchrun(*arguments: Any, count: int, options: Sequence[str] = (), **more: str) -> subprocess.Popen[str]:
    """Start `torchrun ... -m anyvla ARGUMENTS` on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), *options]
    return subprocess.Popen(
        [*command, "-m", "anyvla", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**more),
    )  # fmt: skip


def _run(asked: dict[str, Any], rank: int) -> None:
    """Run the target in this process, which is a child, and end it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{asked['folder']}/{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ.update(asked["own"][rank])
    status = 70
    try:
        if asked["target"] == "anyvla":
            from anyvla.cli.main import main

            status = main(asked["arguments"])
        else:
            module, _, function = asked["target"].partition(":")
            status = getattr(importlib.import_module(module), function)(*asked["arguments"]) or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _wait(process: int, end: float) -> int:
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.01)


def _serve() -> None:
    import anyvla.cli.train
    import anyvla.training.loop  # noqa: F401
    from tests.small import policy

    policy(decoder="flow")  # imports all that a child needs
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["what"] == "start":
            answer = []
            for rank in range(len(asked["own"])):
                child = os.fork()
                if child == 0:
                    _run(asked, rank)
                answer.append(child)
        else:
            end = time.monotonic() + asked["timeout_s"]
            answer = [_wait(process, end) for process in asked["processes"]]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
