"""Messages as openpi's and starVLA's clients write and read them, from the schema."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
from websockets.sync.client import ClientConnection

from anyvla.serving.mapping import ClientMapping
from anyvla.serving.protocols.openpi import OpenpiProtocol
from anyvla.serving.protocols.starvla import StarVLAProtocol
from anyvla.types import Observation
from tests.serving.clients import ROBOT

OPENPI = ClientMapping(**OpenpiProtocol.keys)
STARVLA = ClientMapping(**StarVLAProtocol.keys, cameras={c: f"image/{i}" for i, c in enumerate(ROBOT.cameras)})


def pack(value: Any) -> bytes:
    def encode(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            keys = {b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
            return {b"__ndarray__": True, **keys}
        if isinstance(value, np.generic):
            return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
        return value

    return msgpack.packb(value, default=encode)  # type: ignore[no-any-return]


def unpack(data: Any) -> Any:
    def decode(value: dict[Any, Any]) -> Any:
        if b"__ndarray__" in value:
            return np.ndarray(buffer=value[b"data"], dtype=np.dtype(value[b"dtype"]), shape=value[b"shape"])
        return value

    assert isinstance(data, bytes), data
    return msgpack.unpackb(data, object_hook=decode)


def ask(client: ClientConnection, message: Any) -> Any:
    client.send(pack(message))
    return unpack(client.recv(timeout=30))


def flat(observation: Observation, prompt: str = "open the drawer", **more: Any) -> dict[str, Any]:
    """Return an observation as openpi's LIBERO and DROID clients send it."""
    images = {f"observation/{camera}": image for camera, image in observation.images.items()}
    return {**images, "observation/state": observation.proprio.astype(np.float64), "prompt": prompt, **more}


def example(observation: Observation, lang: str = "open the drawer", **more: Any) -> dict[str, Any]:
    """Return an example of starVLA's clients."""
    return {"image": list(observation.images.values()), "lang": lang, "state": observation.proprio[None], **more}
