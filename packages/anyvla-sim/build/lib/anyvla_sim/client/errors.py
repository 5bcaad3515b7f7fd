"""The errors of a client."""

from __future__ import annotations


class ClientError(Exception):
    """A request that has no result; the message says why."""


class Unreachable(ClientError, ConnectionError):
    """The server does not take the connection, or closes it whenever the request is sent."""


class NoAnswer(ClientError, TimeoutError):
    """The server takes the request, but does not answer in time."""


class AccessDenied(ClientError, PermissionError):
    """The server needs a key, and the given one is missing or wrong."""


class WrongObservation(ClientError, ValueError):
    """An observation that does not fit the robot of the server. It was not sent."""


class ServerError(ClientError):
    """The server refuses a request, and the session is as before. The message is the server's."""

    def __init__(self, text: str, code: str) -> None:
        """`code`: version, request, session, busy or policy; docs/serving_client.md explains them."""
        super().__init__(text)
        self.code = code


class SessionLost(ServerError):
    """The server does not have the session (any more): it has expired, or the server was started again."""
