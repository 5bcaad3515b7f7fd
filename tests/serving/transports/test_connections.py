"""The server ends connections that exceed a limit, and releases all that belongs to them."""

from __future__ import annotations

import base64
import contextlib
import http.client
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from anyvla.policy import VLA
from anyvla.serving.limits import ServerLimits
from anyvla.serving.protocols.base import Reply
from anyvla.serving.protocols.vlaeval import Conversation
from anyvla.serving.transports.pacing import PacedConnection
from tests.serving.clients import Raw, Running, answer, ask, dial, error, frame, pack, payload, seen

QUICK = ServerLimits(
    handshake_seconds=0.5, message_seconds=0.5, idle_seconds=1.5, close_seconds=0.3, connections=4, handshakes=8
)


@pytest.fixture
def quick(vla: VLA, running: Callable[..., Running]) -> Running:
    return running(vla, QUICK)


@pytest.fixture
def raw(quick: Running) -> Iterator[Raw]:
    client = Raw(quick)
    yield client
    client.close()


def test_half_a_frame(raw: Raw) -> None:
    raw.send(frame(b"x" * 10, claims=1000))
    assert raw.closing() == (1008, "a message must arrive whole within 0.5 s")
    assert raw.ends()


def test_half_a_frame_after_a_whole_one(raw: Raw) -> None:
    raw.send(frame(pack("hello", {"protocol_version": 1})) + frame(b"x" * 10, claims=1000))
    assert raw.closing()[0] in (1001, 1008)


def test_a_frame_that_arrives_byte_by_byte(raw: Raw) -> None:
    begin = time.monotonic()
    raw.send(frame(b"", claims=1000))
    with contextlib.suppress(OSError):
        while time.monotonic() < begin + 10:
            raw.send(b"x")
            time.sleep(0.05)
    assert time.monotonic() < begin + 5


def test_a_message_whose_last_fragment_never_comes(raw: Raw) -> None:
    raw.send(frame(b"x", fin=False))
    for _ in range(4):
        raw.send(frame(b"x", 0, fin=False) + frame(b"", 9))  # pings in between must not extend the deadline
        time.sleep(0.1)
    assert raw.closing() == (1008, "a message must arrive whole within 0.5 s")


@pytest.mark.parametrize(
    ("frames", "reason"),
    [(1023, "a message must arrive whole within 0.5 s"), (1024, "a message of more than 1024 frames")],
)
def test_a_message_of_too_many_frames(raw: Raw, frames: int, reason: str) -> None:
    """The last frame of the message is not sent."""
    raw.send(frame(b"", fin=False) + frame(b"", 0, fin=False) * (frames - 1))
    assert raw.closing() == (1008, reason)


def test_too_many_pings(raw: Raw) -> None:
    raw.send(frame(b"hello", 9) * 200)
    assert raw.closing() == (1008, "more than 50 pings a second")


def test_pings_within_the_limit_of_each_second_are_answered(raw: Raw) -> None:
    """The limit is 50 per second: 40 now and 40 after 0.7 seconds stay below it."""
    for count, pause in ((40, 0.7), (40, 0), (1, 0)):
        raw.send(frame(b"hello", 9) * count)
        assert raw.exactly(count * 7) == b"\x8a\x05hello" * count
        time.sleep(pause)


def test_a_connection_without_messages(quick: Running) -> None:
    begin = time.monotonic()
    raw = Raw(quick)
    assert raw.closing() == (1001, "no message for 1.5 s")
    assert 1.4 < time.monotonic() - begin < 10
    raw.close()


def test_a_handshake_that_never_ends(quick: Running) -> None:
    for half in (b"", b"GET / HTTP/1.1\r\nHost: "):
        client = Raw(quick, shake=False)
        client.send(half)
        assert client.ends(5)


