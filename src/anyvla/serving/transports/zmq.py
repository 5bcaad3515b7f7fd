"""Answer ZeroMQ clients (sockets REQ and DEALER): each connection is one client, and none can stall the others."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from anyvla.serving.policy_service import PolicyService
from anyvla.serving.transports.base import Connection, Reply
from anyvla.serving.transports.rate import Rate
from anyvla.serving.transports.zmtp import GREETING, ZmtpError, ZmtpReader, write_message, write_ready

log = logging.getLogger(__name__)
_ACCEPT = 16  # new connections in one turn of the event loop; the kernel queues the others
_CHECK_S = 0.2  # how often to look whether a client that waits for its answer is gone


class ZmqConnection(Connection, Protocol):
    """The state of one connection whose client proves by its messages that it may use the server."""

    @property
    def is_authorized(self) -> bool:
        """Whether a message had the key, or none is needed."""


class ZmqServer:
    """Answer connections until `stop` is called.

    A connection takes one of the places of `limits.connections` when it is authorized. Before, it is one of the
    `limits.handshakes` and has `limits.handshake_seconds`.
    """

    def __init__(self, service: PolicyService, open_connection: Callable[[], ZmqConnection]) -> None:
        """`open_connection` is called for each new client."""
        self._service, self._open_connection, self._limits = service, open_connection, service.limits
        self._opening: list[asyncio.Task[None]] = []  # connections that have no place yet, in their order
        self._open: dict[asyncio.Task[None], bool] = {}  # whether a request is in progress
        self._stop, self._hurry = asyncio.Event(), False

    def stop(self) -> None:
        """Take no new connections, answer requests in progress and end `run`; the second call ends it at once."""
        self._hurry = self._stop.is_set()
        self._stop.set()

    async def run(self, sockets: Sequence[socket.socket], ready: Callable[[], None] = lambda: None) -> int:
        """Listen at bound sockets until `stop`. Return how many requests could not be answered before the end."""
        servers = [await asyncio.start_server(self._connection, sock=s, backlog=_ACCEPT) for s in sockets]
        for bound in sockets:
            bound.listen(1024)  # asyncio accepts `backlog` connections at once, and would let the kernel queue no more
        ready()
        try:
            await self._stop.wait()
            for server in servers:
                server.close()
            return await self._drain()
        finally:
            for server in servers:
                server.close()
            ending = [*self._open, *self._opening]
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)

    async def _drain(self) -> int:
        """End each connection when it is idle. Return how many requests are still in progress at the end."""
        clock = asyncio.get_running_loop().time
        end = clock() + self._limits.drain_seconds
        while clock() < end and not self._hurry and any(self._open.values()):
            await asyncio.sleep(0.01)
        return sum(self._open.values())

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._opening) >= self._limits.handshakes:  # the oldest makes room
            self._opening.pop(0).cancel()
        self._opening.append(task)
        try:
            messages, connection = ZmtpReader(reader, self._limits), self._open_connection()
            async with asyncio.timeout(self._limits.handshake_seconds) as opening:
                await self._shake_hands(task, connection, messages, writer)
                await self._answer_messages(task, connection, messages, reader, writer, opening)
        except (ZmtpError, TimeoutError, ConnectionError, asyncio.IncompleteReadError) as error:
            log.debug("a ZeroMQ connection ends: %s", error)
        except asyncio.CancelledError:  # by `run`, or to make room
            pass
        except Exception:
            log.exception("a ZeroMQ connection failed")
        finally:
            if task in self._opening:
                self._opening.remove(task)
            self._open.pop(task, None)
            self._service.metrics.connections.set(len(self._open))
            await self._close(writer)

    async def _shake_hands(
        self,
        task: asyncio.Task[None],
        connection: ZmqConnection,
        messages: ZmtpReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        writer.write(GREETING)
        await messages.read_greeting()
        self._check_room()  # before READY, after which libzmq sends and loses its request
        if connection.is_authorized:
            self._take_place(task)
        writer.write(write_ready())
        await messages.read_ready()

    def _take_place(self, task: asyncio.Task[None]) -> None:
        """Count a connection among those that are open. Raises ZmtpError if there are too many."""
        self._check_room()
        self._opening.remove(task)
        self._open[task] = False
        self._service.metrics.connections.set(len(self._open))

    def _check_room(self) -> None:
        if len(self._open) >= self._limits.connections:
            raise ZmtpError(f"the server has its {self._limits.connections} connections")

    async def _answer_messages(
        self,
        task: asyncio.Task[None],
        connection: ZmqConnection,
        messages: ZmtpReader,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        opening: asyncio.Timeout,
    ) -> None:
        """Answer one message after the other. `opening` ends the connection unless it is authorized in time."""
        requests, pings = Rate(self._limits.requests_per_second), Rate(self._limits.pings_per_second)
        while not self._stop.is_set():
            if task in self._open:
                opening.reschedule(None)
            async with asyncio.timeout(self._limits.idle_seconds):
                first = await reader.readexactly(1)
            self._note(task, busy=True)
            async with asyncio.timeout(self._limits.message_seconds):
                message = await messages.read_message(first)
            if isinstance(message, bytes):
                await pings.wait()
                await self._send(writer, [message])
            else:
                await requests.wait()
                envelope, frames = message
                with self._service.requests.request() as record:
                    answering = asyncio.ensure_future(connection.answer(b"".join(frames)))
                    if not await _finish(answering, reader):
                        return
                    reply = answering.result()
                    if isinstance(reply.data, bytes):
                        await self._send(writer, write_message(envelope, reply.data))
                    record.finish(reply.error)
                if reply.close is not None:
                    return
                if task not in self._open and connection.is_authorized:
                    self._take_place(task)
            self._note(task, busy=False)

    def _note(self, task: asyncio.Task[None], busy: bool) -> None:
        """Note whether a request of a connection is in progress, if it has a place."""
        if task in self._open:
            self._open[task] = busy

    async def _send(self, writer: asyncio.StreamWriter, pieces: list[bytes]) -> None:
        writer.writelines(pieces)
        async with asyncio.timeout(self._limits.message_seconds):
            await writer.drain()

    async def _close(self, writer: asyncio.StreamWriter) -> None:
        """Send the rest, for a while."""
        writer.close()
        try:
            async with asyncio.timeout(self._limits.close_seconds):
                await writer.wait_closed()
        except (OSError, TimeoutError):
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()
            raise


async def _finish(answering: asyncio.Future[Reply], reader: asyncio.StreamReader) -> bool:
    """Wait for an answer. Cancel it and return False if its client is gone, for instance after its own timeout."""
    try:
        while not answering.done():
            await asyncio.wait([answering], timeout=_CHECK_S)
            if reader.at_eof() and not answering.done():
                return False
        return True
    finally:
        answering.cancel()
