"""Implement the protocol of `anyvla_sim.client`. Its sessions outlast connections. docs/serving_client.md describes it.

Messages are binary websocket frames with msgpack maps of `type`, `id` and more. The answer has the type and the id of
its request, or the type `error`. The first request of a connection is a `hello` with the version of the protocol.
"""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import msgpack
import numpy as np
from jaxtyping import Float32

from anyvla import __version__
from anyvla.config import ConfigError, build, to_dict
from anyvla.robot.space import ActionSpace
from anyvla.serving.arrays import read_numbers, write_array
from anyvla.serving.batching import BusyError
from anyvla.serving.mapping import ClientMapping, Request
from anyvla.serving.msgpack_reader import read_msgpack
from anyvla.serving.naming import join_names, quote
from anyvla.serving.policy_service import PolicyService
from anyvla.serving.protocols.base import Connection, Reply, WebsocketProtocol
from anyvla.serving.rollout import Rollout
from anyvla.serving.sessions import SessionStore
from anyvla.session import check_seed
from anyvla.text import check_instruction

VERSION = 1
_LARGEST = 2**63  # ids and numbers of requests


class RequestFault(ValueError):
    """A request that cannot be answered. `code` tells a client what kind of fault it is."""

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Message:
    """A message of a client, checked for its form."""

    kind: str
    id: int
    keys: Mapping[str, Any]
    checksum: int  # of its bytes: a repeated request has the same


class AnyvlaProtocol(WebsocketProtocol):
    """anyvla-sim's client (protocol 1): sessions that outlast lost connections."""

    port = 8000
    keys: ClassVar[Mapping[str, Any]] = {"proprio": "proprio", "instruction": "instruction"}
    unused_options: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("mapping", "instruction"), "its clients learn the policy's own names, and begin with an instruction"
    )

    def __init__(self, service: PolicyService) -> None:
        """Raise ConfigError for a mapping: clients learn the policy's own names, and begin with an instruction."""
        super().__init__(service)
        if service.translator.mapping != build(ClientMapping, self.keys):
            raise ConfigError(
                "--protocol anyvla takes no --mapping and no --instruction: its clients send what the policy reads"
            )
        self.rollouts = service.store_sessions(lambda: Rollout(service.open_session()))

    def open_connection(self) -> Connection:
        return Conversation(self.service, self.rollouts)


