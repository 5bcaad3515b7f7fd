"""A policy server on loopback in a thread, and clients of it that behave well or badly."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import os
import socket
import statistics
import struct
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np
from PIL import Image
from websockets.sync.client import ClientConnection, connect

from anyvla.policy import VLA
from anyvla.robot.embodiment import Embodiment
from anyvla.serving.limits import ServerLimits
from anyvla.serving.listening import bind
from anyvla.serving.mapping import ClientMapping, Translator
from anyvla.serving.policy_service import PolicyService
from anyvla.serving.protocols.base import ServerProtocol
from anyvla.serving.protocols.vlaeval import VlaEvalProtocol
from anyvla.serving.tls import TlsFiles
from anyvla.types import Observation
from tests import small

ROBOT = small.embodiment()
MAPPING = ClientMapping(cameras={camera: f"their_{camera}" for camera in ROBOT.cameras})


class Running:
    """A server in a thread."""

    def __init__(
        self,
        vla: VLA,
        limits: ServerLimits | None = None,
        key: str | None = None,
        execute: int | None = None,
        protocol: type[ServerProtocol] = VlaEvalProtocol,
        mapping: ClientMapping = MAPPING,
        tls: TlsFiles | None = None,
        robot: Embodiment = ROBOT,
        ready: bool = True,
    ) -> None:
        """`ready`: whether its state is that after a warm-up, which it does not run."""
        self.limits = limits or ServerLimits()
        translator = Translator(mapping, robot, self.limits, reads_proprio=vla.config.proprio != "none")
        self.service = PolicyService(vla, translator, execute, self.limits)
        if ready:
            self.service.status.set_ready()
        self.server = protocol(self.service).make_server(key, tls)
        self._sockets = bind("127.0.0.1", 0)
        self.port: int = self._sockets[0].getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}"
        self.unanswered: int | None = None
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._listening = threading.Event()
        self.thread.start()
        assert self._listening.wait(20)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.unanswered = await self.server.run(self._sockets, self._listening.set)

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.server.stop)

    def close(self) -> None:
        self.stop()
        self.thread.join(30)
        assert not self.thread.is_alive()
        self.service.close()

    @property
    def connections(self) -> int:
        return len(self.server._open) + len(self.server._opening)  # type: ignore[attr-defined]

    def settles(self, count: int = 0, within_s: float = 20) -> bool:
        """Return whether the number of connections falls to `count` in time."""
        end = time.monotonic() + within_s
        while self.connections > count and time.monotonic() < end:
            time.sleep(0.01)
        return self.connections <= count

    def health(self) -> float:
        """Return the seconds until `/health` is answered."""
        begin = time.perf_counter()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=30) as answer:
            assert answer.status == 200
        return time.perf_counter() - begin

    def healths(self, seconds: float) -> list[float]:
        """Ask for `/health` repeatedly, at least five times. Return the seconds of each answer."""
        found, end = [], time.monotonic() + seconds
        while time.monotonic() < end or len(found) < 5:
            found.append(self.health())
            time.sleep(0.02)
        return found


def pack(kind: str, payload: dict[str, Any], seq: int = 0) -> bytes:
    """Return a message as vla-eval's client writes it: images as PNG, arrays as bytes."""

    def encode(value: Any) -> Any:
        if (
            isinstance(value, np.ndarray)
            and value.dtype == np.uint8
            and value.ndim == 3
            and value.shape[2] in (1, 3, 4)
        ):
            return image(value)
        return {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}

    message = {"type": kind, "payload": payload, "seq": seq, "timestamp": time.time()}
    return msgpack.packb(message, default=encode, use_bin_type=True)  # type: ignore[no-any-return]


def image(pixels: np.ndarray, form: str = "png", **options: Any) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, form, **options)
    return {"__image__": True, "format": form, "data": file.getvalue(), "shape": list(pixels.shape)}


def ask(client: ClientConnection, kind: str, payload: dict[str, Any], seq: int = 0) -> dict[str, Any]:
    client.send(pack(kind, payload, seq))
    return answer(client, seq)


