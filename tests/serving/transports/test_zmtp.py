"""The server speaks ZMTP to the real libzmq, and refuses what isn't ZMTP within its limits of size, number and time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from anyvla.serving.limits import ServerLimits
from anyvla.serving.listening import bind
from anyvla.serving.metrics import Metrics
from anyvla.serving.request_log import RequestLog
from anyvla.serving.transports.base import Reply
from anyvla.serving.transports.zmq import ZmqServer
from anyvla.serving.transports.zmtp import GREETING

zmq: Any = pytest.importorskip("zmq")
READY = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03REQ"


class Echo:
    """Answers with the number of the connection and the message. `wait` waits until it is released.

    If a key is needed, the message `key` has it.
    """

    def __init__(self, number: int, release: threading.Event, needs_key: bool) -> None:
        self.number, self.release = number, release
        self.waits = self.canceled = False
        self.is_authorized = not needs_key

    def greet(self) -> bytes | None:
        return None

    async def answer(self, data: bytes | str) -> Reply:
        assert isinstance(data, bytes)
        self.is_authorized |= data == b"key"
        try:
            self.waits = data == b"wait"
            while self.waits and not self.release.is_set():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.canceled = True
            raise
        close = (1000, "bye") if data == b"bye" else None
        return Reply(str(self.number).encode() + b":" + data, close=close)


class Echoes:
    """A server of echoes in a thread."""

    def __init__(self, limits: ServerLimits, needs_key: bool) -> None:
        self.needs_key = needs_key
        self.made: list[Echo] = []
        self.release = threading.Event()
        metrics = Metrics()
        service: Any = SimpleNamespace(limits=limits, metrics=metrics, requests=RequestLog(metrics))
        self.server = ZmqServer(service, self._open)
        self._sockets = bind("127.0.0.1", 0)
        self.port: int = self._sockets[0].getsockname()[1]
        self.unanswered: int | None = None
        listening = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run(listening.set)))
        self.thread.start()
        assert listening.wait(20)

    def _open(self) -> Echo:
        self.made.append(Echo(len(self.made), self.release, self.needs_key))
        return self.made[-1]

    async def _run(self, ready: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self.unanswered = await self.server.run(self._sockets, ready)

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.server.stop)

    def close(self) -> None:
        self.release.set()
        self.stop()
        self.thread.join(30)
        assert not self.thread.is_alive()

    def dial(self, kind: Any = None, timeout_ms: int = 20000) -> Any:
        client = zmq.Context.instance().socket(zmq.REQ if kind is None else kind)
        client.linger, client.rcvtimeo = 0, timeout_ms
        client.connect(f"tcp://127.0.0.1:{self.port}")
        return client

    def raw(self, *data: bytes) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        for part in data:
            client.sendall(part)
        return client


@pytest.fixture
def echoes() -> Iterator[Callable[..., Echoes]]:
    servers: list[Echoes] = []

    def start(needs_key: bool = False, **limits: Any) -> Echoes:
        servers.append(Echoes(ServerLimits(**limits), needs_key))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def ends(client: socket.socket, within_s: float = 20) -> bool:
    """Return whether the server ends the connection in time."""
    client.settimeout(within_s)
    try:
        while client.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    client.close()
    return True


def test_clients_of_libzmq_are_answered(echoes: Callable[..., Echoes]) -> None:
    server = echoes()
    first, second = server.dial(), server.dial()
    large = bytes(range(256)) * 5000
    for number, client in enumerate((first, second)):
        for message in (b"", b"a", b"b" * 255, b"c" * 256, large):
            client.send(message)
            assert client.recv() == b"%d:" % number + message
    for client in (first, second):
        client.close()


def test_a_dealer_may_send_ahead_and_gets_its_envelope_back(echoes: Callable[..., Echoes]) -> None:
    client = echoes().dial(zmq.DEALER)
    for number in range(20):
        client.send_multipart([b"id%d" % number, b"", b"text%d" % number])
    client.send(b"alone")
    for number in range(20):
        assert client.recv_multipart() == [b"id%d" % number, b"", b"0:text%d" % number]
    assert client.recv_multipart() == [b"0:alone"]
    client.close()


def test_heartbeats_of_libzmq_are_answered(echoes: Callable[..., Echoes]) -> None:
    server = echoes()
    client = zmq.Context.instance().socket(zmq.REQ)
    client.linger, client.rcvtimeo, client.heartbeat_ivl, client.heartbeat_timeout = 0, 20000, 50, 1000
    client.connect(f"tcp://127.0.0.1:{server.port}")
    time.sleep(1.5)
    client.send(b"x")
    assert client.recv() == b"0:x"  # it did not connect again
    client.close()


def test_a_client_that_waits_does_not_stall_another(echoes: Callable[..., Echoes]) -> None:
    server = echoes()
    slow, fast = server.dial(), server.dial()
    slow.send(b"wait")
    for _ in range(10):
        fast.send(b"x")
        assert fast.recv().endswith(b":x")
    server.release.set()
    assert slow.recv().endswith(b":wait")
    for client in (slow, fast):
        client.close()


def test_the_work_for_a_client_that_is_gone_is_canceled(echoes: Callable[..., Echoes]) -> None:
    server = echoes()
    client = server.dial()
    client.send(b"wait")
    while not (server.made and server.made[0].waits):  # else the message may never be sent
        time.sleep(0.01)
    client.close()
    end = time.monotonic() + 20
    while not server.made[0].canceled and time.monotonic() < end:
        time.sleep(0.01)
    assert server.made[0].canceled
    again = server.dial()
    again.send(b"x")
    assert again.recv() == b"1:x"
    again.close()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        GREETING[:10] + b"\x01" + GREETING[11:],  # ZeroMQ 3
        GREETING[:12] + b"CURVE".ljust(20, b"\0") + bytes(32),
        GREETING[:12] + b"PLAIN".ljust(20, b"\0") + bytes(32),
        GREETING + b"\x00\x03abc",  # a message before READY
        GREETING + b"\x04\x04\x03BYE",
        GREETING + b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03PUB",
        GREETING + b"\x04\x19\x05READY\x0bSocket-Type\xff\xff\xff\xffREQ",
        GREETING + b"\x04\x02\x05R",
        GREETING + b"\x04\x00",
        GREETING + b"\x06" + struct.pack(">Q", 2**40),
        GREETING + READY + b"\x02" + struct.pack(">Q", 2**63),
        GREETING + READY + b"\x02" + struct.pack(">Q", 1001),
        GREETING + READY + b"\x03" + struct.pack(">Q", 600) + b"a" * 600 + b"\x02" + struct.pack(">Q", 600),
        GREETING + READY + b"\x01\x01a" * 30,  # more frames than allowed
        GREETING + READY + b"\x08\x00",
        GREETING + READY + b"\x05\x00",
        GREETING + READY + b"\x04\x04\x03BYE",
        GREETING + READY + b"\x01\x00\x04\x0a\x04PING\x00\x00abc",  # within a message
    ],
)
def test_what_is_not_zmtp_or_too_large_is_cut_off(echoes: Callable[..., Echoes], data: bytes) -> None:
    server = echoes(message_bytes=1000, fragments=20)
    assert ends(server.raw(data))
    client = server.dial()
    client.send(b"x")
    assert client.recv().endswith(b":x")
    client.close()


@pytest.mark.parametrize(
    ("data", "limit"),
    [
        (b"", "handshake_seconds"),
        (GREETING[:30], "handshake_seconds"),
        (GREETING, "handshake_seconds"),
        (GREETING + READY, "idle_seconds"),
        (GREETING + READY + b"\x01", "message_seconds"),
        (GREETING + READY + b"\x01\x00\x00\x05abc", "message_seconds"),
    ],
)
def test_who_sends_nothing_more_is_cut_off_in_time(echoes: Callable[..., Echoes], data: bytes, limit: str) -> None:
    server = echoes(**{limit: 0.3})
    begin = time.monotonic()
    assert ends(server.raw(data), 10)
    assert time.monotonic() - begin > 0.25


def test_who_takes_no_answer_is_cut_off(echoes: Callable[..., Echoes]) -> None:
    server = echoes(message_seconds=0.5, close_seconds=0.5)
    client = server.raw(GREETING, READY)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    large = b"\x02" + struct.pack(">Q", 8 << 20) + bytes(8 << 20)
    with contextlib.suppress(OSError):
        for _ in range(3):
            client.sendall(large)
    end = time.monotonic() + 20
    while server.server._open and time.monotonic() < end:
        time.sleep(0.01)
    assert not server.server._open
    client.close()


def test_connections_and_handshakes_are_limited(echoes: Callable[..., Echoes]) -> None:
    server = echoes(connections=2, handshakes=3)
    silent = [server.raw() for _ in range(6)]
    clients = [server.dial() for _ in range(2)]
    for client in clients:
        client.send(b"x")
        assert client.recv().endswith(b":x")
    assert ends(silent[0])
    refused = server.raw(GREETING, READY)
    assert ends(refused)
    clients[0].close()
    later = server.dial()  # libzmq tries again until there is room
    later.send(b"y")
    assert later.recv().endswith(b":y")
    for client in (*silent, clients[1], later):
        client.close()


def test_strangers_take_no_place_and_little_time(echoes: Callable[..., Echoes]) -> None:
    server = echoes(needs_key=True, connections=1, handshake_seconds=1.5)
    silent = server.raw(GREETING, READY)
    asking, client = server.dial(), server.dial()
    asking.send(b"x")
    assert asking.recv().endswith(b":x")
    client.send(b"key")  # takes the only place
    assert client.recv().endswith(b":key")
    assert ends(silent, within_s=10)
    time.sleep(2)  # a client with the key may take its time
    client.send(b"z")
    assert client.recv() == b"2:z"
    second = server.dial(timeout_ms=1000)
    second.send(b"key")
    with pytest.raises(zmq.Again):
        second.recv()
    for one in (asking, client, second):
        one.close()


def test_fast_requests_and_pings_wait(echoes: Callable[..., Echoes]) -> None:
    server = echoes(requests_per_second=20, pings_per_second=20)
    client = server.dial(zmq.DEALER)
    begin = time.monotonic()
    for _ in range(40):
        client.send_multipart([b"", b"x"])
    for _ in range(40):
        client.recv_multipart()
    assert 0.8 < time.monotonic() - begin < 10
    client.close()
    pinging = server.raw(GREETING, READY, b"\x04\x07\x04PING\x00\x00" * 40)
    begin = time.monotonic()
    got = b""
    while got.count(b"PONG") < 40:
        got += pinging.recv(4096)
    assert time.monotonic() - begin > 0.8
    pinging.close()


def test_stopping_answers_requests_in_progress(echoes: Callable[..., Echoes]) -> None:
    server = echoes()
    busy, idle = server.dial(), server.dial()
    idle.send(b"x")
    idle.recv()
    busy.send(b"wait")
    while not any(echo.waits for echo in server.made):
        time.sleep(0.01)
    server.stop()
    time.sleep(0.1)
    assert server.thread.is_alive()
    server.release.set()
    assert busy.recv().endswith(b":wait")
    server.thread.join(20)
    assert server.unanswered == 0
    for client in (busy, idle):
        client.close()


@pytest.mark.parametrize("stops", [1, 2])
def test_stopping_does_not_wait_forever(echoes: Callable[..., Echoes], stops: int) -> None:
    server = echoes(drain_seconds=0.3 if stops == 1 else 1000)
    client = server.dial()
    client.send(b"wait")
    while not any(echo.waits for echo in server.made):
        time.sleep(0.01)
    for _ in range(stops):
        server.stop()
    server.thread.join(20)
    assert server.unanswered == 1
    client.close()


def test_a_reply_may_end_the_connection(echoes: Callable[..., Echoes]) -> None:
    client = echoes().raw(GREETING, READY, b"\x01\x00\x00\x03bye")
    assert ends(client, 5)
