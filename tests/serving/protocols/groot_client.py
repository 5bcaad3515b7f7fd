"""Clients of GR00T N1.6 and N1.7, written from the schema of its `PolicyClient`."""

from __future__ import annotations

import functools
import io
import struct
import threading
from typing import Any

import msgpack
import numpy as np
import pytest

zmq: Any = pytest.importorskip("zmq")
msgpack_numpy: Any = pytest.importorskip("msgpack_numpy")

READY = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x03REQ"
_LOADING = threading.Lock()  # numpy parses headers as Python, which may fail in several threads of CPython 3.11


def zframe(body: bytes, flags: int = 0, claims: int | None = None) -> bytes:
    size = len(body) if claims is None else claims
    if size < 256 and not flags & 2:
        return bytes([flags, size]) + body
    return bytes([flags | 2]) + struct.pack(">Q", size) + body


def zrequest(body: bytes) -> bytes:
    return zframe(b"", 1) + zframe(body)


class Codec16:
    """Arrays as files of numpy.save."""

    marker = "__ModalityConfig_class__"

    def pack(self, value: Any) -> bytes:
        return msgpack.packb(value, default=self._encode)  # type: ignore[no-any-return]

    def unpack(self, data: bytes) -> Any:
        return msgpack.unpackb(data, object_hook=self._decode)

    def _encode(self, value: Any) -> Any:
        file = io.BytesIO()
        np.save(file, value, allow_pickle=False)
        return {"__ndarray_class__": True, "as_npy": file.getvalue()}

    def _decode(self, value: Any) -> Any:
        if self.marker in value:
            return Modality(**value["as_json"])
        if "__ndarray_class__" in value:
            with _LOADING:
                return np.load(io.BytesIO(value["as_npy"]), allow_pickle=False)
        return value


class Codec17:
    """Arrays as msgpack_numpy writes them. It reads no other form, as some clients do."""

    marker = "__ModalityConfig__"

    def pack(self, value: Any) -> bytes:
        return msgpack.packb(value, default=msgpack_numpy.encode)  # type: ignore[no-any-return]

    def unpack(self, data: bytes) -> Any:
        hook = functools.partial(msgpack_numpy.decode, chain=self._decode)
        return msgpack.unpackb(data, object_hook=hook, raw=False)

    def _decode(self, value: Any) -> Any:
        return Modality(**value["as_json"]) if self.marker in value else value


class Modality:
    """GR00T's ModalityConfig."""

    def __init__(
        self,
        delta_indices: list[int],
        modality_keys: list[str],
        sin_cos_embedding_keys: Any = None,
        mean_std_embedding_keys: Any = None,
        action_configs: Any = None,
    ) -> None:
        self.delta_indices, self.modality_keys = delta_indices, modality_keys


CODECS = {"N1.6": Codec16(), "N1.7": Codec17()}


class GrootClient:
    """A REQ socket, as GR00T's client has it."""

    def __init__(self, port: int, dialect: str = "N1.7", token: str | None = None, timeout_ms: int = 20000) -> None:
        self.codec, self.token = CODECS[dialect], token
        self.socket = zmq.Context.instance().socket(zmq.REQ)
        self.socket.linger, self.socket.rcvtimeo = 0, timeout_ms
        self.socket.connect(f"tcp://127.0.0.1:{port}")

    def call(self, endpoint: str, data: Any = None) -> Any:
        request: dict[str, Any] = {"endpoint": endpoint}
        if data is not None:
            request["data"] = data
        if self.token:
            request["api_token"] = self.token
        return self.send(self.codec.pack(request))

    def send(self, data: bytes) -> Any:
        self.socket.send(data)
        reply = self.codec.unpack(self.socket.recv())
        if isinstance(reply, dict) and "error" in reply:
            raise RuntimeError(f"Server error: {reply['error']}")
        return reply

    def get_action(self, observation: Any, options: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return tuple(self.call("get_action", {"observation": observation, "options": options}))  # type: ignore[return-value]

    def reset(self, options: Any = None) -> Any:
        return self.call("reset", {"options": options})

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> GrootClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
