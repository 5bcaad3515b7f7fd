"""Clients of each protocol that check that every answer belongs to their own request."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import urlsplit

import grpc
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from anyvla.config import build
from anyvla.serving.mapping import ClientMapping
from anyvla.serving.protocols.anyvla import AnyvlaProtocol
from anyvla.serving.protocols.base import ServerProtocol
from anyvla.serving.protocols.groot import GrootProtocol
from anyvla.serving.protocols.openpi import OpenpiProtocol
from anyvla.serving.protocols.opentau import OpenTauProtocol
from anyvla.serving.protocols.opentau_schema import robot_inference_pb2 as schema
from anyvla.serving.protocols.starvla import StarVLAProtocol
from anyvla.serving.protocols.vlaeval import VlaEvalProtocol
from anyvla.types import Observation
from anyvla_sim.client import Client, ServerError, Session
from anyvla_sim.client.images import write_png
from tests.serving.clients import MAPPING, ROBOT, answer, pack, payload
from tests.serving.fingerprints import extend, write_action
from tests.serving.protocols import groot_client, openpi_wire

CHUNK, EXECUTE, SIZE = 4, 2, 32
_INSTRUCTIONS = 20  # of a client: tokenizers keep some thousands of words, so that new ones take memory for a while


class CheckedClient(ABC):
    """A client that behaves in a random way: new rollouts, lost connections, observations that are refused."""

    protocol: ClassVar[type[ServerProtocol]]
    mapping: ClassVar[ClientMapping]
    keeps_sessions: ClassVar[bool] = False  # over connections

    def __init__(self, url: str, number: int) -> None:
        """`number`: of the client; no two have the same observations or instructions."""
        self.url, self.answers, self.refused = url, 0, 0
        self._rng = np.random.default_rng(number)
        self._name, self._rollouts = f"client {number}", 0
        self._next_rollout(0)

    def play(self, steps: int) -> None:
        """Send requests. Raises AssertionError for an answer that is not the expected one."""
        for _ in range(steps):
            chance = self._rng.random()
            if chance < 0.04:
                self.restart()
            elif chance < 0.06:
                self.reconnect()
                if not self.keeps_sessions:
                    self._next_rollout(0)
            elif chance < 0.10:
                self.refused += 1
                self.send_refused(self._observe(proprio=500.0))
            else:
                self._step()

    def _step(self) -> None:
        observation = self._observe()
        actions = self.send(observation)
        if not self._left:
            self._digest = extend(self._digest, self.instruction, observation)
            self._left = [write_action(self._digest, place) for place in range(CHUNK)]
        expected = self._left[: len(actions)]
        assert np.asarray(actions).tolist() == expected, f"{self._name} got {actions}, expected {expected}"
        self._left = self._left[len(actions) :] if len(actions) == 1 and len(self._left) > CHUNK - EXECUTE + 1 else []
        self.answers += 1

    def _observe(self, proprio: float | None = None) -> Observation:
        images = {camera: self._rng.integers(0, 255, (SIZE, SIZE, 3), np.uint8) for camera in ROBOT.cameras}
        values = self._rng.normal(size=ROBOT.proprio.size) if proprio is None else np.full(3, proprio)
        return Observation(images, values.astype(np.float32))

    def _next_rollout(self, seed: int) -> None:
        """Expect the answers of a new rollout. `seed`: of its noise."""
        self._rollouts += 1
        self.instruction = f"{self._name}, rollout {self._rollouts % _INSTRUCTIONS}"
        self._digest, self._left = seed, []  # type: ignore[var-annotated]

    @abstractmethod
    def send(self, observation: Observation) -> Any:
        """Return the actions for an observation, (N, A)."""

    @abstractmethod
    def send_refused(self, observation: Observation) -> None:
        """Send an observation that the server refuses. The session is as before, if it still exists."""

    @abstractmethod
    def restart(self) -> None:
        """Begin a new rollout."""

    @abstractmethod
    def reconnect(self) -> None:
        """Lose the connection and open another one."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""


