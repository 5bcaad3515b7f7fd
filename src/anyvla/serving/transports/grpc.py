"""Answer gRPC clients. Messages are bytes here: a protocol parses them itself, after it has checked their size."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio

from anyvla.serving.access import is_authorized, is_key
from anyvla.serving.batching import BusyError
from anyvla.serving.policy_service import PolicyService
from anyvla.serving.tls import TlsFiles
from anyvla.serving.transports.grpc_places import GrpcPlaces
from anyvla.serving.transports.rate import Rate

log = logging.getLogger(__name__)
SESSION = "session-id"  # of the metadata of a call: a client's name for one of several robots on a connection
_PEERS = 1024  # connections whose rates are kept
_PING_MS = 5000  # the shortest time between pings; OpenTau's clients send one every 10 s
_HEADERS = 1 << 14  # bytes of the metadata of a call

Answer = Callable[[bytes], Awaitable[bytes]]


class GrpcServer:
    """Answer calls until `stop` is called."""

    def __init__(
        self,
        service: PolicyService,
        name: str,
        unary: Mapping[str, Callable[[bytes, str], Awaitable[bytes]]],
        streams: Mapping[str, Callable[[], Answer]],
        key: str | None = None,
        key_header: str = "authorization",
        tls: TlsFiles | None = None,
    ) -> None:
        """`name` is that of the gRPC service. Each of `unary` answers a message of a caller, by the caller's name.

        Each of `streams` returns the function that answers the messages of a new stream. An error that they raise
        becomes the status of the call. `key_header`: metadata with the key itself; `authorization` is always read, too.
        """
        self._service, self._limits, self._key, self._key_header = service, service.limits, key, key_header
        self._credentials = None if tls is None else _read_credentials(tls)
        handlers = {
            method: grpc.stream_unary_rpc_method_handler(self._make_unary(answer)) for method, answer in unary.items()
        } | {
            method: grpc.stream_stream_rpc_method_handler(self._make_stream(open_stream))
            for method, open_stream in streams.items()
        }
        self._handlers = grpc.method_handlers_generic_handler(name, handlers)
        self._places = GrpcPlaces(self._limits) if key is not None and GrpcPlaces.is_supported() else None
        self._rates: OrderedDict[str, Rate] = OrderedDict()
        self._busy = 0  # requests in progress
        self._stop, self._hurry = asyncio.Event(), False

    def stop(self) -> None:
        """Take no new calls, answer requests in progress and end `run`; the second call ends it at once."""
        self._hurry = self._stop.is_set()
        self._stop.set()

    async def run(self, sockets: Sequence[socket.socket], ready: Callable[[], None] = lambda: None) -> int:
        """Listen at the addresses of bound sockets until `stop`. Return how many requests were not answered."""
        calls = self._limits.pending_requests + self._limits.connections
        server = grpc.aio.server(options=self._make_options(), maximum_concurrent_rpcs=calls)
        server.add_generic_rpc_handlers((self._handlers,))
        ports = {bound.getsockname()[1] for bound in sockets}
        for bound in sockets:
            self._bind(server, bound)
        await server.start()
        ready()
        tidying = None if self._places is None else asyncio.create_task(_tidy(self._places, ports))
        try:
            await self._stop.wait()
            return await self._drain(server)
        finally:
            if tidying is not None:
                tidying.cancel()
            await server.stop(None)

    def _make_options(self) -> list[tuple[str, int]]:
        limits = self._limits
        return [
            ("grpc.max_receive_message_length", limits.message_bytes),
            ("grpc.max_concurrent_streams", limits.connections),
            ("grpc.max_allowed_incoming_connections", self._places.most if self._places else limits.connections),
            ("grpc.server_handshake_timeout_ms", int(1000 * limits.handshake_seconds)),
            ("grpc.max_connection_idle_ms", int(1000 * limits.idle_seconds)),
            ("grpc.max_metadata_size", _HEADERS),
            ("grpc.absolute_max_metadata_size", _HEADERS),
            ("grpc.http2.min_ping_interval_without_data_ms", _PING_MS),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.so_reuseport", 0),
        ]

    def _bind(self, server: grpc.aio.Server, bound: socket.socket) -> None:
        """Let gRPC listen where a socket was bound, which it can't take over. Raises OSError."""
        host, port = bound.getsockname()[:2]
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        bound.close()
        try:
            if self._credentials is None:
                server.add_insecure_port(address)
            else:
                server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise OSError(errno.EADDRINUSE, str(error)) from None  # gRPC tells no other reason

    async def _drain(self, server: grpc.aio.Server) -> int:
        """Refuse new calls. Return how many requests are still in progress at the end."""
        clock = asyncio.get_running_loop().time
        end = clock() + self._limits.drain_seconds
        stopping = asyncio.create_task(server.stop(self._limits.drain_seconds))
        while self._busy and clock() < end and not self._hurry:
            await asyncio.sleep(0.01)
        unanswered = self._busy
        if not unanswered:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(stopping), 1.0)  # until answers are sent and streams have ended
        return unanswered

    def _make_unary(self, answer: Callable[[bytes, str], Awaitable[bytes]]) -> Any:
        # gRPC would read the message of a unary method before this function is called: without the key, and for as long
        # as the client likes. A stream with one message looks the same to the client.
        async def call(_: Any, context: Any) -> bytes:
            caller = await self._admit(context)
            data = await self._read(context, self._limits.message_seconds)
            if data is None:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
                raise AssertionError("abort always raises")
            with self._request():
                await self._rate(context.peer()).wait()
                return await self._answer(lambda message: answer(message, caller), data, context)

        return call

    def _make_stream(self, open_stream: Callable[[], Answer]) -> Any:
        async def talk(_: Any, context: Any) -> None:
            await self._admit(context)
            answer = open_stream()
            while (data := await self._read(context, self._limits.idle_seconds)) is not None:
                with self._request():
                    await self._rate(context.peer()).wait()
                    reply = await self._answer(answer, data, context)
                    async with asyncio.timeout(self._limits.message_seconds):
                        await context.write(reply)

        return talk

    async def _admit(self, context: Any) -> str:
        """Return the name of the caller. End a call without the key, or of a client too many."""
        metadata = [(k, v) for k, v in context.invocation_metadata() or () if isinstance(v, str)]
        if self._key is not None:
            right = [is_key(v, self._key) for k, v in metadata if k == self._key_header]
            right += [is_authorized(v, self._key) for k, v in metadata if k == "authorization"]
            if right != [True]:
                text = f"this server needs its API key as {self._key_header}, or as authorization: Bearer KEY"
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, text)
        if self._places is not None and not self._places.take(context.peer()):
            text = f"the server has its {self._limits.connections} connections"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        session = next((v for k, v in metadata if k == SESSION), "")
        return f"{context.peer()} {session}"

    async def _read(self, context: Any, seconds: float) -> bytes | None:
        """Return the next message, None at the end. End the call if none comes whole in time, or the server stops."""
        reading = asyncio.ensure_future(context.read())
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({reading, stopping}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                data = reading.result()
                return None if data is grpc.aio.EOF else data
        finally:
            reading.cancel()
            stopping.cancel()
        if self._stop.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server stops")
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no message for {seconds:g} s")
        return None

    async def _answer(self, answer: Answer, data: bytes, context: Any) -> bytes:
        """Return the answer to a message. An error becomes the status of the call."""
        with self._service.requests.request() as record:
            try:
                reply = await answer(data)
                record.finish(None)
                return reply
            except Exception as error:
                text, status = self._service.explain(error), _choose_status(error)
                record.finish(text)
        await context.abort(status, text)
        raise AssertionError("abort always raises")

    @contextlib.contextmanager
    def _request(self) -> Iterator[None]:
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1

    def _rate(self, peer: str) -> Rate:
        """Return the rate of a connection, which all of its calls and sessions share."""
        rate = self._rates.pop(peer, None) or Rate(self._limits.requests_per_second)
        self._rates[peer] = rate
        if len(self._rates) > _PEERS:
            self._rates.popitem(last=False)
        return rate


async def _tidy(places: GrpcPlaces, ports: Collection[int]) -> None:
    """End the connections of strangers until canceled."""
    places.ports = ports
    while True:
        try:
            places.tidy()
        except Exception:  # must not end the check
            log.exception("the connections of gRPC cannot be checked")
        await asyncio.sleep(places.check_seconds)


def _choose_status(error: Exception) -> grpc.StatusCode:
    if isinstance(error, BusyError):
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    return grpc.StatusCode.INVALID_ARGUMENT if isinstance(error, ValueError) else grpc.StatusCode.INTERNAL


def _read_credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    """Return the credentials of a server. Raises ConfigError for files that are no certificate and its key."""
    tls.make_context()
    return grpc.ssl_server_credentials([(tls.key.read_bytes(), tls.certificate.read_bytes())])
