"""A policy server for vla-eval (PyPI `vla-eval`, protocol 1): its harness plays its benchmarks with our policies.

A websocket with binary frames, msgpack maps of type, payload, seq and timestamp. The client says hello first, sends an
observation at every control step and gets one action for each; the chunk it is of stays here. An answer echoes `seq`.
Images travel as PNG, JPEG or raw bytes, arrays with their dtype; nothing is ever unpickled.
"""

from __future__ import annotations

import asyncio
import http
import io
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
from PIL import Image

from anyvla import __version__
from anyvla.policy import VLA, Session
from anyvla.serving.batching import Batcher
from anyvla.serving.mapping import Translator

PROTOCOL = 1
LARGEST = 64 * 2**20  # bytes of a message
_KINDS = "biuf"


@dataclass
class _Episode:
    """What a connection plays."""

    session: Session | None = None
    said: str = ""
    left: deque[np.ndarray] = field(default_factory=deque)  # actions of the chunk that are not executed yet
    number: int = 0  # of the episode on this connection; seeds the noise of its chunks


class Server:
    """Answers connections; each plays one episode at a time."""

    def __init__(self, vla: VLA, translator: Translator, execute: int | None = None) -> None:
        """`execute`: actions of a chunk before predicting again; None: as trained."""
        self._vla, self._translator = vla, translator
        self._execute = execute or vla.config.execute
        self.batcher = Batcher(vla)

    async def serve(self, host: str, port: int, ready: Callable[[int], None] = lambda port: None) -> None:
        """Listen until cancelled. `ready` gets the port once it listens (port 0: any that is free)."""
        from websockets.asyncio.server import serve

        async with serve(
            self._connection,
            host,
            port,
            max_size=LARGEST,
            compression=None,
            ping_interval=None,
            process_request=_health,
        ) as server:
            ready(next(iter(server.sockets)).getsockname()[1])
            await asyncio.get_running_loop().create_future()

    async def _connection(self, socket: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        episode = _Episode()
        try:
            async for data in socket:
                answer = await self._answer(data, episode)
                if answer is not None:
                    await socket.send(answer)
        except ConnectionClosed:
            return

    async def _answer(self, data: bytes | str, episode: _Episode) -> bytes | None:
        """What to send; None for a message that wants no answer. Bad input is answered with an error that names it."""
        seq = 0
        try:
            message = _read(data)
            seq = message["seq"]
            kind, payload = message["type"], message["payload"]
            if kind == "hello":
                return _write("hello", self._hello(payload), seq)
            if kind == "observation":
                return _write("action", {"actions": await self._act(payload, episode)}, seq)
            if kind == "episode_start":
                episode.session, episode.number = None, episode.number + 1
                episode.left.clear()
            elif kind == "episode_end":
                episode.session = None
            else:
                raise ValueError(f"there is no message of type {kind!r}")
        except ValueError as error:
            return _write("error", {"error": str(error)}, seq)
        return None

    def _hello(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        theirs = payload.get("protocol_version")
        if theirs != PROTOCOL:
            raise ValueError(f"the client speaks protocol {theirs!r}, this server {PROTOCOL}")
        robot = self._translator.robot
        return {
            "harness_version": f"anyvla {__version__}",
            "protocol_version": PROTOCOL,
            "model_server": f"anyvla/{robot.name}",
            "capabilities": {"chunk": self._vla.config.chunk, "execute": self._execute, "cameras": list(robot.cameras)},
        }

    async def _act(self, payload: Mapping[str, Any], episode: _Episode) -> np.ndarray:
        said = self._translator.instruction(payload)
        if episode.session is None or said != episode.said:
            episode.session = self._vla.start(said, episode.number, self._translator.robot.name)
            episode.said = said
            episode.left.clear()
        if not episode.left:
            observation = self._translator.observation(payload)
            chunk = await self.batcher.act(observation, episode.session)
            episode.left.extend(self._translator.action(a) for a in chunk.actions[: self._execute])
        return episode.left.popleft()


def _health(connection: Any, request: Any) -> Any:
    """`GET /health` is answered without a websocket."""
    if request.path in ("/health", "/healthz"):
        return connection.respond(http.HTTPStatus.OK, "OK\n")
    return None


def _read(data: bytes | str) -> dict[str, Any]:
    """A message. Raises ValueError that says what is wrong with it."""
    if isinstance(data, str):
        raise ValueError("messages are binary msgpack, this one is text")
    try:
        message = msgpack.unpackb(data, object_hook=_decode, raw=False)
    except KeyError as error:
        raise ValueError(f"an array or an image came without its {error}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"not a msgpack message of vla-eval: {error}") from None
    if not isinstance(message, dict):
        raise ValueError(f"a message is a map, this is a {type(message).__name__}")
    missing = [key for key in ("type", "payload", "seq") if key not in message]
    if missing or not isinstance(message["payload"], dict) or not isinstance(message["seq"], int):
        raise ValueError(f"a message has type, payload (a map) and seq (a number); this one has {', '.join(message)}")
    return message


def _write(kind: str, payload: Mapping[str, Any], seq: int) -> bytes:
    message = {"type": kind, "payload": payload, "seq": seq, "timestamp": time.time()}
    data: bytes = msgpack.packb(message, default=_encode, use_bin_type=True)
    return data


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}
    raise TypeError(f"no form for {type(value).__name__}")


def _decode(value: dict[str, Any]) -> Any:
    if value.get("__image__"):
        return _picture(value)
    if value.get("__ndarray__"):
        return _array(value)
    return value


def _array(value: Mapping[str, Any]) -> np.ndarray:
    dtype = np.dtype(value["dtype"])
    if dtype.kind not in _KINDS:
        raise ValueError(f"an array of dtype {dtype} is not accepted")
    return np.frombuffer(value["data"], dtype).reshape(value["shape"])


def _picture(value: Mapping[str, Any]) -> np.ndarray:
    if value.get("format") == "raw":
        return _array(value)
    if value.get("format") not in ("png", "jpeg"):
        raise ValueError(f"an image of format {value.get('format')!r} is not accepted: raw, png, jpeg")
    try:
        with Image.open(io.BytesIO(value["data"]), formats=("PNG", "JPEG")) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise ValueError(f"an image cannot be decoded: {error}") from None
