"""The interface between transports, which move bytes, and protocols, which know what the bytes mean."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Reply:
    """The answer to one message."""

    data: bytes | str | None = None  # text becomes a text frame of a websocket; None: nothing is sent
    error: str | None = None  # the fault that `data` reports, for the log and the counts of errors
    close: tuple[int, str] | None = None  # close the connection afterwards, with a code of RFC 6455 and a reason


class Connection(Protocol):
    """The state of one connection."""

    def greet(self) -> bytes | None:
        """Return the message that the server sends first; None if the client speaks first."""

    async def answer(self, data: bytes | str) -> Reply:
        """Answer one message. Invalid input gets an error in the protocol's own form; nothing is raised for it."""


class Server(Protocol):
    """A server that listens until it is stopped."""

    async def run(self, sockets: Sequence[socket.socket], ready: Callable[[], None]) -> int:
        """Listen at bound sockets until `stop`; call `ready` when listening.

        Return how many requests were not answered. A library that binds its own sockets closes these first and binds
        the same addresses.
        """

    def stop(self) -> None:
        """Take no new requests, answer those in progress and end `run`; the second call ends it at once."""
