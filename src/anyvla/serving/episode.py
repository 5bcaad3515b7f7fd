"""Run the episodes of a client: a session, and the remaining actions of its last chunk."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import numpy as np
from jaxtyping import Float32

from anyvla.serving.batching import Batcher
from anyvla.serving.mapping import Request, Translator
from anyvla.session import Session
from anyvla.types import Observation

Decode = Callable[[Request], Awaitable[Observation]]


class Episodes:
    """The episodes of one connection, one after the other. A request that fails changes nothing."""

    def __init__(self, translator: Translator, batcher: Batcher, decode: Decode, execute: int) -> None:
        """`decode` returns the observation of a request; `execute` is the number of actions to use of a chunk."""
        self._translator, self._batcher, self._decode, self._execute = translator, batcher, decode, execute
        self._session: Session | None = None
        self._instruction = ""
        self._remaining: deque[Float32[np.ndarray, "A"]] = deque()  # actions of the chunk that were not sent yet
        self._number = 0  # of the episode on this connection; seeds the noise of its chunks

    def start(self) -> None:
        """Begin a new episode with the next observation."""
        self.end()
        self._number += 1

    def end(self) -> None:
        """Discard the session and the rest of its chunk."""
        self._session = None
        self._remaining = deque()

    async def act(self, request: Request) -> Float32[np.ndarray, "A"]:
        """Return the next action; a new instruction begins a new session. A ValueError leaves the episode unchanged."""
        continues = self._session is not None and request.instruction == self._instruction
        if continues and self._remaining:
            return self._remaining.popleft()
        session = self._session if continues else None
        if session is None:
            session = await self._batcher.start(request.instruction, self._number, self._translator.robot.name)
        observation, before = await self._decode(request), self._batcher.copy(session)
        chunk = await self._batcher.act(observation, session)
        try:
            actions = [self._translator.action(action) for action in chunk.actions[: self._execute]]
        except ValueError:
            session.take(before)
            raise
        self._session, self._instruction, self._remaining = session, request.instruction, deque(actions)
        return self._remaining.popleft()