class Conversation:
    """The state of one connection: whether its client has said hello. All else belongs to the sessions."""

    def __init__(self, service: PolicyService, rollouts: SessionStore[Rollout]) -> None:
        self._service, self._rollouts = service, rollouts
        self._greeted = False

    def greet(self) -> None:
        """Say nothing: the client begins with its hello."""

    async def answer(self, data: bytes | str) -> Reply:
        """Answer a message. Invalid input gets an error that describes it."""
        number: int | None = None
        try:
            message = await self._service.parse(self._read, data)
            number = message.id
            return Reply(await self._answer(message))
        except Exception as error:
            return self._refuse(error, number)

    def _refuse(self, error: Exception, number: int | None) -> Reply:
        text = self._service.explain(error)
        code = "request" if isinstance(error, ValueError) else "policy"
        if isinstance(error, BusyError):
            code = "busy"
        if isinstance(error, RequestFault):
            code = error.code
        reply = _write("error", number, code=code, error=text)
        return Reply(reply, text, (1002, "another version of the protocol") if code == "version" else None)

    def _read(self, data: bytes | str) -> Message:
        """Return a message, checked for its form. Raises ValueError."""
        if isinstance(data, str):
            raise ValueError("messages are binary msgpack, this one is text")
        message = read_msgpack(data, self._service.limits)
        if not isinstance(message, dict):
            raise ValueError(f"a message is a map, this is a {type(message).__name__}")
        kind = message.get("type")
        if not isinstance(kind, str):
            raise ValueError(f"a message has a type and an id; this one has {join_names(message) or 'nothing'}")
        return Message(kind, _count(message, "id"), message, zlib.crc32(data))

    async def _answer(self, message: Message) -> bytes:
        if message.kind == "hello":
            return self._greet(message)
        if not self._greeted:
            raise RequestFault(f"the first message is a hello with the protocol {VERSION}", "version")
        if message.kind == "start":
            return self._start(message)
        if message.kind == "end":
            self._rollouts.drop(_name(message))
            return _write("end", message.id)
        if message.kind not in ("predict", "reset"):
            known = "hello, start, predict, reset, end"
            raise ValueError(f"there is no message of type {quote(message.kind)}; known are {known}")
        rollout = self._rollouts.get(_name(message))
        if rollout is None:
            raise RequestFault("the server does not know this session: it has expired or ended; start one", "session")
        run = self._predict if message.kind == "predict" else self._reset
        number = _count(message.keys, "number", 1)
        return await rollout.answer_once(number, message.checksum, lambda: run(rollout, message))

    def _greet(self, message: Message) -> bytes:
        theirs = message.keys.get("protocol")
        if theirs != VERSION or isinstance(theirs, bool):
            raise RequestFault(
                f"the client speaks version {quote(theirs)} of the protocol, this server (anyvla {__version__}) "
                f"version {VERSION}: install the same release of anyvla and anyvla-sim",
                "version",
            )
        self._greeted = True
        robot, facts = self._service.robot, self._service.describe()
        facts["proprio"] = _list_groups(robot.proprio) if self._service.translator.reads_proprio else []
        facts["action"] = _list_groups(robot.action)
        return _write("hello", message.id, protocol=VERSION, server=f"anyvla {__version__}", **facts)

    def _start(self, message: Message) -> bytes:
        instruction, seed = self._instruction(message.keys.get("instruction")), check_seed(message.keys.get("seed", 0))
        name = secrets.token_urlsafe(16)
        self._rollouts.find(name).restart(instruction, seed)
        return _write("start", message.id, session=name)

    async def _reset(self, rollout: Rollout, message: Message) -> bytes:
        given = message.keys.get("instruction", rollout.instruction)
        rollout.restart(self._instruction(given), check_seed(message.keys.get("seed", rollout.seed)))
        return _write("reset", message.id)

    async def _predict(self, rollout: Rollout, message: Message) -> bytes:
        request, committed = await self._service.off_loop(self._understand, rollout, message)
        delay, chunk = _count(message.keys, "delay", 0, 0), self._service.vla.config.chunk
        if delay >= chunk:
            raise ValueError(f"'delay' is {delay}: a chunk has {chunk} actions, and none would be left")
        actions = await rollout.session.predict(request, committed=committed)
        execute = [delay, min(delay + self._service.execute, len(actions))]
        return self._service.encode(lambda: _write("predict", message.id, actions=actions, execute=execute))

    def _understand(self, rollout: Rollout, message: Message) -> tuple[Request, Float32[np.ndarray, "K A"] | None]:
        """Return the request and the committed actions of a message. Raises ValueError."""
        observation = message.keys.get("observation")
        if not isinstance(observation, Mapping):
            raise ValueError(f"a predict message has an 'observation'; this one has {join_names(message.keys)}")
        values = {key: observation[key] for key in ("images", "proprio") if key in observation}
        request = self._service.translator.request({**values, "instruction": rollout.instruction})
        committed = message.keys.get("committed")
        return request, None if committed is None else self._read_committed(committed)

    def _read_committed(self, value: Any) -> Float32[np.ndarray, "K A"]:
        """Return the actions. Raises ValueError for another shape, which a reshaped or transposed array has."""
        space, most = self._service.robot.action, self._service.vla.config.chunk
        actions = read_numbers(value, "committed", self._service.limits).astype(np.float32)
        if actions.ndim != 2 or actions.shape[1] != space.size or not 1 <= len(actions) <= most:
            groups = ", ".join(f"{group.name} {group.size}" for group in space.groups)
            raise ValueError(
                f"'committed' has the shape {actions.shape}; (K, {space.size}) is needed: 1 to {most} actions, each of "
                f"{groups}"
            )
        if not np.isfinite(actions).all():
            raise ValueError("'committed' has numbers that are not finite")
        return actions

    def _instruction(self, text: Any) -> str:
        most = self._service.limits.instruction_characters
        if isinstance(text, str) and len(text) > most:
            raise ValueError(f"the instruction has {len(text)} characters; at most {most} are accepted")
        return check_instruction(text)


def _list_groups(space: ActionSpace) -> list[dict[str, Any]]:
    return [{key: value for key, value in to_dict(group).items() if value not in (None, "")} for group in space.groups]


def _name(message: Message) -> str:
    name = message.keys.get("session")
    if not isinstance(name, str):
        raise ValueError(f"a {message.kind} message has the session that start returned; this one has {quote(name)}")
    return name


def _count(keys: Mapping[str, Any], key: str, least: int = 0, default: int | None = None) -> int:
    """Return a whole number of a message. Raises ValueError for anything else."""
    value = keys.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < _LARGEST:
        raise ValueError(f"{key!r} must be a whole number from {least} on; got {quote(value)}")
    return value


def _write(kind: str, number: int | None, **keys: Any) -> bytes:
    data: bytes = msgpack.packb({"type": kind, "id": number, **keys}, default=write_array, use_bin_type=True)
    return data