def test_old_handshakes_make_room(quick: Running) -> None:
    clients = [Raw(quick, shake=False) for _ in range(30)]
    assert quick.connections <= 8
    assert quick.health() < 5
    for client in clients:
        client.close()


def test_a_message_that_is_too_large(vla: VLA, running: Callable[..., Running]) -> None:
    client = Raw(running(vla, ServerLimits(message_bytes=1000)))
    client.send(frame(b"", claims=1001))
    assert client.closing()[0] == 1009
    client.close()


def test_too_many_connections(quick: Running) -> None:
    clients = [dial(quick) for _ in range(4)]
    with pytest.raises(InvalidStatus, match="503"):
        dial(quick)
    assert quick.health() < 5
    clients.pop().close()
    assert quick.settles(3)
    with dial(quick) as client:
        assert ask(client, "hello", {"protocol_version": 1})["type"] == "hello"
    for client in clients:
        client.close()


def test_text_that_is_no_utf8(raw: Raw) -> None:
    raw.send(frame(b"\xff\xfe", 1))
    assert raw.closing()[0] == 1007


@pytest.mark.parametrize(
    "data",
    [b"\x83\x80\0\0\0\0", b"\xf2\x80\0\0\0\0", b"\x02\x80\0\0\0\0\x02\x80\0\0\0\0", b"\x82\x00"],
    ids=["reserved", "reserved bits", "no continuation", "not masked"],
)  # fmt: skip
def test_frames_against_the_rules(raw: Raw, data: bytes) -> None:
    raw.send(data)
    assert raw.closing()[0] == 1002
    assert raw.ends()


