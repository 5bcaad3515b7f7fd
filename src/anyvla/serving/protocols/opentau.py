"""Implement the gRPC service of OpenTau, `RobotPolicyService` of src/opentau/scripts/grpc, for real-time chunking.

A request may carry the next actions of the robot (`prefix_action`) and how many of them it executes until the chunk
arrives (`delay`): the chunk begins with these. GetActionChunk answers one observation; its session is that of the
client's address and of the metadata `session-id`. StreamActionChunks answers a stream, which has a session of its own.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from google.protobuf.message import DecodeError
from jaxtyping import Float32

from anyvla.robot.embodiment import Embodiment
from anyvla.serving.arrays import read_image
from anyvla.serving.limits import ServerLimits
from anyvla.serving.mapping import Request, Translator
from anyvla.serving.naming import quote
from anyvla.serving.policy_service import PolicyService
from anyvla.serving.protocols.base import Server, ServerProtocol
from anyvla.serving.protocols.opentau_schema import robot_inference_pb2 as schema
from anyvla.serving.protocols.protobuf_fields import check_fields
from anyvla.serving.tls import TlsFiles
from anyvla.serving.transports.grpc import Answer, GrpcServer

_KEY_HEADER = "x-tuner-api-key"  # with which OpenTau's clients send their key


class OpenTauProtocol(ServerProtocol):
    """OpenTau, over gRPC; a chunk continues the actions that the robot has committed to."""

    port = 50051
    scheme = "grpc"
    scheme_tls = "grpcs"
    keys: ClassVar[Mapping[str, Any]] = {"images": "cameras", "proprio": "state", "instruction": "prompt"}
    unused_options: ClassVar[Mapping[str, str]] = {
        "execute": "OpenTau's messages have no place for it, so its clients choose how many actions they execute"
    }

    def __init__(self, service: PolicyService) -> None:
        super().__init__(service)
        self._robots = service.store_sessions(lambda: RobotCalls(service))

    def make_server(self, key: str | None = None, tls: TlsFiles | None = None) -> Server:
        return GrpcServer(
            self.service,
            "robot_inference.RobotPolicyService",
            {"GetActionChunk": self._get_chunk, "HealthCheck": self._check_health},
            {"StreamActionChunks": self._open_stream},
            key,
            _KEY_HEADER,
            tls,
        )

    async def _get_chunk(self, data: bytes, caller: str) -> bytes:
        return await self._robots.find(caller).answer_once(data)

    def _open_stream(self) -> Answer:
        return RobotCalls(self.service).answer

    async def _check_health(self, data: bytes, caller: str) -> bytes:
        vla = self.service.vla
        how = "continued by inpainting" if vla.decoder.continues else "only put in place of a chunk's first"
        free, total = torch.cuda.mem_get_info(vla.device) if vla.device.type == "cuda" else (0, 0)
        hindrance = self.service.status.hindrance
        reply = schema.HealthCheckResponse(
            healthy=hindrance is None,
            status=hindrance or f"serving chunks of {vla.config.chunk} actions; committed actions are {how}",
            model_name=f"anyvla/{self.service.robot.name}",
            device=str(vla.device),
            gpu_memory_used_gb=(total - free) / 1e9,
            gpu_memory_total_gb=total / 1e9,
        )
        return reply.SerializeToString()


class RobotCalls:
    """The calls of one robot: its session, and what tells a repeated call and another client from the next call.

    gRPC does not say when a connection ends, and the next client may have the same address. OpenTau's client numbers
    its requests from `req_1` on, and sends a call that it got no answer to again, byte by byte.
    """

    def __init__(self, service: PolicyService) -> None:
        self._service, self._session = service, service.open_session()
        self._first = ""  # the id of the client's first request
        self._last, self._reply = ("", 0), b""  # the id and the checksum of the last answered request

    async def answer(self, data: bytes) -> bytes:
        """Answer the next request of a stream."""
        begin = time.perf_counter()
        return await self._predict(await self._service.parse(self._read, data), begin)

    async def answer_once(self, data: bytes) -> bytes:
        """Answer a request, with the same chunk if it is repeated. A client that begins with its ids begins a rollout.

        Requests without an id can't be told apart.
        """
        begin = time.perf_counter()
        call = await self._service.parse(self._read, data)
        this = call.request_id, zlib.crc32(data)
        if not call.request_id:
            return await self._predict(call, begin)
        if this == self._last:
            return self._reply
        if call.request_id == self._first:
            call = replace(call, request=replace(call.request, restart=True))
        self._first = self._first or call.request_id
        reply = await self._predict(call, begin)
        self._last, self._reply = this, reply
        return reply

    def _read(self, data: bytes) -> Call:
        return read_call(data, self._service.translator, self._service.limits)

    async def _predict(self, call: Call, begin: float) -> bytes:
        actions = await self._session.predict(call.request, committed=call.committed)
        return self._service.encode(_write_chunk, actions, call.request_id, time.perf_counter() - begin)


@dataclass(frozen=True)
class Call:
    """A checked request."""

    request: Request
    committed: Float32[np.ndarray, "K A"] | None
    request_id: str


def read_call(data: bytes, translator: Translator, limits: ServerLimits) -> Call:
    """Parse a request. Raises ValueError with its fault."""
    check_fields(data, limits.items)
    message = schema.ObservationRequest()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise ValueError("the message is no ObservationRequest of OpenTau") from None
    if len(message.request_id) > limits.text_bytes:
        raise ValueError(f"request_id is longer than {limits.text_bytes} characters")
    values = _read_values(message, translator.robot, limits)
    committed = _read_committed(message, translator.robot.action.size)
    return Call(translator.request(values), committed, message.request_id)


def _read_values(message: Any, robot: Embodiment, limits: ServerLimits) -> dict[str, Any]:
    """Return an observation whose images have their number, and the name of the policy's camera of that number."""
    if len(message.images) > limits.cameras:
        raise ValueError(f"the request has {len(message.images)} images; at most {limits.cameras} are accepted")
    images = [_read_image(image, f"images/{number}", limits) for number, image in enumerate(message.images)]
    state = message.robot_state.state
    if 4 * len(state) > limits.array_bytes:
        raise ValueError(f"robot_state has {len(state)} numbers; {robot.proprio.size} are needed")
    return {
        "cameras": dict(zip(robot.cameras, images, strict=False)),
        "images": {str(number): image for number, image in enumerate(images)},
        "state": np.fromiter(state, np.float32, len(state)),
    } | ({"prompt": message.prompt} if message.prompt else {})  # an empty text of protobuf is a missing one


