"""A policy server that follows a script, so that it can lose, delay and damage its answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import numpy as np
from websockets.sync.server import ServerConnection, serve

DESCRIPTION: dict[str, Any] = {
    "robot": "arm",
    "control_hz": 10,
    "cameras": {"front": None, "hand": None},
    "proprio": [{"name": "position", "size": 3, "kind": "position", "unit": "m"}, {"name": "gripper", "size": 1}],
    "action": [{"name": "position", "size": 3, "mode": "delta"}, {"name": "gripper", "size": 1}],
    "chunk": 4,
    "execute": 2,
}
LOSE = object()  # closes the connection instead of answering
SILENT = object()  # does not answer
Script = Callable[[dict[str, Any]], Any]


class ScriptedServer:
    """Answers each message with what `script` returns for it: a map, bytes, LOSE or SILENT."""

    def __init__(self, script: Script, description: dict[str, Any]) -> None:
        self.script, self.description = script, description
        self.received: list[bytes] = []  # messages that are no hello
        self.connections = 0
        self.server = serve(self._serve, "127.0.0.1", 0, compression=None, max_size=None)
        self.port = self.server.socket.getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [msgpack.unpackb(data) for data in self.received]

    def _serve(self, connection: ServerConnection) -> None:
        self.connections += 1
        for data in connection:
            assert isinstance(data, bytes)
            message = msgpack.unpackb(data)
            if message["type"] != "hello":
                self.received.append(data)
            answer = self.script(message)
            if answer is LOSE:
                connection.close(1011, "the power failed")
                return
            if isinstance(answer, dict):
                answer = msgpack.packb({"type": message["type"], "id": message["id"], **answer})
            if answer is not SILENT:
                connection.send(answer)

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join(20)


@contextmanager
def scripted(script: Script | None = None, **description: Any) -> Iterator[ScriptedServer]:
    """Run a server. Its script is only asked for what `answer` does not say."""
    server = ScriptedServer(lambda message: answer(message, script, server.description), DESCRIPTION | description)
    try:
        yield server
    finally:
        server.close()


def answer(message: dict[str, Any], script: Script | None, description: dict[str, Any]) -> Any:
    """Answer as a server does whose actions count: number of the request, then the position in the chunk."""
    scripted = script(message) if script is not None else None
    if scripted is not None:
        return scripted
    if message["type"] == "hello":
        return description
    if message["type"] == "start":
        return {"session": "s1"}
    if message["type"] == "predict":
        actions = np.tile(np.arange(4, dtype=np.float32)[:, None], (1, 4))
        actions[:, 0] = message["number"]
        return chunk(actions, 0, 2)
    return {}


def chunk(actions: np.ndarray, first: int, end: int) -> dict[str, Any]:
    array = {"__ndarray__": True, "dtype": actions.dtype.str, "shape": list(actions.shape), "data": actions.tobytes()}
    return {"actions": array, "execute": [first, end]}


def error(code: str, text: str = "no") -> dict[str, Any]:
    return {"type": "error", "code": code, "error": text}


def observation(seed: int = 0, size: tuple[int, int] = (12, 16)) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 255, (*size, 3), np.uint8) for camera in DESCRIPTION["cameras"]}
    return {"images": images, "proprio": rng.normal(size=4).astype(np.float32)}
