"""Serve many sessions with one policy: requests that arrive while it computes are answered in one batch.

A request that finds the policy idle runs at once, if the batch before had one request too: a lone client never waits.
After a batch of several, the next one waits a moment until as many requests are there.

An error goes to the request that caused it. `VLA.act` leaves sessions unchanged when it raises, so a failed batch is
repeated in halves until the faulty request is alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float32

from anyvla.policy import VLA
from anyvla.serving.metrics import Metrics
from anyvla.session import Session, copy_sessions, separate
from anyvla.types import Chunk, Observation

T = TypeVar("T")
Committed = Float32[np.ndarray, "K A"] | None  # actions that a chunk must begin with


@dataclass(frozen=True)
class _Waiting:
    observation: Observation
    session: Session
    committed: Committed
    answer: asyncio.Future[Chunk]
    arrived: float = field(default_factory=time.perf_counter)


class BusyError(ValueError):
    """Too many requests wait for the policy."""


class Batcher:
    """Run the policy in one thread, over all requests that wait. Use within one event loop."""

    def __init__(
        self,
        vla: VLA,
        wait_s: float = 0.002,
        largest: int = 32,
        pending: int = 256,
        metrics: Metrics | None = None,
    ) -> None:
        """`wait_s` is the longest wait for others. At most `largest` run together, and at most `pending` wait."""
        self._vla, self._wait_s, self._largest, self._pending = vla, wait_s, largest, pending
        self._metrics = metrics or Metrics()
        self._waiting: list[_Waiting] = []
        self._expected = 1  # requests of the next batch, if the clients of the last one ask again
        self._enough = asyncio.Event()  # set when they have arrived
        self._thread = _Thread()
        self._running: asyncio.Task[None] | None = None
        self.sizes: deque[int] = deque(maxlen=1000)  # of the last batches

    async def act(self, observation: Observation, session: Session, committed: Committed = None) -> Chunk:
        """Return the next chunk of one session, unless canceled. Raises ValueError like `VLA.act`, and BusyError."""
        if len(self._waiting) >= self._pending:
            self._waiting = [item for item in self._waiting if not item.answer.done()]  # others were canceled
        if len(self._waiting) >= self._pending:
            raise BusyError(f"the server is busy: {self._pending} requests wait for the policy; try again later")
        item = _Waiting(observation, session, committed, asyncio.get_running_loop().create_future())
        self._waiting.append(item)
        if len(self._waiting) >= self._expected:
            self._enough.set()
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await item.answer

    async def start(self, instruction: str, seed: int, robot: str) -> Session:
        """Open a session. Raises ValueError like `VLA.start`, which must not run in the event loop, as it tokenizes."""
        return await self.call(lambda: self._vla.start(instruction, seed, robot))

    def copy(self, session: Session) -> Session:
        """Return an independent copy of a session."""
        return copy_sessions([session], self._vla.history)[0]

    async def separate(self, session: Session) -> None:
        """Release the memory that a session shares with those of its last batch. It must not act meanwhile."""
        await self.call(lambda: separate(session, self._vla.history))

    async def call(self, run: Callable[[], T]) -> T:
        """Return the result of `run` in the thread of the policy. It does not run if the caller is canceled before."""
        return await self._thread.call(run)

    async def _run(self) -> None:
        while self._waiting:
            await self._wait_for_others()
            self._waiting = [item for item in self._waiting if not item.answer.done()]
            batch, self._waiting = self._waiting[: self._largest], self._waiting[self._largest :]
            self._expected = max(1, len(batch))
            # Observations act together if their images have the same sizes.
            by_size: dict[object, list[_Waiting]] = {}
            for item in batch:
                by_size.setdefault(tuple(i.shape for i in item.observation.images.values()), []).append(item)
            for group in by_size.values():
                await self._answer(group)

    async def _wait_for_others(self) -> None:
        if len(self._waiting) < self._expected:
            self._enough.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._enough.wait(), self._wait_s)

    async def _answer(self, group: list[_Waiting]) -> None:
        self.sizes.append(len(group))
        self._metrics.add_batch(len(group))
        observations, sessions = [item.observation for item in group], [item.session for item in group]
        committed = [item.committed for item in group]
        known = () if all(of is None for of in committed) else (committed,)
        begin = time.perf_counter()
        try:
            chunks = await self._thread.call(lambda: self._vla.act(observations, sessions, *known))
        except Exception as error:
            if len(group) > 1:
                await self._answer(group[: len(group) // 2])
                await self._answer(group[len(group) // 2 :])
            elif not group[0].answer.done():
                group[0].answer.set_exception(error)
            return
        seconds = time.perf_counter() - begin
        for item, chunk in zip(group, chunks, strict=True):
            self._metrics.add_stage("queue", begin - item.arrived)
            self._metrics.add_stage("policy", seconds)
            if not item.answer.done():
                item.answer.set_result(chunk)

    def close(self, wait_s: float = 5.0) -> bool:
        """End the thread. Return False if the policy still computes after `wait_s`."""
        return self._thread.close(wait_s)


class _Thread:
    """A thread that runs calls one after the other. It is a daemon: a call that never ends can't keep the process."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="policy", daemon=True)
        self._thread.start()

    async def call(self, run: Callable[[], T]) -> T:
        """Return the result of `run`, or raise its error. It does not run if the caller is canceled before."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def settle(give: Callable[[Any], None], outcome: Any) -> None:
            if not answer.done():  # else the caller is gone
                give(outcome)

        def work() -> None:
            if answer.done():
                return
            give: Callable[[Any], None] = answer.set_result
            try:
                outcome: Any = run()
            except BaseException as error:
                give, outcome = answer.set_exception, error
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(settle, give, outcome)

        self._calls.put(work)
        return await answer

    def close(self, wait_s: float) -> bool:
        """Return whether the thread ended within `wait_s`."""
        self._calls.put(None)
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (work := self._calls.get()) is not None:
            work()
