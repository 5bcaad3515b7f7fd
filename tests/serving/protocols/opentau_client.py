"""A client of OpenTau's schema: a channel of its own, and the messages that it sends."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from anyvla.serving.mapping import ClientMapping
from anyvla.serving.protocols.opentau import OpenTauProtocol
from anyvla.serving.protocols.opentau_schema import robot_inference_pb2 as schema
from anyvla.types import Observation
from tests.serving.clients import Running, seen

PLAIN = ClientMapping(**OpenTauProtocol.keys)
SERVICE = "/robot_inference.RobotPolicyService"


class Client:
    """A channel of its own, as OpenTau's client has it."""

    def __init__(self, server: Running, *metadata: tuple[str, str], timeout: float = 20) -> None:
        self.channel = grpc.insecure_channel(
            f"127.0.0.1:{server.port}",
            options=[("grpc.keepalive_time_ms", 10000), ("grpc.use_local_subchannel_pool", 1)],
        )
        self.metadata, self.timeout = metadata, timeout
        self.get = self._method(self.channel.unary_unary, "GetActionChunk", schema.ActionChunkResponse)
        self.health = self._method(self.channel.unary_unary, "HealthCheck", schema.HealthCheckResponse)
        self.stream = self._method(self.channel.stream_stream, "StreamActionChunks", schema.ActionChunkResponse)

    def _method(self, make: Any, name: str, reply: Any) -> Any:
        def pack(message: Any) -> bytes:
            return message if isinstance(message, bytes) else message.SerializeToString()  # type: ignore[no-any-return]

        method = make(f"{SERVICE}/{name}", request_serializer=pack, response_deserializer=reply.FromString)
        return lambda message: method(message, timeout=self.timeout, metadata=self.metadata)

    def chunk(self, seed: int, **keys: Any) -> np.ndarray:
        return read(self.get(request(seen(seed), **keys)))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()


def read(reply: Any) -> np.ndarray:
    return np.array([action.values for action in reply.action_chunk], np.float32)


def picture(pixels: np.ndarray, encoding: str = "png") -> Any:
    if encoding == "raw":
        return schema.CameraImage(image_data=pixels.astype(np.float32).tobytes(), encoding="raw")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, encoding)
    return schema.CameraImage(image_data=file.getvalue(), encoding=encoding)


def request(
    observation: Observation,
    prompt: str = "open the drawer",
    prefix: np.ndarray | None = None,
    delay: int = 0,
    encoding: str = "png",
    **keys: Any,
) -> Any:
    return schema.ObservationRequest(
        images=[picture(observation.images[camera], encoding) for camera in ("corner", "wrist")],
        robot_state=schema.RobotState(state=observation.proprio.tolist()),
        prompt=prompt,
        prefix_action=[] if prefix is None else [schema.ActionVector(values=row) for row in prefix.tolist()],
        delay=delay,
        **keys,
    )


def fails(call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code().name, caught.value.details()
