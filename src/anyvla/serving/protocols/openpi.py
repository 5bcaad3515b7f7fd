"""Implement the protocol of openpi (PyPI `openpi-client`), which drives DROID, ALOHA and LIBERO.

The server speaks first: a map of metadata. Each message of the client is an observation, and its answer a whole chunk:
the client decides how many of its actions it executes. An error is a text frame, and the connection ends with 1011, as
openpi's clients expect. There is no message for a reset: a connection is a session. A new prompt begins a new rollout,
as does `reset: true` in an observation, which openpi's own clients don't send.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar

from websockets.frames import CloseCode

from anyvla.serving.mapping import Request
from anyvla.serving.policy_service import PolicyService
from anyvla.serving.protocols.base import Connection, Reply, WebsocketProtocol
from anyvla.serving.protocols.openpi_codec import read_map, write_map

CLOSE = (CloseCode.INTERNAL_ERROR, "the frame before says why")


class OpenpiProtocol(WebsocketProtocol):
    """openpi: an observation, then a whole chunk; the client executes as many actions as it likes."""

    port = 8000
    keys: ClassVar[Mapping[str, Any]] = {
        "images": "observation",
        "proprio": "observation/state",
        "instruction": "prompt",
        "restart": "reset",
    }

    def open_connection(self) -> Connection:
        return OpenpiConnection(self.service)


class OpenpiConnection:
    """The state of one connection, which is one session."""

    def __init__(self, service: PolicyService) -> None:
        self._service, self._session = service, service.open_session()
        self._before_ms: float | None = None  # the time that the last answer took

    def greet(self) -> bytes:
        """Return the metadata. `execute` is the number of actions of a chunk that a client should execute."""
        return write_map(self._service.describe())

    async def answer(self, data: bytes | str) -> Reply:
        """Answer an observation with a chunk. An error ends the connection."""
        start = time.perf_counter()
        try:
            request = await self._service.parse(self._read, data)
            parsed = time.perf_counter()
            actions = await self._session.predict(request)
        except Exception as error:
            text = self._service.explain(error)
            return Reply(text, error=text, close=CLOSE)
        now = time.perf_counter()
        server = {"infer_ms": 1000 * (now - start)}
        if self._before_ms is not None:
            server["prev_total_ms"] = self._before_ms
        answer = {"actions": actions, "policy_timing": {"infer_ms": 1000 * (now - parsed)}, "server_timing": server}
        written = self._service.encode(write_map, answer)
        self._before_ms = 1000 * (time.perf_counter() - start)
        return Reply(written)

    def _read(self, data: bytes | str) -> Request:
        return self._service.translator.request(read_map(data, self._service.limits))
