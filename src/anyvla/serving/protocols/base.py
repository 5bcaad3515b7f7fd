"""The base classes of protocols. An adapter is one file with one class, registered in `protocols/registry.py`.

A protocol over websockets implements `open_connection`; its connections parse messages into a `Request`, let a
`ServedSession` act on it, and write the result:

    class MyProtocol(WebsocketProtocol):
        \"\"\"One line for `anyvla list protocols`.\"\"\"

        port = 9000

        def open_connection(self) -> Connection:
            return MyConnection(self.service)

    class MyConnection:
        def __init__(self, service: PolicyService) -> None:
            self._service, self._session = service, service.open_session()

        def greet(self) -> bytes | None:
            return None  # or write(self._service.describe())

        async def answer(self, data: bytes | str) -> Reply:
            try:
                request = await self._service.parse(self._read, data)  # in a decoder's thread
                actions = await self._session.predict(request)  # or act, for one action at a time
                return Reply(self._service.encode(write, actions))
            except Exception as error:
                text = self._service.explain(error)
                return Reply(write_error(text), error=text)

`_read` unpacks the bytes (never with pickle), turns arrays and images into views and `EncodedImage`, and returns
`service.translator.request(values)`. Another transport implements `make_server`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from anyvla.serving.policy_service import PolicyService
from anyvla.serving.tls import TlsFiles
from anyvla.serving.transports.base import Connection as Connection
from anyvla.serving.transports.base import Reply as Reply
from anyvla.serving.transports.base import Server as Server
from anyvla.serving.transports.websocket import WebsocketServer


class ServerProtocol(ABC):
    """A wire protocol over the policy that `service` shares among all clients."""

    port: ClassVar[int] = 8000  # the port that clients of this protocol expect
    scheme: ClassVar[str] = "ws"  # of the address that is shown
    keys: ClassVar[Mapping[str, Any]] = {}  # of `ClientMapping`, where the clients' usual keys differ from its defaults
    unused_options: ClassVar[Mapping[str, str]] = {}  # of `anyvla serve`: names without "--", and why they do nothing
    scheme_tls: ClassVar[str] = "wss"  # of the address with TLS; "": `make_server` takes no `tls`

    def __init__(self, service: PolicyService) -> None:
        self.service = service

    @abstractmethod
    def make_server(self, key: str | None = None, tls: TlsFiles | None = None) -> Server:
        """Return a server that is not running. `key`: the API key that clients must give, None if they need none."""


class WebsocketProtocol(ServerProtocol):
    """A protocol over websockets, the transport of most policy servers."""

    @abstractmethod
    def open_connection(self) -> Connection:
        """Return the state of a new connection."""

    def make_server(self, key: str | None = None, tls: TlsFiles | None = None) -> Server:
        context = None if tls is None else tls.make_context()
        return WebsocketServer(self.service, self.open_connection, key, context)