def _read_image(image: Any, name: str, limits: ServerLimits) -> Any:
    data = image.image_data
    if image.encoding in ("jpeg", "png"):
        return read_image({"__image__": True, "format": image.encoding, "data": memoryview(data)}, name, limits)
    if image.encoding != "raw":
        raise ValueError(f"{name} has the encoding {quote(image.encoding)}; jpeg, png and raw are accepted")
    if len(data) > limits.image_bytes:
        raise ValueError(f"{name} has {len(data)} bytes; at most {limits.image_bytes} are accepted")
    side = round((len(data) / 12) ** 0.5)
    if not side or 12 * side * side != len(data):
        raise ValueError(f"{name} has {len(data)} bytes; raw is float32 of a square image with 3 channels")
    pixels = np.frombuffer(data, np.float32)
    whole = pixels.astype(np.uint8) if pixels.min() >= 0 and pixels.max() <= 255 else None
    if whole is None or not np.array_equal(whole, pixels):
        raise ValueError(
            f"{name} has values that are no whole numbers from 0 to 255, as OpenTau's client sends them: "
            "send (image * 255).round(), or png"
        )
    return read_image(whole.reshape(side, side, 3), name, limits, "HWC")


def _read_committed(message: Any, size: int) -> Float32[np.ndarray, "K A"] | None:
    """Return the first `delay` actions of the prefix. As for OpenTau's server, without a prefix there are none."""
    prefix, delay = message.prefix_action, message.delay
    if delay < 0:
        raise ValueError(f"delay is {delay}; it is the number of actions that the robot executes meanwhile")
    if not prefix or not delay:
        return None
    if delay > len(prefix):
        raise ValueError(
            f"delay is {delay}, but prefix_action has {len(prefix)} actions: send all that the robot executes until "
            "the chunk arrives"
        )
    for number, action in enumerate(prefix):
        if len(action.values) != size:
            raise ValueError(f"prefix_action {number} has {len(action.values)} numbers; {size} are needed")
    return np.array([action.values for action in prefix[:delay]], np.float32)


def _write_chunk(actions: Float32[np.ndarray, "N A"], request_id: str, seconds: float) -> bytes:
    reply = schema.ActionChunkResponse(
        action_chunk=[schema.ActionVector(values=action) for action in actions.tolist()],
        timestamp_ns=time.time_ns(),
        request_id=request_id,
        inference_time_ms=1000 * seconds,
    )  # `accel` stays absent: no decoder here measures it, and 0 would mean certain
    return reply.SerializeToString()
