"""What the tests of faults and attacks need to know of each protocol over websockets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import msgpack
import numpy as np
from hypothesis import strategies as st
from websockets.sync.client import ClientConnection

from anyvla.config import build
from anyvla.serving.mapping import ClientMapping
from anyvla.serving.protocols.anyvla import AnyvlaProtocol
from anyvla.serving.protocols.base import WebsocketProtocol
from anyvla.serving.protocols.openpi import OpenpiProtocol
from anyvla.serving.protocols.starvla import StarVLAProtocol
from anyvla.serving.protocols.vlaeval import VlaEvalProtocol
from anyvla.types import Observation
from tests.serving import clients
from tests.serving.protocols import openpi_wire

LAST = 2**40  # the number of the message after which all answers must have come


class Wire(ABC):
    """A protocol, as a client sees it."""

    protocol: ClassVar[type[WebsocketProtocol]]
    mapping: ClassVar[ClientMapping]
    whole_chunks: ClassVar[bool] = True  # whether an answer has all actions, not one

    @abstractmethod
    def observation(self, observation: Observation, instruction: str, **more: Any) -> dict[str, Any]:
        """Return the map of an observation, with more keys or others."""

    @abstractmethod
    def wrap(self, observation: Any, number: int = 0) -> Any:
        """Return the message of an observation."""

    def pack(self, message: Any) -> bytes:
        return openpi_wire.pack(message)

    @abstractmethod
    def last(self) -> bytes:
        """Return a valid message that is answered with `LAST`, if the connection is open."""

    @abstractmethod
    def is_last(self, reply: Any) -> bool:
        """Return whether a reply answers `last`. Fails for a reply that is none of the protocol's."""

    def open(self, server: clients.Running) -> ClientConnection:
        """Return a client that has done what precedes its first observation."""
        client = clients.dial(server)
        client.recv(timeout=30)
        return client

    def act(self, client: ClientConnection, seen: Observation, instruction: str, step: int, **more: Any) -> np.ndarray:
        """Return the chunk or the action for an observation."""
        client.send(self.pack(self.wrap(self.observation(seen, instruction, **more), step)))
        data = client.recv(timeout=30)
        assert isinstance(data, bytes), data
        return self.read_actions(openpi_wire.unpack(data), step)

    @abstractmethod
    def read_actions(self, reply: Any, step: int) -> np.ndarray:
        """Return the actions of the reply to the message `step`."""

    def restart(self, client: ClientConnection) -> dict[str, Any]:
        """Begin a new episode. Return keys that the next observation needs for it."""
        return {}

    def odd(self, values: st.SearchStrategy[Any], observations: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        """Return messages of the right form with wrong contents, or nearly of the right form."""
        return observations.map(self.wrap) | values.map(self.wrap)


class VlaEvalWire(Wire):
    protocol, mapping, whole_chunks = VlaEvalProtocol, clients.MAPPING, False

    def observation(self, observation: Observation, instruction: str, **more: Any) -> dict[str, Any]:
        return clients.payload(observation, instruction) | more

    def wrap(self, observation: Any, number: int = 0) -> Any:
        return {"type": "observation", "payload": observation, "seq": number}

    def pack(self, message: Any) -> bytes:
        def encode(value: np.ndarray) -> Any:
            keys = {"data": value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}
            return clients.image(value) if value.ndim == 3 else {"__ndarray__": True, **keys}

        return msgpack.packb(message, default=encode)  # type: ignore[no-any-return]

    def last(self) -> bytes:
        return self.pack({"type": "hello", "payload": {"protocol_version": 1}, "seq": LAST})

    def is_last(self, reply: Any) -> bool:
        assert set(reply) == {"type", "payload", "seq", "timestamp"}
        assert reply["type"] in ("hello", "error", "action")
        return bool(reply["seq"] == LAST)

    def open(self, server: clients.Running) -> ClientConnection:
        return clients.dial(server)

    def read_actions(self, reply: Any, step: int) -> np.ndarray:
        assert reply["type"] == "action", reply
        assert reply["seq"] == step
        array = reply["payload"]["actions"]
        return np.frombuffer(array["data"], array["dtype"]).reshape(array["shape"])

    def restart(self, client: ClientConnection) -> dict[str, Any]:
        client.send(clients.pack("episode_end", {}))
        return {}

    def odd(self, values: st.SearchStrategy[Any], observations: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        kinds = st.sampled_from(["hello", "observation", "episode_start", "episode_end", "action", "error"])
        whole = {"type": kinds, "payload": observations, "seq": st.integers(0, 2**30)}
        parts = {"type": kinds | values, "payload": observations | values, "seq": values}
        return st.fixed_dictionaries(whole) | st.fixed_dictionaries({}, optional=parts)


class OpenpiWire(Wire):
    protocol, mapping = OpenpiProtocol, openpi_wire.OPENPI

    def observation(self, observation: Observation, instruction: str, **more: Any) -> dict[str, Any]:
        return openpi_wire.flat(observation, instruction) | more

    def wrap(self, observation: Any, number: int = 0) -> Any:
        return observation

    def last(self) -> bytes:
        return self.pack(self.observation(clients.seen(1), "the last"))

    def is_last(self, reply: Any) -> bool:
        metadata = set(reply) >= {"robot", "cameras", "chunk"}
        assert metadata or set(reply) == {"actions", "policy_timing", "server_timing"}
        return not metadata

    def read_actions(self, reply: Any, step: int) -> np.ndarray:
        return reply["actions"]  # type: ignore[no-any-return]

    def restart(self, client: ClientConnection) -> dict[str, Any]:
        return {"reset": True}


class StarVLAWire(Wire):
    protocol, mapping = StarVLAProtocol, openpi_wire.STARVLA

    def observation(self, observation: Observation, instruction: str, **more: Any) -> dict[str, Any]:
        return openpi_wire.example(observation, instruction) | more

    def wrap(self, observation: Any, number: int = 0) -> Any:
        return {"type": "infer", "request_id": number, "payload": {"examples": [observation]}}

    def last(self) -> bytes:
        return self.pack({"type": "ping", "request_id": LAST})

    def is_last(self, reply: Any) -> bool:
        if set(reply) >= {"robot", "cameras", "chunk"}:
            return False
        more = {"error"} if not reply["ok"] else {"data"} if reply["type"] == "inference_result" else set()
        assert set(reply) == {"status", "ok", "type", "request_id"} | more
        return bool(reply["request_id"] == LAST)

    def read_actions(self, reply: Any, step: int) -> np.ndarray:
        assert reply["ok"], reply
        assert reply["request_id"] == step
        return reply["data"]["actions"][0]  # type: ignore[no-any-return]

    def restart(self, client: ClientConnection) -> dict[str, Any]:
        return {"reset": True}

    def odd(self, values: st.SearchStrategy[Any], observations: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        payloads = st.fixed_dictionaries({"examples": st.lists(observations, max_size=3) | values})
        kinds = st.sampled_from(["infer", "predict_action", "ping", "reset"]) | values
        parts = {"type": kinds, "request_id": st.integers(0, 2**30) | values, "payload": payloads | values}
        return payloads | st.fixed_dictionaries({}, optional=parts)


class AnyvlaWire(Wire):
    protocol, mapping = AnyvlaProtocol, build(ClientMapping, AnyvlaProtocol.keys)

    def observation(self, observation: Observation, instruction: str, **more: Any) -> dict[str, Any]:
        return {"images": dict(observation.images), "proprio": observation.proprio} | more

    def wrap(self, observation: Any, number: int = 0) -> Any:
        keys = {"session": self._session, "number": number + 1} if hasattr(self, "_session") else {}
        return {"type": "predict", "id": number, "observation": observation, **keys}

    def pack(self, message: Any) -> bytes:
        return VlaEvalWire().pack(message)

    def last(self) -> bytes:
        return self.pack({"type": "hello", "id": LAST, "protocol": 1})

    def is_last(self, reply: Any) -> bool:
        assert reply["type"] in ("hello", "start", "predict", "reset", "end", "error")
        return bool(reply["id"] == LAST)

    def open(self, server: clients.Running) -> ClientConnection:
        client = clients.dial(server)
        client.send(self.last())
        client.recv(timeout=30)
        return client

    def act(self, client: ClientConnection, seen: Observation, instruction: str, step: int, **more: Any) -> np.ndarray:
        if step == 0:
            self._session = self._ask(client, {"type": "start", "id": 0, "instruction": instruction})["session"]
        return super().act(client, seen, instruction, step, **more)

    def read_actions(self, reply: Any, step: int) -> np.ndarray:
        assert reply["type"] == "predict", reply
        assert reply["id"] == step
        array = reply["actions"]
        return np.frombuffer(array["data"], array["dtype"]).reshape(array["shape"])

    def restart(self, client: ClientConnection) -> dict[str, Any]:
        if hasattr(self, "_session"):
            self._ask(client, {"type": "end", "id": 0, "session": self._session})
        return {}

    def _ask(self, client: ClientConnection, message: dict[str, Any]) -> dict[str, Any]:
        client.send(self.pack(message))
        reply = openpi_wire.unpack(client.recv(timeout=30))
        assert reply["type"] == message["type"], reply
        return reply  # type: ignore[no-any-return]

    def odd(self, values: st.SearchStrategy[Any], observations: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        kinds = st.sampled_from(["hello", "start", "predict", "reset", "end"]) | values
        parts = {"type": kinds, "id": st.integers(0, 2**30) | values, "session": values, "number": values}
        more = {"observation": observations | values, "committed": values, "protocol": st.just(1) | values}
        return st.fixed_dictionaries({}, optional=parts | more)


WIRES: dict[str, type[Wire]] = {
    "vla-eval": VlaEvalWire,
    "openpi": OpenpiWire,
    "starvla": StarVLAWire,
    "anyvla": AnyvlaWire,
}
