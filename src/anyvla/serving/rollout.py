"""A rollout that outlasts connections: it executes each numbered request once, and repeats the answer to the last one.

A client whose connection is lost does not know whether its last request was executed. It sends the same bytes again: an
executed request gets its answer again, and one that is still in progress is waited for. So the history of the policy
never has an observation twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from anyvla.serving.batching import BusyError
from anyvla.serving.served_session import ServedSession

_WAITING = 4  # requests of one rollout that are in progress at once, as others of lost connections may be


class Rollout:
    """A session, its instruction and its seed, and the answer to its last request."""

    def __init__(self, session: ServedSession) -> None:
        self.session, self.instruction, self.seed = session, "", 0
        self._turn = asyncio.Lock()
        self._number, self._checksum, self._answer = 0, 0, b""  # of the last executed request
        self._tasks: dict[tuple[int, int], asyncio.Task[bytes]] = {}  # in progress, by number and checksum

    def restart(self, instruction: str, seed: int) -> None:
        """Begin a new rollout."""
        self.instruction, self.seed = instruction, seed
        self.session.reset(seed)

    async def answer_once(self, number: int, checksum: int, run: Callable[[], Awaitable[bytes]]) -> bytes:
        """Return the answer of `run` to request `number`, or the answer that the same request got before.

        `checksum`: of the request's bytes. `run` continues if this call is canceled. A request that fails may be sent
        again with its number. Raises ValueError for an old number, and if another request had the number.
        """
        task = self._tasks.get((number, checksum))
        if task is None:
            if len(self._tasks) >= _WAITING:
                raise BusyError(f"{_WAITING} requests of this session are in progress; try again later")
            task = asyncio.create_task(self._answer_in_turn(number, checksum, run))
            self._tasks[number, checksum] = task
            task.add_done_callback(lambda done: self._finish(number, checksum, done))
        return await asyncio.shield(task)

    async def _answer_in_turn(self, number: int, checksum: int, run: Callable[[], Awaitable[bytes]]) -> bytes:
        async with self._turn:
            if number > self._number:
                answer = await run()
                self._number, self._checksum, self._answer = number, checksum, answer
            elif number < self._number:
                raise ValueError(f"the request has the number {number}, but request {self._number} was executed before")
            elif checksum != self._checksum:
                raise ValueError(f"the number {number} was that of another request: each needs a higher number")
            return self._answer

    def _finish(self, number: int, checksum: int, task: asyncio.Task[bytes]) -> None:
        del self._tasks[number, checksum]
        if not task.cancelled():
            task.exception()  # asyncio logs an error that nobody asks for, as after a lost connection
