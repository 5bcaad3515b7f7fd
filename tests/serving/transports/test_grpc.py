"""The limits of gRPC servers hold for clients that are slow, that flood, or that have no key."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("grpc")

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
