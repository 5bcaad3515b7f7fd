"""One rollout of a client after another: a session of the policy, and the remaining actions of its last chunk."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from anyvla.serving.batching import Batcher
from anyvla.serving.mapping import Request, Translator
from anyvla.session import Session
from anyvla.types import Observation

Decode = Callable[[Request], Awaitable[Observation]]


@dataclass(frozen=True)
class Prediction:
    """A chunk in the client's convention, and the state of the rollout after it; `ServedSession` takes it over."""

    actions: Float32[np.ndarray, "N A"]
    session: Session
    instruction: str
    number: int  # of the rollout
    resets: int  # of the rollout when it was predicted


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
        self._acted: float | None = None  # when it last acted; None: it shares no memory with other sessions

    def reset(self, seed: int | None = None) -> None:
        """Begin a new rollout with the next request, with an empty history. `seed`: of its noise; None: another one."""
        self.end()
        self._number = self._number + 1 if seed is None else seed

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
                prediction = await self._predict(request)
                first, *others = prediction.actions[: self._execute]
                self._take(prediction, others)
                return first
            return self._remaining.popleft()

    async def predict(
        self, request: Request, *, committed: Float32[np.ndarray, "K A"] | None = None
    ) -> Float32[np.ndarray, "N A"]:
        """Return a whole chunk for an observation. A new instruction or `request.restart` begins a new rollout.

        `committed`: actions in the client's convention that it executes while the policy computes. The chunk begins
        with them (`VLA.act`). Raises ValueError for an observation or actions that the policy refuses.
        """
        async with self._turn:
            prediction = await self._predict(request, committed)
            self._take(prediction)
            return prediction.actions

    async def separate(self, idle_s: float) -> None:
        """Release the memory that is shared with the sessions of its last batch, if it was idle for `idle_s` since.

        The keys and values of a batch stay in memory as long as one of its sessions uses them.
        """
        if self._acted is None or time.monotonic() - self._acted < idle_s or self._turn.locked():
            return
        async with self._turn:
            self._acted = None
            if self._session is not None:
                await self._batcher.separate(self._session)

    def _take(self, prediction: Prediction, remaining: Sequence[Float32[np.ndarray, "A"]] = ()) -> None:
        """Continue from a prediction, unless the rollout was reset in the meantime."""
        if prediction.resets == self._resets:
            self._session, self._instruction = prediction.session, prediction.instruction
            self._number, self._remaining = prediction.number, deque(remaining)
            self._acted = time.monotonic()

    async def _predict(self, request: Request, committed: Float32[np.ndarray, "K A"] | None = None) -> Prediction:
        """Predict with a copy of the session, which changes nothing yet."""
        resets, number = self._resets, self._number + request.restart
        begin = None if committed is None else self._translator.own_actions(committed)
        if self._session is not None and self._continues(request):
            session = self._batcher.copy(self._session)
        else:
            session = await self._batcher.start(request.instruction, number, self._translator.robot.name)
        chunk = await self._batcher.act(await self._decode(request), session, begin)
        actions = self._translator.their_actions(chunk.actions)
        return Prediction(actions, session, request.instruction, number, resets)

    def _continues(self, request: Request) -> bool:
        return self._session is not None and request.instruction == self._instruction and not request.restart


async def predict_together(
    sessions: Sequence[ServedSession], requests: Sequence[Request]
) -> list[Float32[np.ndarray, "N A"]]:
    """Return the chunk of each of several rollouts. If one can't be predicted, none of them changes.

    Raises the error of the first one that fails; a ValueError names its number.
    """
    async with contextlib.AsyncExitStack() as turns:
        for session in sessions:
            await turns.enter_async_context(session._turn)
        predicting = [session._predict(request) for session, request in zip(sessions, requests, strict=True)]
        predictions: list[Prediction] = []
        for number, outcome in enumerate(await asyncio.gather(*predicting, return_exceptions=True)):
            if isinstance(outcome, ValueError) and len(sessions) > 1:
                raise ValueError(f"robot {number} of the batch: {outcome}") from outcome
            if isinstance(outcome, BaseException):
                raise outcome
            predictions.append(outcome)
        for session, prediction in zip(sessions, predictions, strict=True):
            session._take(prediction)
        return [prediction.actions for prediction in predictions]
