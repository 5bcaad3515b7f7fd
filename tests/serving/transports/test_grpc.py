"""The limits of gRPC servers hold for clients that are slow, that flood, or that have no key."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("grpc")

import grpc

from anyvla.serving.limits import ServerLimits
from anyvla.serving.protocols.opentau import OpenTauProtocol
from anyvla.serving.protocols.opentau_schema import robot_inference_pb2 as schema
from tests import small
from tests.serving.clients import Running, seen
from tests.serving.protocols.opentau_client import PLAIN, SERVICE, Client, fails, request


@pytest.fixture
def serve() -> Iterator[Callable[..., Running]]:
    servers: list[Running] = []

    def start(**options: Any) -> Running:
        servers.append(Running(small.policy(), protocol=OpenTauProtocol, mapping=PLAIN, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def never() -> Iterator[Callable[[], Iterator[Any]]]:
    """Return a function that returns messages of which none comes until the test ends."""
    done = threading.Event()

    def wait() -> Iterator[Any]:
        done.wait(60)
        yield from ()

    yield wait
    done.set()


def test_connections_and_silent_streams_are_limited(
    serve: Callable[..., Running], never: Callable[[], Iterator[Any]]
) -> None:
    def slow() -> Iterator[Any]:
        yield request(seen(1))
        yield from never()

    server = serve(limits=ServerLimits(connections=2, idle_seconds=0.5))
    with Client(server) as first, Client(server) as second, Client(server, timeout=3) as third:
        first.chunk(1)
        second.chunk(1)
        assert fails(lambda: third.chunk(1))[0] in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
        replies = first.stream(slow())
        next(replies)
        assert fails(lambda: next(replies)) == ("DEADLINE_EXCEEDED", "no message for 0.5 s")


@pytest.mark.parametrize("method", ["GetActionChunk", "HealthCheck"])
def test_calls_whose_message_never_comes_do_not_block_others(
    serve: Callable[..., Running], never: Callable[[], Iterator[Any]], method: str
) -> None:
    """gRPC reads the message of a unary method without a limit of time, and counts it among the concurrent calls."""
    server = serve(limits=ServerLimits(connections=4, pending_requests=4, message_seconds=0.5))
    with Client(server) as attacker, Client(server) as client:
        half = attacker.channel.stream_unary(f"{SERVICE}/{method}")
        calls = [half.future(never(), timeout=60) for _ in range(4)]
        codes = {fails(call.result) for call in calls}
        assert codes == {("DEADLINE_EXCEEDED", "no message for 0.5 s")}
        assert client.chunk(1).shape == (4, 4)


def test_a_call_that_its_client_gives_up_leaves_the_session_as_it_was(
    serve: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    real, computes, release = server.service.vla.act, threading.Event(), threading.Event()

    def act(*args: Any) -> Any:
        computes.set()
        assert release.wait(30)
        return real(*args)

    with Client(server) as client:
        client.chunk(1)
        (session,) = server.service._open
        before = session._session
        monkeypatch.setattr(server.service.vla, "act", act)
        call = client.channel.unary_unary(f"{SERVICE}/GetActionChunk").future(request(seen(2)).SerializeToString())
        assert computes.wait(30)
        call.cancel()
        end = time.monotonic() + 30
        while b'outcome="canceled"} 1.0' not in server.service.metrics.write():
            assert time.monotonic() < end
            time.sleep(0.01)
        release.set()
        assert session._session is before
        assert client.chunk(2).shape == (4, 4)
        assert session._session is not before


def test_a_message_is_not_read_without_the_key(
    serve: Callable[..., Running], never: Callable[[], Iterator[Any]]
) -> None:
    with Client(serve(key="secret")) as client:
        half = client.channel.stream_unary(f"{SERVICE}/GetActionChunk")
        assert fails(half.future(never(), timeout=20).result)[0] == "UNAUTHENTICATED"


def test_a_call_without_a_message_is_refused(serve: Callable[..., Running]) -> None:
    with Client(serve()) as client:
        call = client.channel.stream_unary(f"{SERVICE}/GetActionChunk")
        assert fails(lambda: call(iter(()), timeout=20)) == ("INVALID_ARGUMENT", "the call has no message")


def test_names_of_sessions_and_streams_do_not_raise_the_rate_of_a_connection(serve: Callable[..., Running]) -> None:
    server = serve(limits=ServerLimits(requests_per_second=20))
    with Client(server) as client:
        begin = time.monotonic()
        for number in range(30):  # the first 20 pass at once
            client.metadata = (("session-id", str(number)),)
            client.health(schema.HealthCheckRequest())
        assert time.monotonic() - begin > 0.4
        begin = time.monotonic()
        for _ in range(10):
            list(client.stream(iter([request(seen(1))])))
        assert time.monotonic() - begin > 0.4


WITH_KEY = ("x-tuner-api-key", "secret")


def knock(server: Running) -> socket.socket:
    """Open a connection of HTTP/2 that makes no call."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0")
    return connection


def has_ended(connection: socket.socket, within_s: float) -> bool:
    """Return whether the server ends a connection in time."""
    connection.settimeout(within_s)
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def test_strangers_take_no_place_and_little_time(serve: Callable[..., Running]) -> None:
    server = serve(key="secret", limits=ServerLimits(connections=1, handshake_seconds=2))
    with Client(server) as stranger, Client(server, WITH_KEY) as client, Client(server, WITH_KEY) as second:
        silent = knock(server)
        assert fails(lambda: stranger.chunk(1))[0] == "UNAUTHENTICATED"
        client.chunk(1)  # takes the only place
        assert fails(lambda: second.chunk(1)) == ("RESOURCE_EXHAUSTED", "the server has its 1 connections")
        assert has_ended(silent, within_s=10)
        time.sleep(2.5)  # a client with the key may take its time
        client.chunk(2)
        assert len(server.service._stores[0]) == 1  # a new connection would be another robot
        client.channel.close()
        end = time.monotonic() + 20
        while True:
            with contextlib.suppress(grpc.RpcError):
                second.chunk(1)
                break
            assert time.monotonic() < end


def test_a_crowd_of_strangers_leaves_room_for_a_client(serve: Callable[..., Running]) -> None:
    server = serve(key="secret", limits=ServerLimits(connections=2, handshakes=8, handshake_seconds=60))
    crowd = [knock(server) for _ in range(10)]  # as many as gRPC accepts
    end = time.monotonic() + 20
    while sum(has_ended(connection, within_s=0.01) for connection in crowd) < 6:
        assert time.monotonic() < end
    with Client(server, WITH_KEY) as client:
        assert client.chunk(1).shape == (4, 4)
    for connection in crowd:
        connection.close()


def test_without_a_key_a_silent_connection_stays(serve: Callable[..., Running]) -> None:
    server = serve(limits=ServerLimits(handshake_seconds=1))
    silent = knock(server)
    assert not has_ended(silent, within_s=2)
    silent.close()
