from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from anyvla.serving.limits import ServerLimits
from anyvla.serving.transports.grpc_places import GrpcPlaces, read_peer

pytestmark = pytest.mark.skipif(not GrpcPlaces.is_supported(), reason="this system lists no open files")


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:80", ("127.0.0.1", 80)),
        ("ipv6:%5B::1%5D:8080", ("::1", 8080)),
        ("ipv6:[fe80::1%25eth0]:80", ("fe80::1", 80)),
        ("ipv6:[::ffff:10.0.0.1]:80", ("10.0.0.1", 80)),
    ],
)
def test_peers_are_read_as_gRPC_writes_them(peer: str, address: tuple[str, int]) -> None:
    assert read_peer(peer) == address


class Door:
    """A listening socket with its connections, and a clock that tests advance."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.sockets = [self.listening]
        self.now = 0.0

    def make_places(self, **limits: int) -> GrpcPlaces:
        places = GrpcPlaces(ServerLimits(handshake_seconds=10, **limits), lambda: self.now)
        places.ports = {self.listening.getsockname()[1]}
        return places

    def enter(self) -> tuple[socket.socket, socket.socket, str]:
        """Return the client's and the server's side of a new connection, and the peer."""
        client = socket.create_connection(self.listening.getsockname())
        client.settimeout(0.05)
        server, (host, port) = self.listening.accept()
        self.sockets += [client, server]
        return client, server, f"ipv4:{host}:{port}"


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    for one in door.sockets:
        one.close()


def is_open(client: socket.socket) -> bool:
    try:
        return client.recv(1) != b""
    except TimeoutError:
        return True


def test_a_stranger_has_the_time_of_a_handshake(door: Door) -> None:
    places = door.make_places()
    (stranger, _, _), (client, server, peer) = door.enter(), door.enter()
    assert places.take(peer)
    for now, stays in ((0.0, True), (9.9, True), (10.0, False)):
        door.now = now
        places.tidy()
        assert is_open(stranger) is stays
    door.now = 1000
    places.tidy()
    assert is_open(client)
    server.sendall(b"x")
    assert client.recv(1) == b"x"


def test_a_place_is_free_when_its_connection_has_ended(door: Door) -> None:
    places = door.make_places(connections=1)
    (_, server, first), (_, _, second) = door.enter(), door.enter()
    assert places.take(first)
    assert places.take(first)
    assert not places.take(second)
    server.close()
    assert places.take(second)


def test_the_oldest_strangers_make_room(door: Door) -> None:
    places = door.make_places(handshakes=4)
    clients = []
    for now in range(5):
        door.now = now
        clients.append(door.enter()[0])
        places.tidy()
        assert [is_open(c) for c in clients] == [age < 2 for age in reversed(range(len(clients)))]