class _OfConnections(CheckedClient):
    """A client whose connection is its session."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__(url, number)
        self.connection = self._open()

    def _open(self) -> ClientConnection:
        return connect(self.url, compression=None, max_size=None)

    def reconnect(self) -> None:
        self.close()
        self.connection = self._open()

    def close(self) -> None:
        if self._rng.random() < 0.5:  # without a goodbye
            self.connection.socket.close()
        else:
            self.connection.close()


class VlaEvalClient(_OfConnections):
    protocol, mapping = VlaEvalProtocol, MAPPING

    def __init__(self, url: str, number: int) -> None:
        super().__init__(url, number)
        self._sent, self._episode = 0, 0

    def _ask(self, observation: Observation) -> Mapping[str, Any]:
        self._sent += 1
        self.connection.send(pack("observation", payload(observation, self.instruction), self._sent))
        return answer(self.connection, self._sent)

    def send(self, observation: Observation) -> Any:
        got = self._ask(observation)
        assert got["type"] == "action", got
        return got["payload"][None]

    def send_refused(self, observation: Observation) -> None:
        if self._left:  # the server would not look at its values, and send the next action
            self._step()
            return
        assert "far outside" in self._ask(observation)["payload"]["error"]

    def restart(self) -> None:
        self._episode += 1
        self.connection.send(pack("episode_start", {}))
        self._next_rollout(self._episode)

    def reconnect(self) -> None:
        super().reconnect()
        self._episode = 0


class OpenpiClient(_OfConnections):
    protocol, mapping = OpenpiProtocol, openpi_wire.OPENPI

    def _open(self) -> ClientConnection:
        opened = super()._open()
        openpi_wire.unpack(opened.recv(timeout=60))
        return opened

    def send(self, observation: Observation) -> Any:
        return openpi_wire.ask(self.connection, openpi_wire.flat(observation, self.instruction))["actions"]

    def send_refused(self, observation: Observation) -> None:
        self.connection.send(openpi_wire.pack(openpi_wire.flat(observation, self.instruction)))
        text = self.connection.recv(timeout=60)
        assert isinstance(text, str), text
        assert "far outside" in text
        with contextlib.suppress(ConnectionClosed):
            self.connection.recv(timeout=60)
        self.connection = self._open()
        self._next_rollout(0)

    def restart(self) -> None:
        self.reconnect()  # as openpi's clients do
        self._next_rollout(0)


class StarVLAClient(_OfConnections):
    protocol, mapping = StarVLAProtocol, openpi_wire.STARVLA

    def _open(self) -> ClientConnection:
        opened = super()._open()
        openpi_wire.unpack(opened.recv(timeout=60))
        return opened

    def _ask(self, observation: Observation) -> Any:
        name = f"r{self._rng.integers(1 << 40)}"
        example = openpi_wire.example(observation, self.instruction)
        got = openpi_wire.ask(
            self.connection, {"type": "infer", "request_id": name, "payload": {"examples": [example]}}
        )
        assert got["request_id"] == name
        return got

    def send(self, observation: Observation) -> Any:
        got = self._ask(observation)
        assert got["ok"], got
        return got["data"]["actions"][0]

    def send_refused(self, observation: Observation) -> None:
        assert "far outside" in self._ask(observation)["error"]["message"]

    def restart(self) -> None:
        self.reconnect()
        self._next_rollout(0)


class AnyvlaClient(CheckedClient):
    protocol, mapping = AnyvlaProtocol, build(ClientMapping, AnyvlaProtocol.keys)
    keeps_sessions = True

    def __init__(self, url: str, number: int) -> None:
        super().__init__(url, number)
        self._client = Client(url, timeout_s=60)
        self._session: Session = self._client.start(self.instruction, seed=0)

    def send(self, observation: Observation) -> Any:
        return self._session.predict(observation).actions

    def send_refused(self, observation: Observation) -> None:
        with contextlib.suppress(ServerError):
            self._session.predict(observation)
            raise AssertionError("an observation with implausible proprio was accepted")

    def restart(self) -> None:
        seed = int(self._rng.integers(1 << 40))
        self._next_rollout(seed)
        chance = self._rng.random()
        if chance < 0.4:
            self._session.reset(self.instruction, seed)
            return
        if chance < 0.8:  # else the session is left to expire
            self._session.end()
        self._session = self._client.start(self.instruction, seed)

    def reconnect(self) -> None:
        opened = self._client._connection._socket
        if opened is not None:
            opened.socket.close()

    def close(self) -> None:
        self._client.close()


class GrootClient(CheckedClient):
    protocol, mapping = GrootProtocol, ClientMapping(**GrootProtocol.keys)

    def __init__(self, url: str, number: int) -> None:
        super().__init__(url, number)
        self._resets, self._client = 0, self._open()

    def _open(self) -> groot_client.GrootClient:
        dialect = "N1.6" if self._rng.random() < 0.5 else "N1.7"
        return groot_client.GrootClient(urlsplit(self.url).port or 0, dialect, timeout_ms=60000)

    def _ask(self, observation: Observation) -> Any:
        return self._client.get_action(
            {
                "video": {camera: image[None, None] for camera, image in observation.images.items()},
                "state": {"position": observation.proprio[None, None]},
                "language": {"task": [[self.instruction]]},
            }
        )

    def send(self, observation: Observation) -> Any:
        groups, _ = self._ask(observation)
        return np.concatenate([groups[group.name][0] for group in ROBOT.action.groups], 1)

    def send_refused(self, observation: Observation) -> None:
        with pytest.raises(RuntimeError, match="far outside"):
            self._ask(observation)

    def restart(self) -> None:
        self._client.reset()
        self._resets += 1
        self._next_rollout(self._resets)

    def reconnect(self) -> None:
        self._client.close()
        self._resets, self._client = 0, self._open()

    def close(self) -> None:
        self._client.close()


class OpenTauClient(CheckedClient):
    protocol, mapping = OpenTauProtocol, ClientMapping(**OpenTauProtocol.keys)

    def __init__(self, url: str, number: int) -> None:
        super().__init__(url, number)
        self._open()

    def _open(self) -> None:
        channel = grpc.insecure_channel(urlsplit(self.url).netloc, options=[("grpc.use_local_subchannel_pool", 1)])
        self._channel = channel
        self._get = channel.unary_unary(
            "/robot_inference.RobotPolicyService/GetActionChunk",
            request_serializer=schema.ObservationRequest.SerializeToString,
            response_deserializer=schema.ActionChunkResponse.FromString,
        )

    def _ask(self, observation: Observation) -> Any:
        name = f"r{self._rng.integers(1 << 40)}"
        images = [_write_png(observation.images[camera]) for camera in ROBOT.cameras]
        state = schema.RobotState(state=observation.proprio.tolist())
        request = schema.ObservationRequest(images=images, robot_state=state, prompt=self.instruction, request_id=name)
        reply = self._get(request, timeout=60)
        assert reply.request_id == name
        return reply

    def send(self, observation: Observation) -> Any:
        return np.array([action.values for action in self._ask(observation).action_chunk], np.float32)

    def send_refused(self, observation: Observation) -> None:
        with pytest.raises(grpc.RpcError, match="far outside"):
            self._ask(observation)

    def restart(self) -> None:
        self._next_rollout(0)  # by its instruction

    def reconnect(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        self._channel.close()


def _write_png(image: np.ndarray) -> Any:
    return schema.CameraImage(image_data=write_png(image), encoding="png")


CLIENTS: dict[str, type[CheckedClient]] = {
    "anyvla": AnyvlaClient,
    "groot": GrootClient,
    "openpi": OpenpiClient,
    "opentau": OpenTauClient,
    "starvla": StarVLAClient,
    "vla-eval": VlaEvalClient,
}
