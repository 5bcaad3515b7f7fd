"""Run a server with all that it needs besides its protocol: a warm-up, status pages, the expiry of sessions."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from anyvla.serving.policy_service import PolicyService
from anyvla.serving.transports.base import Server

log = logging.getLogger(__name__)


class SupervisedServer:
    """A server that is ready after one prediction, so that no client waits for the first one."""

    def __init__(
        self,
        service: PolicyService,
        server: Server,
        status: Server | None = None,
        status_sockets: Sequence[socket.socket] = (),
    ) -> None:
        """`status`: a second server for the status pages, at sockets of its own."""
        self._service, self._server = service, server
        self._status, self._status_sockets = status, status_sockets

    def stop(self) -> None:
        """Take no new requests, answer those in progress and end `run`; the second call ends it at once."""
        self._service.status.set_stopping()
        self._server.stop()

    async def run(self, sockets: Sequence[socket.socket], ready: Callable[[], None] = lambda: None) -> int:
        """Serve until `stop`; `ready` is called after the warm-up. Return how many requests were not answered.

        Raises ValueError if the policy cannot predict.
        """
        listening = asyncio.Event()
        serving = asyncio.create_task(self._server.run(sockets, listening.set))
        parts: list[Coroutine[Any, Any, object]] = [self._warm_up(listening, ready), self._tidy()]
        if self._status is not None:
            parts.append(self._status.run(self._status_sockets, lambda: None))
        beside = [asyncio.create_task(part) for part in parts]
        try:
            pending: set[asyncio.Task] = {serving, *beside}
            while not serving.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done - {serving}:
                    task.result()  # raises what ended it
            return serving.result()
        finally:
            self.stop()
            if not serving.done():
                self.stop()  # at once
            for task in beside:
                task.cancel()
            await asyncio.gather(serving, *beside, return_exceptions=True)

    async def _warm_up(self, listening: asyncio.Event, ready: Callable[[], None]) -> None:
        await listening.wait()
        await self._service.warm_up()
        self._service.status.set_ready()
        ready()

    async def _tidy(self) -> None:
        """Tidy also while no request arrives."""
        while True:
            await asyncio.sleep(min(10.0, self._service.limits.session_seconds))
            try:
                await self._service.tidy()
            except Exception:  # must not end the server
                log.exception("idle sessions cannot be tidied")
