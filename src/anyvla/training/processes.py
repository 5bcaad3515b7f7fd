"""The processes that train one policy together, and the small messages between them.

Messages go over gloo on the CPU, so that none of them synchronizes a GPU. A process may be late for hours, for example
while process 0 plays the policy: the others sleep until it comes. If a process fails where the others do not depend on
it, it says so in place of its next message, and all of them end with its error. If it dies, its connections close, and
the others end with `LostProcess`.

One process has the same interface and pays nothing: `Processes.single()` imports no part of `torch.distributed`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch

from anyvla.config import ConfigError
from anyvla.interrupted import Interrupted
from anyvla.training.launchers import Launch

T = TypeVar("T")
logger = logging.getLogger(__name__)

NUMBERS = 6  # of one message, at most
_JOIN = timedelta(minutes=10)  # until all processes have started
_NEVER = timedelta(days=365)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 20e-6, 0.05  # between two looks for the messages of the others
_FAREWELL_S = 10.0  # that a failed process waits for the others to hear of it
_PROBE_S = 2.0  # the same where they wait for it in another operation, unless all of them failed there
_LINGER_S = 3.0
_STOPS = (Interrupted, KeyboardInterrupt)
_EXPECTED = (OSError, ValueError, RuntimeError, ImportError, MemoryError)  # of which a message is printed


class LostProcess(RuntimeError):
    """Another process of this training died, or can no longer be reached."""


class EndedElsewhere(RuntimeError):
    """Another process of this training failed. The message is its own, with its rank and host."""


@dataclass(frozen=True)
class Message:
    """What one process said to all."""

    numbers: list[float]
    value: Any  # a document of JSON; None if it sent none


class _Late(Exception):
    """The others did not come in time."""


class Processes:
    """This process among those that train together. `rank` 0 writes, prints and measures."""

    def __init__(self, launch: Launch, group: Any) -> None:
        """Take the position of this process and a gloo group of all, None if there is no other."""
        self.launch, self.rank, self.count, self.local_rank = launch, launch.rank, launch.count, launch.local_rank
        self._group = group
        self._depended_on = False  # whether others wait for this process in an operation that carries no message
        self._heard = False  # of an error in another process
        self.hosts: list[str] = [socket.gethostname()]
        if group is not None:
            self.hosts = self.gather(self.hosts[0])

    @classmethod
    def single(cls) -> Processes:
        """Return the only process of a training."""
        return cls(Launch("none", 0, 1, 0, "", 0), None)

    @classmethod
    @contextlib.contextmanager
    def joined(cls, launch: Launch | None) -> Iterator[Processes]:
        """Join the processes of a launch, None for a single one. An error of one of them ends all.

        Raises ConfigError if they do not all come.
        """
        if launch is None:
            yield cls.single()
            return
        import torch.distributed as dist

        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        host = f"[{launch.address}]" if ":" in launch.address else launch.address
        try:
            dist.init_process_group(
                backend, f"tcp://{host}:{launch.port}", _JOIN, rank=launch.rank, world_size=launch.count
            )
            group = dist.new_group(timeout=_NEVER, backend="gloo")
        except (RuntimeError, ValueError, OSError) as error:
            raise ConfigError(
                f"process {launch.rank} of {launch.count} on {socket.gethostname()} found no way to the others at "
                f"{launch.address}:{launch.port} ({str(error).splitlines()[0][:200]}): check that all of them were "
                "started, that the address and the port can be reached from each machine, and that GLOO_SOCKET_IFNAME "
                "names its network interface if it has several"
            ) from error
        processes = cls(launch, group)
        with processes._ending_together():
            yield processes
        dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0

    @property
    def local_count(self) -> int:
        """The number of processes on this machine."""
        return self.hosts.count(self.hosts[self.rank])

    def describe(self, rank: int) -> str:
        """Return the name of a process in messages: "process 3 of 4 (host gpu07)"."""
        return f"process {rank} of {self.count} (host {self.hosts[rank]})"

    def split(self, rows: int) -> range:
        """Return the rows of a global batch that are this process's own. `rows` is a multiple of `count`."""
        size = rows // self.count
        return range(self.rank * size, (self.rank + 1) * size)

    def exchange(self, numbers: Sequence[float] = (), value: Any = None) -> list[Message]:
        """Send at most `NUMBERS` numbers and a document of JSON to all. Return the messages by rank.

        Every process must call it equally often. Raises EndedElsewhere, or Interrupted, if one of them failed instead,
        and LostProcess if one died.
        """
        if self._group is None:
            return [Message([float(number) for number in numbers], value)]
        return self._read(self._send(numbers, None if value is None else json.dumps({"value": value}), failed=False))

    def sum(self, *numbers: float) -> list[float]:
        """Return the sums of each number over all processes, added in float64 and by rank."""
        messages = self.exchange(numbers)
        return [sum(column) for column in zip(*(message.numbers for message in messages), strict=True)]

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return bool(self.sum(flag)[0])

    def gather(self, value: Any) -> list[Any]:
        """Return the documents of JSON of all processes, by rank."""
        return [message.value for message in self.exchange(value=value)]

    def on_main(self, work: Callable[[], T]) -> T:
        """Let process 0 do some work, and return its result, a document of JSON, in all of them."""
        return self.gather(work() if self.is_main else None)[0]

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Let process 0 through the context before the others, which then find what it left in a cache."""
        if not self.is_main:
            self.exchange()
        yield
        if self.is_main:
            self.exchange()

    def only_main(self, enter: Callable[[], AbstractContextManager[Any]]) -> AbstractContextManager[Any]:
        """Return a context for process 0, such as a lock, and an empty one for the others."""
        return enter() if self.is_main else contextlib.nullcontext()

    def wait_for_all(self) -> None:
        """Wait until every process is here."""
        self.exchange()

    @contextlib.contextmanager
    def depended_on(self) -> Iterator[None]:
        """Enclose work in which others wait for this process, as in sums of gradients: an error there ends it alone."""
        self._depended_on = True
        yield
        self._depended_on = False  # after an error it stays: the others still wait

    def _send(
        self, numbers: Sequence[float], text: str | None, *, failed: bool, limit_s: float = float("inf")
    ) -> list[tuple[bool, list[float], str | None]]:
        """Exchange messages: a head of a fixed size first, then the texts, if there is any."""
        own = b"" if text is None else text.encode()
        head = torch.zeros(3 + NUMBERS, dtype=torch.float64)
        head[: 3 + len(numbers)] = torch.tensor([failed, len(own), len(numbers), *numbers], dtype=torch.float64)
        heads = [row.tolist() for row in self._gather(head, limit_s)]
        lengths = [int(row[1]) for row in heads]
        texts: list[str | None] = [None] * self.count
        if any(lengths):
            padded = torch.zeros(max(lengths), dtype=torch.uint8)
            padded[: len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8) if own else padded[:0]
            rows = self._gather(padded)
            texts = [
                bytes(row[:length].tolist()).decode() if length else None
                for row, length in zip(rows, lengths, strict=True)
            ]
        return [(bool(row[0]), row[3 : 3 + int(row[2])], of) for row, of in zip(heads, texts, strict=True)]

    def _gather(self, own: torch.Tensor, limit_s: float = float("inf")) -> list[torch.Tensor]:
        """Return the tensors of all processes. Sleeps while it waits, so that signals are handled."""
        import torch.distributed as dist

        out = [torch.empty_like(own) for _ in range(self.count)]
        begin, pause = time.monotonic(), _FIRST_WAIT_S
        try:
            work = dist.all_gather(out, own, group=self._group, async_op=True)
            assert work is not None
            while not work.is_completed():
                if time.monotonic() - begin > limit_s:
                    raise _Late
                time.sleep(pause)
                pause = min(_LONGEST_WAIT_S, 1.3 * pause)
            work.wait()
        except RuntimeError as error:
            raise LostProcess(
                "another process of this training died or cannot be reached: look for its last lines, or for those "
                "of its launcher. The last checkpoint is whole, and the same command resumes"
            ) from error
        return out

    def _read(self, found: Sequence[tuple[bool, list[float], str | None]]) -> list[Message]:
        """Return the messages. Raise the error of the first process that failed."""
        for rank, (failed, _, text) in enumerate(found):
            if failed and text is not None:
                self._heard, error = True, json.loads(text)
                if error["interrupted"]:
                    raise Interrupted(error["message"])
                raise EndedElsewhere(f"{self.describe(rank)}: {error['message']}")
        return [Message(numbers, None if text is None else json.loads(text)["value"]) for _, numbers, text in found]

    @contextlib.contextmanager
    def _ending_together(self) -> Iterator[None]:
        """Tell the others of an error, and let it leave once all of them know: process 0 may still write."""
        try:
            yield
        except BaseException as error:
            found = self._part(error)
            if found is error:
                raise
            raise found from error

    def _part(self, error: BaseException) -> BaseException:
        """Return the error that leaves this process.

        Process 0 prints the message of the first process that failed. The others raise EndedElsewhere or LostProcess,
        which need not be printed. An error that cannot be told to the others leaves as it is.
        """
        if isinstance(error, LostProcess):
            return _linger(error)
        if not self._heard:
            text = json.dumps({"message": _describe(error), "interrupted": isinstance(error, _STOPS)})
            limit = _PROBE_S if self._depended_on else _FAREWELL_S
            try:
                found = self._send((), text, failed=True, limit_s=limit)
            except _Late:
                _record_for_torchrun(error)
                return error
            except LostProcess as lost:
                if self._depended_on and isinstance(error, RuntimeError):
                    return _linger(lost)
                _record_for_torchrun(error)
                return error
            if [failed for failed, _, _ in found].index(True) == self.rank:
                _record_for_torchrun(error)
        with contextlib.suppress(LostProcess):  # it had nothing left to do
            self._send((), None, failed=False)
        if self._heard or self.is_main or not isinstance(error, (*_STOPS, *_EXPECTED)):
            return error
        return Interrupted(str(error)) if isinstance(error, _STOPS) else EndedElsewhere(_describe(error))


def _describe(error: BaseException) -> str:
    return str(error) if isinstance(error, (*_STOPS, *_EXPECTED)) else f"{type(error).__name__}: {error}"


def _linger(error: LostProcess) -> LostProcess:
    """Wait a moment, so that torchrun sees the process that died before the ones that end because of it."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        with contextlib.suppress(KeyboardInterrupt):  # torchrun ends this process
            time.sleep(_LINGER_S)
    return error


def _record_for_torchrun(error: BaseException) -> None:
    """Write the traceback of an error to the file from which torchrun prints it."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
