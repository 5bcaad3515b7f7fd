"""One policy for many sessions at once: requests that come together are answered together."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from anyvla.policy import VLA, Session
from anyvla.types import Chunk, Observation


class Batcher:
    """Runs the policy in one thread, over all requests that wait. Use within one event loop."""

    def __init__(self, vla: VLA, wait_s: float = 0.002, largest: int = 32) -> None:
        """`wait_s`: how long the first request waits for others; `largest`: how many are answered together."""
        self._vla, self._wait_s, self._largest = vla, wait_s, largest
        self._waiting: list[tuple[Observation, Session, asyncio.Future[Chunk]]] = []
        self._thread = ThreadPoolExecutor(1, "policy")
        self._running: asyncio.Task[None] | None = None
        self.sizes: list[int] = []  # of the batches so far

    async def act(self, observation: Observation, session: Session) -> Chunk:
        """The chunk of one session. Raises ValueError as `VLA.act`."""
        answer: asyncio.Future[Chunk] = asyncio.get_running_loop().create_future()
        self._waiting.append((observation, session, answer))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await answer

    async def _run(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._wait_s)
            batch, self._waiting = self._waiting[: self._largest], self._waiting[self._largest :]
            # Pictures of one size act together; others in a call of their own.
            by_size: dict[object, list[tuple[Observation, Session, asyncio.Future[Chunk]]]] = {}
            for item in batch:
                by_size.setdefault(tuple(i.shape for i in item[0].images.values()), []).append(item)
            for group in by_size.values():
                await self._answer(group)

    async def _answer(self, group: list[tuple[Observation, Session, asyncio.Future[Chunk]]]) -> None:
        self.sizes.append(len(group))
        observations, sessions = [o for o, _, _ in group], [s for _, s, _ in group]
        try:
            chunks = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._vla.act, observations, sessions
            )
        except Exception as error:  # told to each who asked
            for _, _, answer in group:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, _, answer), chunk in zip(group, chunks, strict=True):
            if not answer.done():
                answer.set_result(chunk)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)
