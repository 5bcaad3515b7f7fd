"""Implement the protocol of vla-eval (PyPI `vla-eval`, protocol 1), whose harness evaluates our policies.

Messages are binary websocket frames with msgpack maps of type, payload, seq and timestamp. The client sends a hello
first, then an observation at every control step, and gets one action for each; the rest of the chunk stays here. An
answer echoes `seq`. Images are PNG, JPEG or raw bytes, arrays have a dtype; nothing is ever unpickled.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import msgpack
import numpy as np

from anyvla import __version__
from anyvla.policy import VLA
from anyvla.serving.batching import Batcher
from anyvla.serving.episode import Episodes
from anyvla.serving.limits import ServerLimits
from anyvla.serving.mapping import Request, Translator
from anyvla.serving.msgpack_reader import MessageError, read_msgpack
from anyvla.serving.naming import join_names, quote
from anyvla.serving.service import Answer
from anyvla.types import Observation

PROTOCOL = 1
T = TypeVar("T")
log = logging.getLogger(__name__)


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


class VlaEvalProtocol:
    """The state that all connections of a server share. `open_connection` begins one."""

    def __init__(
        self, vla: VLA, translator: Translator, execute: int | None = None, limits: ServerLimits | None = None
    ) -> None:
        """`execute`: actions of a chunk before the next prediction; None: as trained."""
        self.vla, self.translator, self.limits = vla, translator, limits or ServerLimits()
        self.execute = execute or vla.config.execute
        self.batcher = Batcher(vla, pending=self.limits.pending_requests)
        self._decoders = ThreadPoolExecutor(self.limits.decoders, "decoder")

    def open_connection(self) -> Answer:
        """Return the function that answers the messages of a new connection."""
        return Conversation(self).answer

    async def off_loop(self, run: Callable[..., T], *args: Any) -> T:
        """Run a function in a decoder's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, run, *args)

    async def decode(self, request: Request) -> Observation:
        """Return the observation of a request."""
        return await self.off_loop(request.observation)

    def close(self, wait_s: float = 5.0) -> bool:
        """End the threads. Return False if the policy still computes after `wait_s`."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        return self.batcher.close(wait_s)


class Conversation:
    """The state of one connection."""

    def __init__(self, protocol: VlaEvalProtocol) -> None:
        self._protocol = protocol
        self._episodes = Episodes(protocol.translator, protocol.batcher, protocol.decode, protocol.execute)

    async def answer(self, data: bytes | str) -> bytes | None:
        """Return the answer to a message, None if it needs none. Invalid input gets an error that describes it."""
        seq = 0
        try:
            message, request = await self._protocol.off_loop(self._understand, data)
            seq = message.seq
            if request is not None:
                return _write("action", {"actions": await self._episodes.act(request)}, seq)
            if message.kind == "hello":
                return _write("hello", self._hello(message.payload), seq)
            if message.kind == "episode_start":
                self._episodes.start()
            elif message.kind == "episode_end":
                self._episodes.end()
            else:
                raise ValueError(f"there is no message of type {quote(message.kind)}")
        except MessageFault as error:
            return _write("error", {"error": str(error)}, error.seq)
        except ValueError as error:
            return _write("error", {"error": str(error)}, seq)
        except Exception as error:
            log.exception("a request failed")
            return _write("error", {"error": f"the policy failed ({type(error).__name__}); see the server's log"}, seq)
        return None

    def _understand(self, data: bytes | str) -> tuple[Message, Request | None]:
        """Return a message and, for an observation, the checked request. Raises MessageFault."""
        message = read_message(data, self._protocol.limits)
        if message.kind != "observation":
            return message, None
        try:
            return message, self._protocol.translator.request(message.payload)
        except ValueError as error:
            raise MessageFault(str(error), message.seq) from None

    def _hello(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        theirs = payload.get("protocol_version")
        if theirs != PROTOCOL:
            raise ValueError(f"the client speaks protocol {quote(theirs)}, this server {PROTOCOL}")
        robot = self._protocol.translator.robot
        return {
            "harness_version": f"anyvla {__version__}",
            "protocol_version": PROTOCOL,
            "model_server": f"anyvla/{robot.name}",
            "capabilities": {
                "chunk": self._protocol.vla.config.chunk,
                "execute": self._protocol.execute,
                "cameras": list(robot.cameras),
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
    data: bytes = msgpack.packb(message, default=_encode, use_bin_type=True)
    return data


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}
    raise TypeError(f"no form for {type(value).__name__}")