def test_a_client_that_takes_no_answers(quick: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(self: Conversation, data: bytes) -> Reply:
        return Reply(b"x" * 20_000_000)

    monkeypatch.setattr(Conversation, "answer", answer)
    client = Raw(quick)
    client.send(frame(pack("hello", {"protocol_version": 1})))
    assert quick.settles(1)
    assert quick.settles(0)
    client.close()


def test_requests_that_come_too_fast_wait(vla: VLA, running: Callable[..., Running]) -> None:
    with dial(running(vla, ServerLimits(requests_per_second=10))) as client:
        begin = time.monotonic()
        for number in range(15):
            client.send(pack("hello", {"protocol_version": 1}, number))
        assert [answer(client, number)["type"] for number in range(15)] == ["hello"] * 15
        assert 0.4 < time.monotonic() - begin < 5


@pytest.mark.parametrize("path", ["/health", "/healthz", "/health?x=1"])
def test_health(server: Running, path: str) -> None:
    for _ in range(2):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        connection.request("GET", path)
        assert connection.getresponse().status == 200
        connection.close()


@pytest.mark.parametrize(
    "request_",
    [b"GET / HTTP/1.1\r\n\r\n", b"nonsense\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n", b"\0" * 9000],
)
def test_requests_that_are_no_websocket(quick: Running, request_: bytes) -> None:
    client = Raw(quick, shake=False)
    client.send(request_)
    assert client.ends(5)


def test_pages_of_other_sites_are_refused(server: Running) -> None:
    for origin in ("https://example.com", "null", "http://[", ""):
        with pytest.raises(InvalidStatus, match="403"):
            dial(server, origin=origin)
    own = f"http://127.0.0.1:{server.port}"
    dial(server, origin=own).close()
    with pytest.raises(InvalidStatus, match="403"):
        dial(server, origin=own, additional_headers=[("Origin", "https://example.com")])


def test_a_client_needs_the_key(vla: VLA, running: Callable[..., Running]) -> None:
    server = running(vla, None, "k3y")
    assert server.health() < 5
    basic = {"Authorization": "Basic " + base64.b64encode(b"me:wrong").decode()}
    for headers in ({}, {"Authorization": "Bearer k3"}, {"Authorization": "k3y"}, basic, {"Authorization": "Basic é"}):
        with pytest.raises(InvalidStatus, match="401"):
            dial(server, additional_headers=headers)
    for scheme in ("Bearer", "Api-Key", "bearer"):
        with dial(server, additional_headers={"Authorization": f"{scheme} k3y"}) as client:
            assert ask(client, "hello", {"protocol_version": 1})["type"] == "hello"
    server.url = server.url.replace("ws://", "ws://any:k3y@")  # as vla-eval would be configured
    with dial(server) as client:
        assert ask(client, "hello", {"protocol_version": 1})["type"] == "hello"


def test_requests_in_progress_are_answered_after_a_stop(
    vla: VLA, running: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = vla.act

    def act(observations: list, sessions: list) -> list:
        time.sleep(1)
        return real(observations, sessions)

    monkeypatch.setattr(vla, "act", act)
    server = running(vla, ServerLimits(message_seconds=1))
    idle, busy, half, late = dial(server), dial(server), Raw(server), Raw(server)
    whole = frame(pack("hello", {"protocol_version": 1}))
    half.send(frame(b"x", claims=1000))
    late.send(whole[:10])
    busy.send(pack("observation", payload(seen(1)), 7))
    time.sleep(0.3)
    server.stop()
    with pytest.raises(ConnectionClosed, match="the server stops"):
        idle.recv(timeout=10)
    with pytest.raises(OSError):
        Raw(server)
    late.send(whole[10:])  # it had begun before the stop
    assert late.socket.recv(1) == b"\x82"
    assert half.closing() == (1008, "a message must arrive whole within 1 s")
    assert answer(busy, 7)["type"] == "action"
    with pytest.raises(ConnectionClosed, match="the server stops"):
        busy.recv(timeout=10)
    server.thread.join(10)
    assert server.unanswered == 0
    half.close()
    late.close()


def test_a_stop_ends_in_time(vla: VLA, running: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vla, "act", lambda observations, sessions: time.sleep(3))
    server = running(vla, ServerLimits(drain_seconds=0.5))
    with dial(server) as client:
        client.send(pack("observation", payload(seen(1))))
        time.sleep(0.3)
        begin = time.monotonic()
        server.stop()
        server.thread.join(10)
        assert time.monotonic() - begin < 2
        assert server.unanswered == 1


def test_a_second_stop_does_not_wait(
    vla: VLA, running: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vla, "act", lambda observations, sessions: time.sleep(2))
    server = running(vla)
    with dial(server) as client:
        client.send(pack("observation", payload(seen(1))))
        time.sleep(0.2)
        server.stop()
        time.sleep(0.2)
        assert server.thread.is_alive()
        server.stop()
        server.thread.join(1.5)
        assert server.unanswered == 1


def test_a_connection_that_cannot_be_parsed_stops_no_other(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with dial(server) as good:
        real = PacedConnection.process_event

        def process(self: PacedConnection, event: Any) -> None:
            if getattr(event, "data", b"") == b"poison":
                raise RuntimeError("a fault of ours")
            real(self, event)

        monkeypatch.setattr(PacedConnection, "process_event", process)
        bad = Raw(server)
        bad.send(frame(b"poison"))
        assert bad.ends()
        assert ask(good, "observation", payload(seen(1)))["type"] == "action"
    assert "a fault of ours" in caplog.text
    caplog.clear()


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (2000, 1)])
def test_images_of_any_shape(server: Running, size: tuple[int, int]) -> None:
    sent = payload(seen(1))
    sent["images"] = {name: np.zeros((*size, 3), np.uint8) for name in sent["images"]}
    with dial(server) as client:
        assert ask(client, "observation", sent)["type"] in ("action", "error")


def test_bytes_as_keys(server: Running) -> None:
    with dial(server) as client:
        sent = {**payload(seen(1)), b"states": 1}
        assert "'payload' has the key b'states' of type binary; keys are text" in error(client, "observation", sent)
        assert ask(client, "observation", payload(seen(1)))["type"] == "action"
