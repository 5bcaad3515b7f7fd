"""A connection that is lost, slow, refused or answered wrongly: the request is repeated, or its error says why."""

from __future__ import annotations

import http
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.sync.server import serve

from anyvla_sim.client import AccessDenied, Client, ClientError, NoAnswer, ServerError, Unreachable, connection
from tests.sim.client.scripted import DESCRIPTION, LOSE, SILENT, error, observation, scripted

PATIENCE = 1.5  # s; a healthy exchange must take less, even on a busy machine


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the pauses between attempts instead of waiting."""
    taken: list[float] = []
    monkeypatch.setattr(connection, "sleep", taken.append)
    return taken


class Faults:
    """Returns these answers to the first predictions, then none."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def __call__(self, message: dict[str, Any]) -> Any:
        return self.answers.pop(0) if message["type"] == "predict" and self.answers else None


@pytest.mark.parametrize("fault", [LOSE, SILENT])
def test_a_request_without_an_answer_is_sent_again_byte_by_byte(fault: object, pauses: list[float]) -> None:
    with scripted(Faults(fault, fault)) as server, Client(server.url, timeout_s=PATIENCE) as client:
        session = client.start("open it")
        assert session.act(observation())[:2].tolist() == [1, 0]
        assert server.connections == 3
        predictions = server.received[1:]
        assert predictions == [predictions[0]] * 3
        session.predict(observation())
        assert server.messages[-1]["number"] == 2
    assert [0.05 <= pauses[0] <= 0.1, 0.1 <= pauses[1] <= 0.2] == [True, True]


def test_a_busy_server_is_asked_again_on_the_same_connection(pauses: list[float]) -> None:
    busy = error("busy", "the server is busy")
    with scripted(Faults(*[busy] * 5)) as server, Client(server.url, retries=2) as client:
        session = client.start("open it")
        with pytest.raises(ServerError, match="the server is busy"):
            session.act(observation())
        session.act(observation())
        assert server.connections == 1
    assert len(pauses) == 4


def test_without_retries_the_first_failure_is_raised() -> None:
    with scripted(Faults(LOSE, SILENT)) as server, Client(server.url, retries=0, timeout_s=PATIENCE) as client:
        session = client.start("open it")
        with pytest.raises(Unreachable, match=r"the connection to ws://\S+ was lost: the power failed"):
            session.act(observation())
        with pytest.raises(NoAnswer, match=rf"did not answer within {PATIENCE} s \(timeout_s\)") as raised:
            session.act(observation())
        assert isinstance(raised.value, TimeoutError)
        session.act(observation())  # on a third connection
    assert [message["number"] for message in server.messages[1:]] == [1, 2, 3]


def test_a_late_answer_is_not_taken_for_that_of_the_next_request() -> None:
    """The answer to the first request arrives after its time is over; the second one gets its own."""
    late = threading.Event()

    def script(message: dict[str, Any]) -> Any:
        if message["type"] == "predict" and message["number"] == 1:
            late.wait(20)
        return None

    with scripted(script) as server, Client(server.url, retries=0, timeout_s=PATIENCE) as client:
        session = client.start("open it")
        with pytest.raises(NoAnswer):
            session.act(observation())
        late.set()
        assert session.act(observation())[0] == 2


def test_the_answer_to_another_request_is_an_error_and_the_connection_is_not_used_again() -> None:
    with scripted(Faults({"id": 77})) as server, Client(server.url) as client:
        session = client.start("open it")
        with pytest.raises(ClientError, match="answered request 77 instead of 2"):
            session.act(observation())
        session.act(observation())
        assert server.connections == 2


def test_a_server_of_another_protocol_is_named() -> None:
    answers = [b"not msgpack \xc1", "text", msgpack.packb([1, 2]), msgpack.packb({"type": "hello"})]
    for given in answers:
        with (
            scripted(lambda message, given=given: given) as server,
            pytest.raises(ClientError, match="does not speak the protocol of this client: start it with"),
        ):
            Client(server.url, retries=0)


def test_a_server_of_another_version_says_so() -> None:
    def script(message: dict[str, Any]) -> Any:
        assert message["protocol"] == 1
        return error("version", "this server speaks version 2")

    with scripted(script) as server, pytest.raises(ServerError, match="this server speaks version 2"):
        Client(server.url)
    assert server.connections == 1


def test_a_server_that_serves_another_policy_after_a_reconnect_is_refused() -> None:
    with scripted(Faults(LOSE)) as server, Client(server.url) as client:
        session = client.start("open it")
        server.description = DESCRIPTION | {"robot": "another arm"}
        with pytest.raises(ClientError, match="serves another policy than before"):
            session.act(observation())


