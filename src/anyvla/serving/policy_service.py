"""Everything that protocols share: one policy, its sessions, its batches and the threads that decode."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from anyvla.policy import VLA
from anyvla.robot.embodiment import Embodiment
from anyvla.serving.batching import Batcher
from anyvla.serving.limits import ServerLimits
from anyvla.serving.mapping import Request, Translator
from anyvla.serving.metrics import Metrics
from anyvla.serving.request_log import RequestLog
from anyvla.serving.served_session import ServedSession
from anyvla.serving.sessions import SessionStore
from anyvla.serving.status import Status
from anyvla.serving.timed_reader import TimedReader
from anyvla.serving.warm_up import INSTRUCTION, make_observation
from anyvla.types import Observation

T = TypeVar("T")
log = logging.getLogger(__name__)
_QUICK_BYTES = 1 << 20  # of raw images, which are copied sooner than a thread wakes up
_IDLE_S = 10.0  # since a session acted, then it keeps no memory of other sessions


class PolicyService:
    """One policy for all clients of a server. It knows no wire format. Use within one event loop."""

    def __init__(
        self, vla: VLA, translator: Translator, execute: int | None = None, limits: ServerLimits | None = None
    ) -> None:
        """`execute`: actions of a chunk before the next prediction; None: as trained."""
        self.vla, self.translator, self.limits = vla, translator, limits or ServerLimits()
        self.robot: Embodiment = translator.robot
        self.execute = execute or vla.config.execute
        self.metrics = Metrics()
        self.status, self.requests = Status(self.metrics), RequestLog(self.metrics)
        self.batcher = Batcher(
            vla,
            self.limits.batch_seconds,
            self.limits.batch_size,
            self.limits.pending_requests,
            self.metrics,
        )
        self._decoders = ThreadPoolExecutor(self.limits.decoders, "decoder")
        self._open: weakref.WeakSet[ServedSession] = weakref.WeakSet()  # of connections, and named ones
        self._readers: weakref.WeakKeyDictionary[Any, TimedReader] = weakref.WeakKeyDictionary()  # of connections
        self._stores: list[SessionStore[Any]] = []
        self.metrics.sessions.set_function(lambda: sum(map(len, self._stores)))

    def open_session(self) -> ServedSession:
        """Return a new session, for a connection."""
        session = ServedSession(self.translator, self.batcher, self._decode, self.execute)
        self._open.add(session)
        return session

    def store_sessions(self, make: Callable[[], T]) -> SessionStore[T]:
        """Return a store for what a protocol keeps by the names of its clients' sessions. `make`: makes a new one."""
        store = SessionStore(make, self.limits.sessions, self.limits.session_seconds)
        self._stores.append(store)
        return store

    async def tidy(self) -> None:
        """Forget named sessions after `limits.session_seconds`, and release what idle ones share with others."""
        for store in self._stores:
            store.expire()
        for session in list(self._open):
            await session.separate(_IDLE_S)

    async def warm_up(self) -> None:
        """Predict once, as the first prediction is slow. Raises ValueError if the policy cannot predict."""
        try:
            session = await self.batcher.start(INSTRUCTION, 0, self.robot.name)
            await self.batcher.act(make_observation(self.vla, self.robot.name), session)
        except Exception as error:
            raise ValueError(f"the policy fails for a plausible observation, so it is not served: {error}") from error

    def describe(self) -> dict[str, Any]:
        """Return the facts that hello messages and metadata consist of: names, numbers and lists, as for JSON."""
        size = self.vla.config.view.size
        return {
            "policy": self.vla.identify(),
            "robot": self.robot.name,
            "control_hz": self.robot.control_hz,
            "cameras": {camera: None if size is None else list(size) for camera in self.robot.cameras},
            "proprio": {group.name: group.size for group in self.robot.proprio.groups},
            "action": {group.name: group.size for group in self.robot.action.groups},
            "chunk": self.vla.config.chunk,
            "execute": self.execute,
        }

    async def off_loop(self, run: Callable[..., T], *args: Any) -> T:
        """Run a function in a decoder's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, run, *args)

    async def parse(self, read: Callable[..., T], data: bytes | str, *args: Any) -> T:
        """Read a message with `read(data, *args)`, in a decoder's thread unless the reader's last message was quick."""
        with self.metrics.stage("parse"):
            timed = self._readers.setdefault(getattr(read, "__self__", read), TimedReader())
            if timed.is_quick(data):
                return timed.read(read, data, *args)
            return await self.off_loop(timed.read, read, data, *args)

    def encode(self, write: Callable[..., T], *args: Any) -> T:
        """Write an answer with `write(*args)`."""
        with self.metrics.stage("encode"):
            return write(*args)

    def explain(self, error: Exception) -> str:
        """Return the text of an error for a client. An unexpected one is logged, and the client only gets its type."""
        if isinstance(error, ValueError):
            return str(error)
        log.error("a request failed", exc_info=error)
        return f"the policy failed ({type(error).__name__}); see the server's log"

    def close(self, wait_s: float = 5.0) -> bool:
        """End the threads. Return False if the policy still computes after `wait_s`."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        return self.batcher.close(wait_s)

    async def _decode(self, request: Request) -> Observation:
        with self.metrics.stage("decode"):
            images = request.images.values()
            if all(i.format == "raw" for i in images) and sum(len(i.data) for i in images) <= _QUICK_BYTES:
                return request.observation()
            return await self.off_loop(request.observation)
