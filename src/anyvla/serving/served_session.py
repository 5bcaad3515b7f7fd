"""One rollout of a client after another: a session of the policy, and the remaining actions of its last chunk."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import numpy as np
from jaxtyping import Float32

from anyvla.serving.batching import Batcher
from anyvla.serving.mapping import Request, Translator
from anyvla.session import Session
from anyvla.types import Observation

Decode = Callable[[Request], Awaitable[Observation]]


class ServedSession:
    """The rollouts of one connection or of one named session. A request that fails or is canceled changes nothing."""

    def __init__(self, translator: Translator, batcher: Batcher, decode: Decode, execute: int) -> None:
        """`decode` returns the observation of a request; `execute` is the number of actions to use of a chunk."""
        self._translator, self._batcher, self._decode, self._execute = translator, batcher, decode, execute
        self._session: Session | None = None
        self._instruction = ""
        self._remaining: deque[Float32[np.ndarray, "A"]] = deque()  # actions of the chunk that were not sent yet
        self._number = 0  # of the rollout; seeds the noise of its chunks
        self._resets = 0
        self._turn = asyncio.Lock()  # requests of one session take turns

    def reset(self) -> None:
        """Begin a new rollout with the next request, with an empty history and other noise."""
        self.end()
        self._number += 1

    def end(self) -> None:
        """Discard the history and the rest of the chunk."""
        self._session = None
        self._remaining = deque()
        self._resets += 1

    async def act(self, request: Request) -> Float32[np.ndarray, "A"]:
        """Return the next action of the chunk, or of a new one when `execute` actions were used.

        A new instruction or `request.restart` begins a new rollout. Raises ValueError for an observation that the
        policy refuses.
        """
        async with self._turn:
            if not self._continues(request) or not self._remaining:
                resets = self._resets
                actions = deque((await self._predict(request))[: self._execute])
                action = actions.popleft()
                if resets == self._resets:
                    self._remaining = actions
                return action
            return self._remaining.popleft()

    async def predict(
        self, request: Request, *, committed: Float32[np.ndarray, "K A"] | None = None
    ) -> Float32[np.ndarray, "N A"]:
        """Return a whole chunk for an observation. A new instruction or `request.restart` begins a new rollout.

        `committed`: actions in the client's convention that it executes while the policy computes; they replace the
        first K of the chunk. Raises ValueError for an observation that the policy refuses.
        """
        async with self._turn:
            resets = self._resets
            actions = await self._predict(request)
            if resets == self._resets:
                self._remaining = deque()
        if committed is not None:
            actions = np.concatenate([committed, actions[len(committed) :]])[: len(actions)]
        return actions

    async def _predict(self, request: Request) -> Float32[np.ndarray, "N A"]:
        """Predict with a copy of the session, which replaces it unless it was reset in the meantime."""
        resets, number = self._resets, self._number + request.restart
        if self._session is not None and self._continues(request):
            session = self._batcher.copy(self._session)
        else:
            session = await self._batcher.start(request.instruction, number, self._translator.robot.name)
        chunk = await self._batcher.act(await self._decode(request), session)
        actions = np.stack([self._translator.action(action) for action in chunk.actions])
        if resets == self._resets:
            self._session, self._instruction, self._number = session, request.instruction, number
        return actions

    def _continues(self, request: Request) -> bool:
        return self._session is not None and request.instruction == self._instruction and not request.restart
