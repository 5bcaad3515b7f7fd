"""Accept, limit and close websocket connections, and answer the requests for status pages at the same port."""

from __future__ import annotations

import asyncio
import functools
import http
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from websockets.asyncio.server import Server, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from anyvla.serving.access import is_authorized
from anyvla.serving.policy_service import PolicyService
from anyvla.serving.transports.base import Connection, Reply
from anyvla.serving.transports.pacing import PacedConnection, Turns
from anyvla.serving.transports.rate import Rate

T = TypeVar("T")
log = logging.getLogger(__name__)
_ACCEPT = 16  # new connections in one turn of the event loop; the kernel queues the others
_STOPS = "the server stops"


class WebsocketServer:
    """Answer websocket connections until `stop` is called."""

    def __init__(
        self,
        service: PolicyService,
        open_connection: Callable[[], Connection] | None,
        key: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`open_connection` is called for each new connection; None: a server that has the status pages only.

        `key` is the key of the clients, if they need one.
        """
        self._service, self._open_connection, self._key, self._tls = service, open_connection, key, tls
        self._limits = service.limits
        self._opening: dict[PacedConnection, bool] = {}  # in their order; whether the request has arrived
        self._open: dict[PacedConnection, bool] = {}  # whether a request is in progress
        self._stop, self._hurry = asyncio.Event(), False
        self._turns = Turns()

    def stop(self) -> None:
        """Take no new connections, answer requests in progress and end `run`; the second call ends it at once."""
        self._hurry = self._stop.is_set()
        self._stop.set()

    async def run(self, sockets: Sequence[socket.socket], ready: Callable[[], None] = lambda: None) -> int:
        """Listen at bound sockets until `stop`. Return how many requests could not be answered before the end."""
        servers = [await self._listen(s) for s in sockets]
        ready()
        try:
            await self._stop.wait()
            return await self._drain(servers)
        finally:
            for server in servers:
                server.close()
            for connection in [*self._open, *self._opening]:
                connection.transport.abort()
            await asyncio.gather(*(server.wait_closed() for server in servers))

    async def _listen(self, bound: socket.socket) -> Server:
        server = await serve(
            self._connection,
            sock=bound,
            ssl=self._tls,
            ssl_handshake_timeout=None if self._tls is None else self._limits.handshake_seconds,
            backlog=_ACCEPT,
            max_size=self._limits.message_bytes,
            max_queue=None,  # PacedConnection bounds it
            compression=None,
            ping_interval=None,  # clients of vla-eval don't answer while their simulator computes
            open_timeout=self._limits.handshake_seconds,
            close_timeout=self._limits.close_seconds,
            process_request=self._admit,
            logger=_quiet(),
            create_connection=functools.partial(
                PacedConnection, turns=self._turns, limits=self._limits, made=self._add, lost=self._remove
            ),
        )
        bound.listen(1024)  # asyncio accepts `backlog` connections at once, and would let the kernel queue no more
        return server

    def _add(self, connection: PacedConnection) -> None:
        """Add a new connection. If there are too many handshakes, end the oldest one without a request."""
        if len(self._opening) >= self._limits.handshakes:
            silent = (c for c, asked in self._opening.items() if not asked)
            oldest = next(silent, next(iter(self._opening)))
            self._remove(oldest)
            oldest.transport.abort()
        self._opening[connection] = False

    def _note(self, connection: PacedConnection, busy: bool) -> None:
        """Note whether a request of a connection is in progress, unless the connection is lost."""
        if connection in self._open:
            self._open[connection] = busy

    def _remove(self, connection: PacedConnection) -> None:
        self._opening.pop(connection, None)
        if self._open.pop(connection, None) is None:  # of the status pages, whose server counts no clients
            return
        self._service.metrics.connections.set(len(self._open))

    def _admit(self, connection: PacedConnection, request: Any) -> Any:
        """Return an HTTP answer, or None for a client that gets its websocket."""
        if connection in self._opening:
            self._opening[connection] = True
        given = request.headers.get_all("Authorization")
        authorized = self._key is None or (len(given) == 1 and is_authorized(given[0], self._key))
        page = self._service.status.find(request.path, authorized=authorized)
        if page is not None:
            answer = connection.respond(page.status, page.text)
            del answer.headers["Content-Type"]
            answer.headers["Content-Type"] = page.content_type
            return answer
        hosts = request.headers.get_all("Host")
        if any(origin.partition("://")[2] not in hosts for origin in request.headers.get_all("Origin")):
            return connection.respond(http.HTTPStatus.FORBIDDEN, "Pages of other sites are no clients.\n")
        if not authorized:
            answer = connection.respond(http.HTTPStatus.UNAUTHORIZED, "This server needs its API key.\n")
            answer.headers["WWW-Authenticate"] = 'Basic realm="anyvla"'
            return answer
        if self._open_connection is None:
            return connection.respond(http.HTTPStatus.NOT_FOUND, "Here are /healthz, /readyz and /metrics.\n")
        if len(self._open) >= self._limits.connections:
            text = f"The server has its {self._limits.connections} connections; try again later.\n"
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, text)
        return None

    async def _connection(self, connection: Any) -> None:
        if len(self._open) >= self._limits.connections:  # several were admitted at once
            await connection.close(CloseCode.TRY_AGAIN_LATER, "the server has too many connections")
            return
        self._opening.pop(connection, None)
        self._open[connection] = False
        self._service.metrics.connections.set(len(self._open))
        gone = asyncio.create_task(connection.wait_closed())
        try:
            await self._answer_messages(connection, gone)
        except ConnectionClosed:
            return
        except Exception:
            log.exception("a connection failed")
            await connection.close(CloseCode.INTERNAL_ERROR, "the server failed; its log says why")
        finally:
            gone.cancel()
            self._note(connection, False)

    async def _answer_messages(self, connection: PacedConnection, gone: asyncio.Task[None]) -> None:
        assert self._open_connection is not None  # `_admit` lets nobody in otherwise
        state, pace = self._open_connection(), Rate(self._limits.requests_per_second)
        greeting = state.greet()
        if greeting is not None:
            await self._send(connection, greeting)
        while not gone.done() and (connection.receiving or not self._stop.is_set()):
            try:
                async with asyncio.timeout(self._limits.idle_seconds):
                    data = await connection.recv()
            except TimeoutError:
                await connection.close(CloseCode.GOING_AWAY, f"no message for {self._limits.idle_seconds:g} s")
                return
            self._note(connection, True)
            await pace.wait()
            with self._service.requests.request() as record:
                reply: Reply | None = await _unless(gone, state.answer(data))
                if reply is None:
                    return
                if reply.data is not None:
                    await self._send(connection, reply.data)
                record.finish(reply.error)
            if reply.close is not None:
                await connection.close(*reply.close)
                return
            self._note(connection, False)
        await connection.close(CloseCode.GOING_AWAY, _STOPS)

    async def _send(self, connection: PacedConnection, answer: bytes | str) -> None:
        try:
            async with asyncio.timeout(self._limits.message_seconds):
                await connection.send(answer)
        except TimeoutError:  # the client takes nothing
            connection.transport.abort()

    async def _drain(self, servers: Sequence[Server]) -> int:
        """Close each connection when it is idle. Return how many requests are still in progress at the end."""
        for server in servers:
            server.close(close_connections=False)
        clock = asyncio.get_running_loop().time
        closing: dict[PacedConnection, asyncio.Task[None]] = {}
        end = clock() + self._limits.drain_seconds
        while clock() < end and not self._hurry:
            waiting = [c for c in self._open if c not in closing]
            for connection in waiting:
                if not self._open[connection] and not connection.receiving:
                    closing[connection] = asyncio.create_task(connection.close(CloseCode.GOING_AWAY, _STOPS))
            if not waiting:
                break
            await asyncio.sleep(0.01)
        if closing:
            await asyncio.wait(closing.values(), timeout=1.0)
        return sum(self._open.values())


async def _unless(gone: asyncio.Task[None], work: Coroutine[Any, Any, T]) -> T | None:
    """Return the result of `work`. Return None if it is canceled, which it is when the client is gone.

    It runs in the current task, because a task of its own would cost each request two turns of the event loop.
    """
    task = asyncio.current_task()
    assert task is not None
    working, canceled = True, False

    def cancel(_: asyncio.Task[None]) -> None:
        nonlocal canceled
        if working:
            canceled = task.cancel()

    gone.add_done_callback(cancel)
    try:
        return await work
    except asyncio.CancelledError:
        if task.cancelling() > canceled:  # somebody else cancels the connection
            raise
        return None
    finally:
        working = False
        gone.remove_done_callback(cancel)
        if canceled:
            task.uncancel()


def _quiet() -> logging.Logger:
    """Return a logger for websockets that is silent about the faults of clients."""
    logger = logging.getLogger("anyvla.serving.websockets")
    logger.setLevel(logging.CRITICAL)
    return logger