def answer(client: ClientConnection, seq: int = 0) -> dict[str, Any]:
    got = msgpack.unpackb(client.recv(timeout=30), raw=False)
    assert got["seq"] == seq
    if got["type"] == "action":
        array = got["payload"]["actions"]
        got["payload"] = np.frombuffer(array["data"], array["dtype"]).reshape(array["shape"])
    return got  # type: ignore[no-any-return]


def error(client: ClientConnection, kind: str, payload: dict[str, Any], seq: int = 0) -> str:
    got = ask(client, kind, payload, seq)
    assert got["type"] == "error", got
    return str(got["payload"]["error"])


def seen(seed: int, size: int = 32) -> Observation:
    rng = np.random.default_rng(seed)
    images = {c: rng.integers(0, 255, (size, size, 3), np.uint8) for c in ROBOT.cameras}
    return Observation(images, rng.normal(size=ROBOT.proprio.size).astype(np.float32))


def payload(observation: Observation, instruction: str = "open the drawer") -> dict[str, Any]:
    images = {f"their_{c}": image for c, image in observation.images.items()}
    return {"images": images, "states": observation.proprio.astype(np.float64), "task_description": instruction}


def dial(server: Running, **options: Any) -> ClientConnection:
    return connect(server.url, compression=None, max_size=None, **options)


class Raw:
    """A client that writes its frames itself, so that they can be invalid."""

    def __init__(self, server: Running, shake: bool = True) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        if shake:
            key = base64.b64encode(os.urandom(16)).decode()
            self.send(
                f"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            self.head = self.read_until(b"\r\n\r\n")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def flood(self, data: bytes, stop: threading.Event) -> None:
        """Send the same data repeatedly until stopped or refused."""
        self.socket.settimeout(0.2)
        sent = 0
        with contextlib.suppress(OSError):
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    sent += self.socket.send(memoryview(data)[sent:])
                sent %= len(data)

    def read_until(self, end: bytes) -> bytes:
        data = b""
        while not data.endswith(end):
            part = self.socket.recv(1)
            if not part:
                break
            data += part
        return data

    def closing(self, within_s: float = 20) -> tuple[int, str]:
        """Return the code and the reason of the close frame; (0, "") if the connection ends without one."""
        self.socket.settimeout(within_s)
        while (got := self._frame()) is not None:
            opcode, body = got
            if opcode == 8:
                return struct.unpack(">H", body[:2])[0], body[2:].decode()
        return 0, ""

    def message(self) -> Any:
        """Return the next message; None if the connection is closed."""
        while (got := self._frame()) is not None and got[0] != 8:
            if got[0] == 2:
                return msgpack.unpackb(got[1])
        return None

    def _frame(self) -> tuple[int, bytes] | None:
        head = self.exactly(2)
        if head is None:
            return None
        size = head[1] & 127
        if size == 126:
            size = struct.unpack(">H", self.exactly(2) or b"\0\0")[0]
        return head[0] & 15, self.exactly(size) or b""

    def ends(self, within_s: float = 20) -> bool:
        """Return whether the server ends the connection in time."""
        self.socket.settimeout(within_s)
        try:
            while self.socket.recv(65536):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def exactly(self, size: int) -> bytes | None:
        """Return the next bytes; None if the connection is closed before."""
        data = b""
        while len(data) < size:
            try:
                part = self.socket.recv(size - len(data))
            except ConnectionError:
                return None
            if not part:
                return None
            data += part
        return data

    def close(self) -> None:
        self.socket.close()


def frame(body: bytes, opcode: int = 2, fin: bool = True, claims: int | None = None) -> bytes:
    """Return a masked frame of a client. `claims`: the length in its header, if it is a wrong one."""
    size = len(body) if claims is None else claims
    head = bytes([(0x80 if fin else 0) | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += bytes([0x80 | 126]) + struct.pack(">H", size)
    else:
        head += bytes([0x80 | 127]) + struct.pack(">Q", size)
    return head + b"\0\0\0\0" + body  # the mask 0 changes nothing


@contextlib.contextmanager
def attackers(attack: Callable[[threading.Event], None], count: int = 1) -> Iterator[None]:
    """Run an attack in threads."""
    stop = threading.Event()
    threads = [threading.Thread(target=attack, args=(stop,)) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()


def median(values: list[float]) -> float:
    return statistics.median(values)
