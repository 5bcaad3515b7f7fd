"""Correct clients of the wire protocols that the doctor speaks: vla-eval, openpi and anyvla."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image

from anyvla.config import ConfigError
from anyvla.doctor.clients import PolicyClient, RefusedError
from anyvla.doctor.observation_writer import ObservationWriter
from anyvla.serving.protocols.registry import find_protocol
from anyvla.types import Observation

_ANSWER_S = 300.0  # a large policy on a CPU takes its time
_CONNECT_S = 10.0


@contextlib.contextmanager
def connected(
    protocol: str, url: str, writer: ObservationWriter, key: str | None = None
) -> Iterator[tuple[PolicyClient, Mapping[str, Any]]]:
    """Connect to a server, and yield a client and the server's description of its policy.

    `protocol` is a registered name. Raises ConfigError if no server answers there, or if it speaks another protocol.
    """
    client = _find_client(protocol)(url, writer, key)
    try:
        yield client, client.description
    finally:
        client.close()


def check_protocol(protocol: str) -> None:
    """Raise ConfigError for a protocol that the doctor has no client of."""
    _find_client(find_protocol(protocol))


def _find_client(protocol: str) -> type[VlaEvalClient | OpenpiClient | AnyvlaClient]:
    kinds: dict[str, type[VlaEvalClient | OpenpiClient | AnyvlaClient]] = {
        "vla-eval": VlaEvalClient,
        "openpi": OpenpiClient,
        "anyvla": AnyvlaClient,
    }
    if protocol not in kinds:
        raise ConfigError(f"the doctor has no client of {protocol}, only of {', '.join(kinds)}: give yours by --client")
    return kinds[protocol]


class _Websocket:
    """A connection of messages in msgpack."""

    def __init__(self, url: str, key: str | None) -> None:
        from websockets.exceptions import InvalidStatus, WebSocketException
        from websockets.sync.client import connect

        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        try:
            self._socket = connect(
                url, max_size=None, compression=None, open_timeout=_CONNECT_S, ping_interval=None,
                additional_headers=headers, proxy=None,
            )  # fmt: skip
        except InvalidStatus as error:
            status = error.response.status_code
            hint = ": give its key with --api-key-file" if status == 401 else ""
            raise ConfigError(f"the server at {url} refuses the connection (HTTP {status}){hint}") from None
        except (OSError, TimeoutError, WebSocketException, ValueError) as error:
            raise ConfigError(
                f"no policy server answers at {url} ({type(error).__name__}: {error}): is it running, and is this its "
                "address? Without --server, the doctor starts one"
            ) from None

    def send(self, message: bytes) -> None:
        self._socket.send(message)

    def receive(self, seconds: float = _ANSWER_S) -> bytes | str:
        """Return the next message. Raises RefusedError if the server closes the connection or is silent."""
        from websockets.exceptions import ConnectionClosed

        try:
            return self._socket.recv(timeout=seconds)
        except ConnectionClosed as error:
            raise RefusedError(f"the server closed the connection: {error}") from None
        except TimeoutError:
            raise RefusedError(f"the server did not answer within {seconds:g} s") from None

    def close(self) -> None:
        self._socket.close()


class VlaEvalClient:
    """Sends an observation at every control step, and gets one action each."""

    whole_chunks: bool | None = False

    def __init__(self, url: str, writer: ObservationWriter, key: str | None = None) -> None:
        self._writer, self._number, self._instruction = writer, 0, ""
        self._socket = _Websocket(url, key)
        try:
            got = self._ask("hello", {"protocol_version": 1, "harness_version": "anyvla doctor"}, _CONNECT_S)
        except RefusedError as error:
            self._socket.close()
            raise ConfigError(f"{url} does not answer as a server of vla-eval: {error}") from None
        facts = got.get("capabilities")
        self.description: Mapping[str, Any] = facts if isinstance(facts, Mapping) else {}

    def start(self, instruction: str) -> None:
        self._instruction = instruction
        self._socket.send(self._pack("episode_start", {"task_description": instruction}))

    def ask(self, observation: Observation, step: int) -> Float32[np.ndarray, "n A"]:
        values = self._writer.write(observation, self._instruction, _png)
        return np.atleast_2d(_read_array(self._ask("observation", values)["actions"]))[:1]

    def close(self) -> None:
        self._socket.close()

    def _ask(self, kind: str, payload: Mapping[str, Any], seconds: float = _ANSWER_S) -> Mapping[str, Any]:
        import msgpack

        self._socket.send(self._pack(kind, payload))
        data = self._socket.receive(seconds)
        if isinstance(data, str):
            raise RefusedError(f"the server answered with text: {data[:500]}")
        try:
            got = msgpack.unpackb(data, raw=False)
            wanted, content = got["type"], got["payload"]
        except (ValueError, KeyError, TypeError) as error:
            raise RefusedError(f"the answer is no message of vla-eval ({type(error).__name__})") from None
        if wanted == "error":
            raise RefusedError(str(content.get("error")))
        return content

    def _pack(self, kind: str, payload: Mapping[str, Any]) -> bytes:
        import msgpack

        self._number += 1
        message = {"type": kind, "payload": payload, "seq": self._number, "timestamp": time.time()}
        data: bytes = msgpack.packb(message, default=_write_array, use_bin_type=True)
        return data


class OpenpiClient:
    """Sends an observation when a chunk is used up, and gets the next chunk. A connection is a session."""

    whole_chunks: bool | None = True

    def __init__(self, url: str, writer: ObservationWriter, key: str | None = None) -> None:
        self._url, self._writer, self._key, self._instruction = url, writer, key, ""
        self._socket, self.description = self._connect()
        self._used = False

    def _connect(self) -> tuple[_Websocket, Mapping[str, Any]]:
        socket = _Websocket(self._url, self._key)
        try:
            greeting = _unpack_openpi(socket.receive(_CONNECT_S))
        except RefusedError as error:
            socket.close()
            raise ConfigError(f"{self._url} does not greet as a server of openpi: {error}") from None
        return socket, greeting

    def start(self, instruction: str) -> None:
        self._instruction = instruction
        if self._used:
            self._socket.close()
            self._socket, self.description = self._connect()
        self._used = True

    def ask(self, observation: Observation, step: int) -> Float32[np.ndarray, "n A"]:
        import msgpack

        values = self._writer.write(observation, self._instruction, flat="observation")
        self._socket.send(msgpack.packb(values, default=_write_openpi, use_bin_type=True))
        got = _unpack_openpi(self._socket.receive())
        if "actions" not in got:
            raise RefusedError(f"the answer has no actions, but {', '.join(map(str, got))}")
        return np.atleast_2d(np.asarray(got["actions"], np.float32))

    def close(self) -> None:
        self._socket.close()


class AnyvlaClient:
    """The client of `anyvla_sim`, whose sessions get the seed 0."""

    whole_chunks: bool | None = True

    def __init__(self, url: str, writer: ObservationWriter, key: str | None = None) -> None:
        from anyvla_sim.client import Client, ClientError

        self._error = ClientError
        try:
            self._client = Client(url, key=key, timeout_s=_ANSWER_S, retries=0)
        except (ClientError, ValueError) as error:
            raise ConfigError(f"no policy server of anyvla answers at {url}: {error}") from None
        robot = self._client.robot
        self.description: Mapping[str, Any] = {
            "robot": robot.name,
            "cameras": list(robot.cameras),
            "chunk": robot.chunk,
            "execute": robot.execute,
            **({"policy": robot.policy} if robot.policy else {}),
        }

    def start(self, instruction: str) -> None:
        try:
            self._session = self._client.start(instruction)
        except self._error as error:
            raise RefusedError(str(error)) from None

    def ask(self, observation: Observation, step: int) -> Float32[np.ndarray, "n A"]:
        seen = {"images": dict(observation.images), "proprio": observation.proprio}
        try:
            return self._session.predict(seen).actions
        except self._error as error:
            raise RefusedError(str(error)) from None

    def close(self) -> None:
        self._client.close()


def _png(image: np.ndarray) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return {"__image__": True, "format": "png", "data": file.getvalue(), "shape": list(image.shape)}


def _write_array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}
    raise TypeError(f"no form for {type(value).__name__}")


def _read_array(value: Any) -> Float32[np.ndarray, "..."]:
    if isinstance(value, Mapping) and value.get("__ndarray__"):
        value = np.frombuffer(value["data"], np.dtype(value["dtype"])).reshape(value["shape"])
    return np.array(value, np.float32)


def _write_openpi(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": list(value.shape),
        }
    raise TypeError(f"no form for {type(value).__name__}")


def _unpack_openpi(data: bytes | str) -> Mapping[Any, Any]:
    """Return a message of openpi with its arrays. Raises RefusedError for text, which is an error of the server."""
    import msgpack

    if isinstance(data, str):
        raise RefusedError(data.strip()[-500:])

    def read(value: dict[Any, Any]) -> Any:
        if b"__ndarray__" in value:
            return np.frombuffer(value[b"data"], np.dtype(value[b"dtype"])).reshape(value[b"shape"])
        return value

    try:
        got = msgpack.unpackb(data, object_hook=read, strict_map_key=False)
    except (ValueError, TypeError) as error:
        raise RefusedError(f"the message is no msgpack of openpi ({error})") from None
    if not isinstance(got, Mapping):
        raise RefusedError(f"the message is a {type(got).__name__}, not a map")
    return got