def test_nothing_listens(pauses: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(Unreachable, match=rf"no server takes a connection at ws://127.0.0.1:{port}: .*refused"):
        Client(f"ws://127.0.0.1:{port}", retries=9)
    assert len(pauses) == 9
    assert 2.5 <= max(pauses) <= 5


@contextmanager
def plain_server(answer: bytes) -> Iterator[str]:
    """Run a server that answers each connection with these bytes, and then nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        opened = []

        def accept() -> None:
            while True:
                try:
                    client, _ = listening.accept()
                except OSError:
                    return
                opened.append(client)
                with suppress(OSError):  # the client is gone already
                    client.sendall(answer)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    for client in opened:
        client.close()


@pytest.mark.parametrize("sent", [b"", b"SSH-2.0-OpenSSH_9.6\r\n"])
def test_a_server_that_is_no_websocket(sent: bytes) -> None:
    with plain_server(sent) as url, pytest.raises(Unreachable, match=r"does not answer as a policy server: .+"):
        Client(url, retries=0, timeout_s=PATIENCE)


def test_a_server_that_speaks_before_the_request_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """An assertion of websockets fails then, if its thread is fast enough."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(connection, "connect", fail)
    with plain_server(b"") as url, pytest.raises(Unreachable, match="as a policy server: AssertionError"):
        Client(url, retries=0)


@contextmanager
def stuck_server(answers: int) -> Iterator[str]:
    """Run a server that answers some messages, and then reads no more."""
    stop = threading.Event()

    def run(listening: socket.socket) -> None:
        client, _ = listening.accept()
        with client:
            protocol, answered = ServerProtocol(max_size=None), 0
            while answered < answers:
                protocol.receive_data(client.recv(65536))
                for event in protocol.events_received():
                    if isinstance(event, Request):
                        protocol.send_response(protocol.accept(event))
                    else:
                        message = msgpack.unpackb(event.data)
                        protocol.send_binary(msgpack.packb({**DESCRIPTION, "session": "s", **message}))
                        answered += 1
                for data in protocol.data_to_send():
                    client.sendall(data)
            stop.wait(20)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=run, args=(listening,))
        thread.start()
        yield f"ws://127.0.0.1:{listening.getsockname()[1]}"
        stop.set()
        thread.join(20)


def test_a_server_that_takes_nothing_ends_the_request_in_time() -> None:
    """The buffers on the way are full, so that sending blocks."""
    with stuck_server(2) as url:
        session = Client(url, retries=0, timeout_s=PATIENCE).start("open it")
        begin = time.monotonic()
        with pytest.raises((NoAnswer, Unreachable)):
            session.act(observation(size=(2000, 2000)))
        assert time.monotonic() - begin < 10 * PATIENCE


def test_a_message_beyond_the_servers_limit_is_not_sent_again() -> None:
    def handler(opened: Any) -> None:
        for data in opened:
            message = msgpack.unpackb(data)
            opened.send(msgpack.packb({"id": message["id"], "type": message["type"], "session": "s", **DESCRIPTION}))

    with serve(handler, "127.0.0.1", 0, max_size=1000) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with Client(f"ws://127.0.0.1:{server.socket.getsockname()[1]}", retries=2) as client:
            session = client.start("open it")
            with pytest.raises(ClientError, match="refuses the size of a message"):
                session.act(observation(size=(100, 100)))
        server.shutdown()
        thread.join(20)


@contextmanager
def refusing(status: http.HTTPStatus, seen: list[Any]) -> Iterator[str]:
    def refuse(opened: Any, request: Any) -> Any:
        seen.append(request.headers.get("Authorization"))
        return opened.respond(status, "not today\n")

    with serve(lambda opened: None, "127.0.0.1", 0, process_request=refuse) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join(20)


def test_a_server_without_room_is_asked_again_and_its_text_is_shown(pauses: list[float]) -> None:
    seen: list[Any] = []
    with (
        refusing(http.HTTPStatus.SERVICE_UNAVAILABLE, seen) as url,
        pytest.raises(Unreachable, match="is busy: not today"),
    ):
        Client(url, retries=2)
    assert len(seen) == 3


def test_a_missing_and_a_wrong_key(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.delenv("ANYVLA_API_KEY", raising=False)
    with refusing(http.HTTPStatus.UNAUTHORIZED, seen) as url:
        with pytest.raises(AccessDenied, match=r"needs its API key: give key=..., or set ANYVLA_API_KEY"):
            Client(url)
        with pytest.raises(AccessDenied, match="the given key is wrong"):
            Client(url, key="argument")
        monkeypatch.setenv("ANYVLA_API_KEY", " environment\n")
        with pytest.raises(AccessDenied, match="the given key is wrong") as raised:
            Client(url)
        assert isinstance(raised.value, PermissionError)
        assert "environment" not in str(raised.value)
    assert seen == [None, "Bearer argument", "Bearer environment"]
    with refusing(http.HTTPStatus.FORBIDDEN, seen) as url, pytest.raises(ClientError, match="answers HTTP 403: not"):
        Client(url)


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with scripted() as server, Client(server.url, retries=0) as client:
        assert np.isfinite(client.start("open it").act(observation())).all()


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost", True), ("127.0.0.1", True), ("[::1]", True), ("192.168.1.7", False), ("robot.local", False)],
)
def test_only_this_machine_is_local(host: str, local: bool) -> None:
    assert connection.Connection(f"ws://{host}:8000", None, 1.0, 0, None).is_local is local
