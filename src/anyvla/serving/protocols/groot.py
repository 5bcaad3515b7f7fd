"""Implement the server of GR00T N1.6 and N1.7 (`gr00t.policy.server_client` of NVIDIA's Isaac-GR00T) over ZeroMQ.

A request names an endpoint: get_action, reset, ping, get_modality_config or kill. The reply to get_action is a whole
chunk for each of the B robots of a batch, split by the groups of the action. A connection is one client, and row b of
its batches is the session of its robot b, until a reset. After a timeout (15 s), GR00T's client opens a new connection,
whose sessions begin anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from websockets.frames import CloseCode

from anyvla.serving.access import is_key
from anyvla.serving.mapping import Request
from anyvla.serving.naming import quote
from anyvla.serving.policy_service import PolicyService
from anyvla.serving.protocols.base import Reply, Server, ServerProtocol
from anyvla.serving.protocols.groot_codec import MODALITY_MARKERS, Call, Dialect, read_call, write_reply
from anyvla.serving.protocols.groot_observation import INSTRUCTION, is_flat, split_rows
from anyvla.serving.served_session import predict_together
from anyvla.serving.tls import TlsFiles
from anyvla.serving.transports.zmq import ZmqConnection, ZmqServer
from anyvla.session import check_seed


class WrongKeyError(ValueError):
    """A request without the key of the server. Its connection ends."""


_LANGUAGE = "annotation.human.task_description"  # GR00T's usual key, for clients that ask


class GrootProtocol(ServerProtocol):
    """GR00T N1.6 and N1.7, over ZeroMQ."""

    port = 5555
    scheme = "tcp"
    scheme_tls = ""  # the clients speak no TLS
    keys: ClassVar[Mapping[str, Any]] = {
        "images": "video",
        "layout": "HWC",
        "proprio": "state",
        "instruction": INSTRUCTION,
    }

    def make_server(self, key: str | None = None, tls: TlsFiles | None = None) -> Server:
        return ZmqServer(self.service, lambda: self.open_connection(key))

    def open_connection(self, key: str | None = None) -> ZmqConnection:
        """Return the state of a new connection. `key`: the `api_token` that its requests must have."""
        return _GrootConnection(self.service, key)


class _GrootConnection:
    def __init__(self, service: PolicyService, key: str | None) -> None:
        self._service, self._key = service, key
        self.is_authorized = key is None
        self._rows = [service.open_session()]  # of the robots of a batch
        self._dialect: Dialect = "N1.6"  # of the last request; N1.7 reads it, too

    def greet(self) -> bytes | None:
        return None

    async def answer(self, data: bytes | str) -> Reply:
        try:
            call, requests = await self._service.parse(self._read, data)
            self._dialect = call.dialect or self._dialect
            value = await self._get_action(call, requests) if requests else self._call(call)
            return Reply(self._service.encode(write_reply, value, self._dialect))
        except Exception as error:
            text = self._service.explain(error)
            close = (CloseCode.POLICY_VIOLATION, text) if isinstance(error, WrongKeyError) else None
            return Reply(write_reply({"error": text}, self._dialect), error=text, close=close)

    def _read(self, data: bytes) -> tuple[Call, list[Request]]:
        """Return a call and, for get_action, the request of each row. Raises ValueError."""
        call = read_call(data, self._service.limits)
        if self._key is not None and not is_key(call.token, self._key):
            raise WrongKeyError("Unauthorized: this server needs its API key as api_token")
        self.is_authorized = True
        if call.endpoint != "get_action":
            return call, []
        rows = split_rows(call.data.get("observation"), self._service.limits.batch_rows)
        requests = []
        for number, row in enumerate(rows):
            try:
                requests.append(self._service.translator.request(row))
            except ValueError as error:
                raise ValueError(_at_row(number, len(rows), error)) from None
        return call, requests

    async def _get_action(self, call: Call, requests: list[Request]) -> list[dict[str, Any]]:
        while len(self._rows) < len(requests):
            self._rows.append(self._service.open_session())
        chunks = await predict_together(self._rows[: len(requests)], requests)
        parts = self._service.translator.split(np.concatenate(chunks))
        before = "action." if is_flat(call.data["observation"]) else ""
        actions = {
            f"{before}{name}": np.ascontiguousarray(values, np.float32).reshape(len(chunks), -1, values.shape[1])
            for name, values in parts.items()
        }
        return [actions, {"execute": self._service.execute}]

    def _call(self, call: Call) -> dict[str, Any]:
        match call.endpoint:
            case "reset":
                self._reset(call.data.get("options"))
                return {}
            case "ping":
                return {"status": "ok", "message": self._service.status.hindrance or "Server is running"}
            case "get_modality_config":
                return self._describe_modalities()
            case "kill":
                raise ValueError("clients may not end this server; its operator does it with Ctrl-C or SIGTERM")
        raise ValueError(
            f"there is no endpoint {quote(call.endpoint)}; there are get_action, reset, ping and get_modality_config"
        )

    def _reset(self, options: Any) -> None:
        """Begin a new rollout for each robot, with the noise of the option `seed` if it is given."""
        seed = options.get("seed") if isinstance(options, Mapping) else None
        for row, session in enumerate(self._rows):
            session.reset(None if seed is None else check_seed(seed) + row)

    def _describe_modalities(self) -> dict[str, Any]:
        """Return the keys of observations and actions, and the steps of them: one observation, N actions."""
        keys = self._service.translator.client_keys
        language = [_LANGUAGE if key == INSTRUCTION else key.removeprefix("language/") for key in keys["instruction"]]
        return {
            "video": _modality([0], [key.removeprefix("video/") for key in keys["images"]]),
            "state": _modality([0], [key.removeprefix("state/") for key in keys["proprio"]]),
            "action": _modality(list(range(self._service.vla.config.chunk)), keys["actions"]),
            "language": _modality([0], language),
        }


def _modality(steps: list[int], keys: list[str]) -> Mapping[str, Any]:
    return {**MODALITY_MARKERS, "as_json": {"delta_indices": steps, "modality_keys": keys}}


def _at_row(number: int, count: int, error: ValueError) -> str:
    return str(error) if count == 1 else f"robot {number} of the batch: {error}"
