"""Let gRPC connections without the key take no place of the clients, and close them soon.

gRPC neither lists its connections nor closes a single one; it only closes those that were idle for long. So they are
found among the open files of the process, by the port, and shut down.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import stat
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from urllib.parse import unquote

from anyvla.serving.limits import ServerLimits

_FILES = Path("/dev/fd")  # of the process; Windows has none
Address = tuple[str, int]  # of a client


class GrpcPlaces:
    """The connections of a server: `limits.connections` had the key, the others are strangers.

    A stranger has `limits.handshake_seconds`, and at most `limits.handshakes` are open; older ones make room.
    """

    def __init__(self, limits: ServerLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self.ports: Collection[int] = ()  # of the server
        self._clients: set[Address] = set()
        self._strangers: dict[Address, float] = {}  # when each was first seen

    @staticmethod
    def is_supported() -> bool:
        """Return whether this system lists the open files of a process."""
        return _FILES.is_dir()

    @property
    def most(self) -> int:
        """Return how many connections gRPC should accept."""
        return self._limits.connections + self._limits.handshakes

    @property
    def check_seconds(self) -> float:
        """Return the time between two calls of `tidy`."""
        return min(0.5, self._limits.handshake_seconds / 4)

    def take(self, peer: str) -> bool:
        """Return whether the connection of a call with the key has a place. `peer`: as gRPC writes its address."""
        address = read_peer(peer)
        if address not in self._clients and len(self._clients) >= self._limits.connections:
            self.tidy()  # some may have ended
            if len(self._clients) >= self._limits.connections:
                return False
        self._clients.add(address)
        return True

    def tidy(self) -> None:
        """Forget the connections that have ended, and end those of strangers whose time is over."""
        now = self._clock()
        with contextlib.ExitStack() as opened:
            living = {address: opened.enter_context(s) for address, s in _list_connections(self.ports)}
            self._clients &= living.keys()
            self._strangers = {a: self._strangers.get(a, now) for a in living if a not in self._clients}
            oldest_first = sorted(self._strangers, key=self._strangers.__getitem__)
            # Half of them stay at most, so that others find room until the next call.
            excess = len(oldest_first) - max(1, self._limits.handshakes // 2)
            for number, address in enumerate(oldest_first):
                if number < excess or now - self._strangers[address] >= self._limits.handshake_seconds:
                    with contextlib.suppress(OSError):  # it ended meanwhile
                        living[address].shutdown(socket.SHUT_RDWR)


def read_peer(peer: str) -> Address:
    """Return an address that gRPC writes as `ipv4:127.0.0.1:80` or `ipv6:%5B::1%5D:80`."""
    host, _, port = unquote(peer).partition(":")[2].rpartition(":")
    return _normalize(host.strip("[]"), int(port))


def _normalize(host: str, port: int) -> Address:
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address), port


def _list_connections(ports: Collection[int]) -> Iterator[tuple[Address, socket.socket]]:
    """Yield the client's address of each connection to one of the ports, and a copy of its socket, to be closed.

    A copy keeps its connection even if gRPC closes its own and another file gets the number.
    """
    for number in sorted(int(file.name) for file in _FILES.iterdir()):
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            copy = socket.socket(fileno=os.dup(number))
        except OSError:  # closed meanwhile
            continue
        address = _find_client(copy, ports)
        if address is None:
            copy.close()
        else:
            yield address, copy


def _find_client(connection: socket.socket, ports: Collection[int]) -> Address | None:
    """Return the address of the client; None for another socket than a connection to one of the ports."""
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        own, client = connection.getsockname(), connection.getpeername()
    except OSError:  # it listens, or has ended
        return None
    return _normalize(*client[:2]) if own[1] in ports else None
