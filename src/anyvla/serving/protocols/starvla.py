"""Implement the protocol of starVLA (deployment/model_server of its repository).

The server speaks first, as openpi's: a map of metadata. A message is `{"type": "ping" | "infer" | "predict_action",
"request_id", "payload"}` or the payload alone, which has `examples`: a list of observations of environments that run in
parallel. The i-th example of a connection is always the same rollout, until its instruction changes or it has
`reset: true`. The answer has the chunks of all examples. The other keys (`unnorm_key`, `use_ddim`) change nothing: a
server has one robot. A policy's error is a frame with the status "error"; a frame that is no message is answered with
text, and the connection ends with 1011.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from anyvla.serving.mapping import Request
from anyvla.serving.msgpack_reader import MessageError
from anyvla.serving.naming import join_names, quote
from anyvla.serving.observation_keys import is_leaf
from anyvla.serving.policy_service import PolicyService
from anyvla.serving.protocols.base import Connection, Reply, WebsocketProtocol
from anyvla.serving.protocols.openpi import CLOSE
from anyvla.serving.protocols.openpi_codec import read_map, write_map
from anyvla.serving.served_session import ServedSession, predict_together

_NO_ID = "default"


class StarVLAProtocol(WebsocketProtocol):
    """starVLA: lists of observations, then a whole chunk for each of them."""

    port = 10093
    keys: ClassVar[Mapping[str, Any]] = {
        "images": "image",
        "proprio": "state",
        "instruction": "lang",
        "restart": "reset",
    }

    def open_connection(self) -> Connection:
        return StarVLAConnection(self.service)


@dataclass(frozen=True)
class Message:
    """A message, checked for its form."""

    kind: str
    request_id: str | int
    requests: tuple[Request, ...] = ()
    fault: str = ""  # of the observations


class StarVLAConnection:
    """The state of one connection, with a session for each example of its messages."""

    def __init__(self, service: PolicyService) -> None:
        self._service = service
        self._sessions: list[ServedSession] = []

    def greet(self) -> bytes:
        """Return the metadata. starVLA's clients execute `action_chunk_size` actions of each chunk."""
        facts, robot = self._service.describe(), self._service.robot
        sizes = [size for size in facts["cameras"].values() if size is not None]
        return write_map(
            facts
            | {
                "env": "anyvla",
                "action_chunk_size": facts["execute"],
                "available_unnorm_keys": [robot.name],
                "default_unnorm_key": robot.name,
                "training_obs_image_size": sizes[0] if sizes else None,
                "action_keys": list(facts["action"]),
                "state_keys": list(facts["proprio"]),
            }
        )

    async def answer(self, data: bytes | str) -> Reply:
        """Answer a message. Only a frame that is none ends the connection."""
        try:
            message = await self._service.parse(self._read, data)
        except Exception as error:
            text = self._service.explain(error)
            return Reply(text, error=text, close=CLOSE)
        if message.kind == "ping":
            return self._reply("ping", message.request_id)
        if message.kind not in ("infer", "predict_action"):
            return self._reply("unknown", message.request_id, f"there is no message of type {quote(message.kind)}")
        if message.fault:
            return self._reply("inference_result", message.request_id, message.fault)
        try:
            actions = await self._predict(message.requests)
        except Exception as error:
            return self._reply("inference_result", message.request_id, self._service.explain(error))
        answer = _head("inference_result", message.request_id) | {"data": {"actions": actions}}
        return Reply(self._service.encode(write_map, answer))

    async def _predict(self, requests: tuple[Request, ...]) -> np.ndarray:
        """Return the chunk of each example, (B, N, A)."""
        while len(self._sessions) < len(requests):
            self._sessions.append(self._service.open_session())
        return np.stack(await predict_together(self._sessions[: len(requests)], requests))

    def _read(self, data: bytes | str) -> Message:
        """Return a message. Raises MessageError for a frame that is none."""
        message = read_map(data, self._service.limits)
        kind, given = message.get("type", "infer"), message.get("request_id", _NO_ID)
        request_id = given if isinstance(given, str | int) and not isinstance(given, bool) else _NO_ID
        if not isinstance(kind, str):
            raise MessageError(f"the type of a message is a text, this is {quote(kind)}")
        if kind not in ("infer", "predict_action"):
            return Message(kind, request_id)
        try:
            return Message(kind, request_id, tuple(self._read_examples(message.get("payload", message))))
        except ValueError as error:
            return Message(kind, request_id, fault=str(error))

    def _read_examples(self, payload: Any) -> list[Request]:
        """Return the checked observations. Raises ValueError with the faulty example and key."""
        if not isinstance(payload, Mapping):
            raise ValueError(f"the payload must be a map with examples, this is {quote(payload)}")
        examples = payload.get("examples")
        if not isinstance(examples, list) or not examples:
            has = join_names(list(payload)) or "nothing"
            raise ValueError(f"the message has no examples, a list of observations; it has {has}")
        most = self._service.limits.batch_rows
        if len(examples) > most:
            raise ValueError(
                f"the message has {len(examples)} examples; at most {most} are accepted (--limits.batch_rows)"
            )
        requests = []
        for number, example in enumerate(examples):
            try:
                requests.append(self._read_example(example))
            except ValueError as error:
                raise ValueError(f"example {number}: {error}" if len(examples) > 1 else str(error)) from None
        return requests

    def _read_example(self, example: Any) -> Request:
        if not isinstance(example, Mapping) or is_leaf(example):
            raise ValueError(f"an example is a map of image, lang and state, this is {quote(example)}")
        image = example.get("image")
        if image is not None and not isinstance(image, list):
            example = {**example, "image": [image]}
        return self._service.translator.request(example)

    def _reply(self, kind: str, request_id: str | int, fault: str | None = None) -> Reply:
        head = _head(kind, request_id)
        if fault is None:
            return Reply(write_map(head))
        error = {"status": "error", "ok": False, "error": {"message": fault}}
        return Reply(write_map(head | error), error=fault)


def _head(kind: str, request_id: str | int) -> dict[str, Any]:
    return {"status": "ok", "ok": True, "type": kind, "request_id": request_id}
