"""One rollout of a client: its session and the actions of its last chunk. A request that fails changes nothing."""

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
    """The episodes of one connection, one after the other."""

    def __init__(self, translator: Translator, batcher: Batcher, decode: Decode, execute: int) -> None:
        """`decode`: decodes the images of a request off the event loop; `execute`: actions of a chunk that are used."""
        self._translator, self._batcher, self._decode, self._execute = translator, batcher, decode, execute
        self._session: Session | None = None
        self._said = ""
        self._left: deque[Float32[np.ndarray, "A"]] = deque()  # actions of the chunk that are not executed yet
        self._number = 0  # of the episode on this connection; seeds the noise of its chunks

    def start(self) -> None:
        """Begin a new episode with the next observation."""
        self.end()
        self._number += 1

    def end(self) -> None:
        """Forget the session and the rest of its chunk."""
        self._session = None
        self._left = deque()

    async def act(self, request: Request) -> Float32[np.ndarray, "A"]:
        """Return the next action; another instruction begins a new session.

        Raises ValueError, and then the episode is as it was before.
        """
        goes_on = self._session is not None and request.instruction == self._said
        if goes_on and self._left:
            return self._left.popleft()
        session = self._session if goes_on else None
        if session is None:
            session = await self._batcher.start(request.instruction, self._number, self._translator.robot.name)
        observation, before = await self._decode(request), self._batcher.copy(session)
        chunk = await self._batcher.act(observation, session)
        try:
            actions = [self._translator.action(action) for action in chunk.actions[: self._execute]]
        except ValueError:
            session.take(before)
            raise
        self._session, self._said, self._left = session, request.instruction, deque(actions)
        return self._left.popleft()
