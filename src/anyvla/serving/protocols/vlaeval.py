"""Implement the protocol of vla-eval (PyPI `vla-eval`, protocol 1), whose harness evaluates our policies.

Messages are binary websocket frames with msgpack maps of type, payload, seq and timestamp. The client sends a hello
first, then an observation at every control step, and gets one action for each; the rest of the chunk stays here. An
answer echoes `seq`. Images are PNG, JPEG or raw bytes, arrays have a dtype; nothing is ever unpickled.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from anyvla import __version__
from anyvla.serving.arrays import write_array
from anyvla.serving.limits import ServerLimits
from anyvla.serving.mapping import Request
from anyvla.serving.msgpack_reader import MessageError, read_msgpack
from anyvla.serving.naming import join_names, quote
from anyvla.serving.observation_keys import MissingKeyError
from anyvla.serving.policy_service import PolicyService
from anyvla.serving.protocols.base import Connection, Reply, WebsocketProtocol

PROTOCOL = 1
_OPTIONS = {"camera": " (vla-eval: send_wrist_image)", "proprio": " (vla-eval: send_state)", "instruction": ""}


@dataclass(frozen=True)
class Message:
    """A message of a client, checked for its form."""

    kind: str
    payload: Mapping[str, Any]
    seq: int


class MessageFault(ValueError):
    """A message that can't be answered. `seq` is its number, 0 if it has none."""

    def __init__(self, text: str, seq: int) -> None:
        super().__init__(text)
        self.seq = seq


class VlaEvalProtocol(WebsocketProtocol):
    """vla-eval (protocol 1): an observation at every control step, one action each."""

    def open_connection(self) -> Connection:
        return Conversation(self.service)


class Conversation:
    """The state of one connection."""

    def __init__(self, service: PolicyService) -> None:
        self._service, self._session = service, service.open_session()

    def greet(self) -> None:
        """Say nothing: the client begins with its hello."""

    async def answer(self, data: bytes | str) -> Reply:
        """Answer a message; some need no answer. Invalid input gets an error that describes it."""
        seq = 0
        try:
            message, request = await self._service.parse(self._understand, data)
            seq = message.seq
            if request is not None:
                actions = await self._session.act(request)
                return Reply(self._service.encode(_write, "action", {"actions": actions}, seq))
            if message.kind == "hello":
                return Reply(_write("hello", self._hello(message.payload), seq))
            if message.kind == "episode_start":
                self._session.reset()
            elif message.kind == "episode_end":
                self._session.end()
            else:
                raise ValueError(f"there is no message of type {quote(message.kind)}")
        except Exception as error:
            text = self._service.explain(error)
            return Reply(_write("error", {"error": text}, error.seq if isinstance(error, MessageFault) else seq), text)
        return Reply()

    def _understand(self, data: bytes | str) -> tuple[Message, Request | None]:
        """Return a message and, for an observation, the checked request. Raises MessageFault."""
        message = read_message(data, self._service.limits)
        if message.kind != "observation":
            return message, None
        try:
            return message, self._service.translator.request(message.payload)
        except MissingKeyError as error:
            raise MessageFault(f"{error}{_OPTIONS[error.part]}", message.seq) from None
        except ValueError as error:
            raise MessageFault(str(error), message.seq) from None

    def _hello(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        theirs = payload.get("protocol_version")
        if theirs != PROTOCOL:
            advice = "use a newer anyvla, or a" if isinstance(theirs, int) and theirs > PROTOCOL else "use a newer"
            raise ValueError(
                f"the client speaks protocol {quote(theirs)} of vla-eval, this server (anyvla {__version__}) protocol "
                f"{PROTOCOL}: {advice} vla-eval with protocol {PROTOCOL}"
            )
        facts = self._service.describe()
        return {
            "harness_version": f"anyvla {__version__}",
            "protocol_version": PROTOCOL,
            "model_server": f"anyvla/{facts['robot']}",
            "capabilities": {
                "policy": facts["policy"],
                "robot": facts["robot"],
                "chunk": facts["chunk"],
                "execute": facts["execute"],
                "cameras": list(facts["cameras"]),
            },
        }


def read_message(data: bytes | str, limits: ServerLimits) -> Message:
    """Parse a message of a client. Raises MessageFault with its faults."""
    if isinstance(data, str):
        raise MessageFault("messages are binary msgpack, this one is text", 0)
    try:
        message = read_msgpack(data, limits)
    except MessageError as error:
        raise MessageFault(f"not a msgpack message of vla-eval: {error}", 0) from None
    if not isinstance(message, dict):
        raise MessageFault(f"a message is a map, this is a {type(message).__name__}", 0)
    kind, payload, seq = (message.get(key) for key in ("type", "payload", "seq"))
    number = seq if isinstance(seq, int) and not isinstance(seq, bool) else None
    if isinstance(kind, str) and isinstance(payload, dict) and number is not None:
        return Message(kind, payload, number)
    right = {"type": isinstance(kind, str), "payload": isinstance(payload, dict), "seq": number is not None}
    wrong = [f"{key!r} is {quote(message[key])}" for key, ok in right.items() if not ok and key in message]
    found = "; ".join(wrong) or f"this one has {join_names(message) or 'nothing'}"
    raise MessageFault(f"a message has type, payload (a map) and seq (a number); {found}", number or 0)


def _write(kind: str, payload: Mapping[str, Any], seq: int) -> bytes:
    message = {"type": kind, "payload": payload, "seq": seq, "timestamp": time.time()}
    data: bytes = msgpack.packb(message, default=write_array, use_bin_type=True)
    return data
