"""Malformed, incomplete and mistyped messages over ZeroMQ and gRPC get an error or a clean close.

Meanwhile another client, whose messages are valid, gets exactly the chunks of its rollout.
"""

from __future__ import annotations

import gc
import io
import socket
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("grpc")
pytest.importorskip("zmq")

import grpc

from anyvla.policy import VLA
from anyvla.serving.limits import ServerLimits
from anyvla.serving.protocols.groot import GrootProtocol
from anyvla.serving.protocols.opentau import OpenTauProtocol
from anyvla.serving.protocols.opentau_schema import robot_inference_pb2 as schema
from anyvla.serving.transports.zmtp import GREETING
from tests.serving.clients import Running, seen
from tests.serving.protocols import opentau_client, test_groot
from tests.serving.protocols.groot_client import CODECS, READY, GrootClient, zframe, zrequest
from tests.serving.protocols.test_fuzz import damaged, dtypes, scalars, shapes, values

LIMITS = ServerLimits(
    close_seconds=1, pings_per_second=1000, requests_per_second=10000, sessions=20000, handshake_seconds=5
)
STEPS = 6


def rollout(vla: VLA) -> list[np.ndarray]:
    session = vla.start("mine alone", 0)
    return [vla.act([seen(step)], [session])[0].actions for step in range(STEPS)]


class Arena(ABC):
    """A server, a client that sends valid messages, and counts of how attacks ended."""

    def __init__(self, server: Running, vla: VLA) -> None:
        self.server, self.expected, self.step = server, rollout(vla), 0
        self.outcomes = dict.fromkeys(self.kinds, 0)

    kinds: tuple[str, ...]

    @abstractmethod
    def attack(self, parts: Any) -> str:
        """Attack the server once. Return how it ended."""

    @abstractmethod
    def act(self, step: int) -> np.ndarray:
        """Return the chunk for the next observation of the good client, whose rollout begins anew with step 0."""

    def run(self, parts: Any) -> None:
        self.outcomes[self.attack(parts)] += 1
        if sum(self.outcomes.values()) % 5 == 0:
            self.check_the_good_one()

    def check_the_good_one(self) -> None:
        np.testing.assert_allclose(self.act(self.step), self.expected[self.step], atol=1e-5)
        self.step = (self.step + 1) % STEPS


class GrootArena(Arena):
    kinds = ("answered", "closed", "half a frame")

    def __init__(self, server: Running, vla: VLA) -> None:
        super().__init__(server, vla)
        self.good = GrootClient(server.port)

    def act(self, step: int) -> np.ndarray:
        if step == 0:
            self.good.reset({"seed": 0})
        actions, _ = self.good.get_action(test_groot.batch(seen(step), texts=("mine alone",)))
        return test_groot.joined(actions)[0]

    def attack(self, parts: list[tuple[str, bytes]]) -> str:
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=20) as client:
            try:
                if parts[0][0] != "greeting":
                    client.sendall(GREETING + READY)
                for _, data in parts:
                    client.sendall(data)
                client.sendall(zrequest(msgpack.packb({"endpoint": "ping"})))
                if any(kind != "message" for kind, _ in parts):
                    client.settimeout(0.05)  # the server may be waiting for the rest of a frame
                self._read_to_the_last(client)
                return "answered"
            except (ConnectionError, EOFError):
                return "closed"
            except TimeoutError:
                assert any(kind != "message" for kind, _ in parts)
                return "half a frame"

    def _read_to_the_last(self, client: socket.socket) -> None:
        """Read replies up to that to the ping. Each must be a message of GR00T."""
        file = client.makefile("rb")
        assert exactly(file, 64) == GREETING
        while True:
            flags, size = exactly(file, 2)
            if flags & 2:
                size = int.from_bytes(bytes([size]) + exactly(file, 7), "big")
            body = exactly(file, size)
            if flags & 4:
                assert body[:6] in (b"\x05READY", b"\x04PONG")
                continue
            while flags & 1:  # the envelope
                flags, size = exactly(file, 2)
                if flags & 2:
                    size = int.from_bytes(bytes([size]) + exactly(file, 7), "big")
                body = exactly(file, size)
            reply = CODECS["N1.7"].unpack(body)
            if reply == {"status": "ok", "message": "Server is running"}:
                return
            assert isinstance(reply, list) or set(reply) in ({"error"}, set(), {"video", "state", "action", "language"})

    def close(self) -> None:
        self.good.close()


def exactly(file: Any, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data  # type: ignore[no-any-return]


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


npys = st.sampled_from([npy(np.zeros((1, 1, 3), np.float32)), npy(np.zeros((1, 1, 32, 32, 3), np.uint8))])
arrays = st.fixed_dictionaries(
    {}, optional={"__ndarray_class__": st.just(True) | scalars, "as_npy": npys.flatmap(damaged) | scalars}
) | st.fixed_dictionaries(
    {b"nd": st.booleans() | scalars},
    optional={
        b"type": dtypes,
        b"kind": st.sampled_from([b"", b"O", b"V", "", None]) | scalars,
        b"shape": shapes | st.just([1, 1, 3]),
        b"data": st.just(bytes(12)) | st.binary(max_size=40) | scalars,
    },
)
anything = values | arrays
GOOD = test_groot.batch(seen(1))
observations = st.fixed_dictionaries(
    {},
    optional={
        "video": st.just(GOOD["video"]) | st.fixed_dictionaries({}, optional=dict.fromkeys(GOOD["video"], anything)),
        "state": st.just(GOOD["state"]) | st.fixed_dictionaries({"position": anything}) | anything,
        "language": st.just(GOOD["language"]) | st.fixed_dictionaries({"task": anything}) | anything,
        "video.corner": anything,
        "more": anything,
    },
)
endpoints = st.sampled_from(["get_action", "get_action", "reset", "ping", "get_modality_config", "kill", "none"])
calls = st.fixed_dictionaries(
    {"endpoint": endpoints, "data": st.fixed_dictionaries({"observation": observations}, optional={"options": values})}
) | st.fixed_dictionaries(
    {}, optional={"endpoint": endpoints | values, "data": observations | anything, "api_token": values}
)


def pack(message: Any) -> bytes:
    return CODECS["N1.7"].pack(message)


bodies = st.one_of(
    calls.map(pack),
    anything.map(pack),
    st.binary(max_size=300),
    calls.map(pack).flatmap(damaged),
    st.integers(1, 5000).map(lambda n: b"\x91" * n),
)
messages = st.tuples(st.just("message"), bodies.map(zrequest))
frames = st.tuples(
    st.just("frame"),
    st.builds(
        zframe,
        st.binary(max_size=300),
        st.integers(0, 7),
        st.none() | st.sampled_from([0, 5, 255, 2**20, 2**40, 2**63]),
    )
    | st.binary(max_size=60),
)
greetings = st.tuples(st.just("greeting"), damaged(GREETING + READY) | st.binary(max_size=90))
zmq_attacks = st.one_of(
    st.lists(messages, min_size=1, max_size=3),
    st.lists(messages | frames, min_size=1, max_size=3),
    greetings.map(lambda greeting: [greeting]),
)


class OpenTauArena(Arena):
    kinds = ("answered", "refused", "raw")

    def __init__(self, server: Running, vla: VLA) -> None:
        super().__init__(server, vla)
        self.good, self.bad = opentau_client.Client(server), opentau_client.Client(server)

    def act(self, step: int) -> np.ndarray:
        if step == 0:
            self.good.metadata = (("session-id", f"rollout {sum(self.outcomes.values())}"),)
        return self.good.chunk(step, prompt="mine alone")

    def attack(self, parts: tuple[str, Any]) -> str:
        kind, data = parts
        if kind == "raw":
            with socket.create_connection(("127.0.0.1", self.server.port), timeout=20) as client:
                try:
                    client.sendall(data)
                    client.settimeout(0.02)
                    client.recv(65536)
                except OSError:
                    pass
            return "raw"
        try:
            replies = [self.bad.get(data[0])] if kind == "unary" else list(self.bad.stream(iter(data)))
        except grpc.RpcError as error:
            code, text = error.code().name, error.details()
        else:
            code, text = "OK", ""
        if code != "OK":
            assert code in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"), text
            assert text
            return "refused"
        assert len(replies) == len(data)
        assert all(opentau_client.read(reply).shape == (4, 4) for reply in replies)
        return "answered"

    def close(self) -> None:
        for client in (self.good, self.bad):
            client.channel.close()


PNG = opentau_client.picture(np.zeros((32, 32, 3), np.uint8)).image_data
pictures = st.builds(
    lambda data, encoding: schema.CameraImage(image_data=data, encoding=encoding),
    st.just(PNG) | damaged(PNG) | st.binary(max_size=60) | st.sampled_from([bytes(12), bytes(12 * 1024)]),
    st.sampled_from(["png", "png", "png", "jpeg", "raw", "", "gif"]),
)
floats = st.floats(width=32)
vectors = st.lists(floats, max_size=5) | st.just([0.5, 0.0, -0.5, 1.0])
requests = st.builds(
    lambda images, state, prompt, prefix, delay, number: schema.ObservationRequest(
        images=images,
        robot_state=schema.RobotState(state=state),
        prompt=prompt,
        prefix_action=[schema.ActionVector(values=values) for values in prefix],
        delay=delay,
        request_id=number,
    ).SerializeToString(),
    st.lists(pictures, max_size=3) | st.just([schema.CameraImage(image_data=PNG, encoding="png")] * 2),
    st.just([0.0, 0.5, -0.5]) | st.lists(floats, max_size=5),
    st.just("go") | st.text(max_size=20) | st.just("x" * 1001),
    st.just([]) | st.lists(vectors, max_size=6),
    st.integers(-2, 6) | st.sampled_from([2**31 - 1, -(2**31)]),
    st.text(max_size=20),
)
protobufs = st.one_of(
    requests,
    requests.flatmap(damaged),
    st.binary(max_size=200),
    st.integers(1, 5000).map(lambda n: b"\x0a\x00" * n),
    st.integers(1, 5000).map(lambda n: b"\x0b" * n),  # groups in groups
    st.integers(1, 5000).map(lambda n: b"\x80" * n),
)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
h2_frames = st.builds(
    lambda body, kind, flags, stream: (
        struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body
    ),
    st.binary(max_size=60),
    st.integers(0, 10),
    st.integers(0, 255),
    st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 3]),
)
raw = st.binary(max_size=200) | st.lists(h2_frames, max_size=5).map(lambda frames: PREFACE + b"".join(frames))
grpc_attacks = st.one_of(
    st.tuples(st.just("unary"), protobufs.map(lambda data: [data])),
    st.tuples(st.just("unary"), protobufs.map(lambda data: [data])),
    st.tuples(st.just("stream"), st.lists(protobufs, min_size=1, max_size=3)),
    st.tuples(st.just("raw"), raw),
)


@pytest.fixture(scope="module")
def policy() -> VLA:
    return test_groot.small.awake(
        test_groot.small.policy({"name": "policy_head", "window": 3}, test_groot.small.FUSERS[3])
    )


def fuzz(arena: Any, attacks: Any, examples: list[Any], count: int) -> None:
    arena.check_the_good_one()
    files = psutil.Process().num_fds()
    drawn: list[Any] = []

    @settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(attacks)
    def run(parts: Any) -> None:
        arena.run(parts)
        if len(drawn) < 200:
            drawn.append(parts)

    for parts in examples:
        run = example(parts)(run)
    run()
    print(arena.outcomes)
    if count > 1000:
        check_memory(arena, drawn)
    arena.check_the_good_one()
    arena.close()
    end = time.monotonic() + 20
    while psutil.Process().num_fds() > files + 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert psutil.Process().num_fds() <= files + 2
    assert min(arena.outcomes.values()) > 0, arena.outcomes


def check_memory(arena: Any, attacks: list[Any]) -> None:
    """Repeat the same attacks, since hypothesis itself keeps what it draws. The memory must not grow."""
    used = []
    for _ in range(8):
        for parts in attacks:
            arena.run(parts)
        gc.collect()
        used.append(psutil.Process().memory_info().rss // 2**20)
    print("MiB:", used)
    assert used[-1] - used[1] < 20


def fuzz_groot(running: Callable[..., Running], policy: VLA, count: int) -> None:
    server = running(policy, LIMITS, protocol=GrootProtocol, mapping=test_groot.PLAIN)
    # One of each outcome, since the drawn examples depend on the modules that other tests have imported.
    examples = [
        [("message", zrequest(b"\xc1"))],
        [("frame", zframe(b"half", claims=2**20))],
        [("frame", b"\x08\x00")],
    ]
    fuzz(GrootArena(server, policy), zmq_attacks, examples, count)
    assert server.settles()


@pytest.fixture
def opentau(policy: VLA) -> Iterator[Running]:
    server = Running(policy, LIMITS, protocol=OpenTauProtocol, mapping=opentau_client.PLAIN)
    yield server
    server.close()


def fuzz_opentau(server: Running, policy: VLA, count: int) -> None:
    good = opentau_client.request(seen(1)).SerializeToString()
    examples = [("unary", [good]), ("stream", [b"\xff"]), ("raw", PREFACE + bytes(30))]
    fuzz(OpenTauArena(server, policy), grpc_attacks, examples, count)


def test_hundreds_of_messages_over_zeromq(running: Callable[..., Running], policy: VLA) -> None:
    fuzz_groot(running, policy, 150)


def test_hundreds_of_messages_over_grpc(opentau: Running, policy: VLA) -> None:
    fuzz_opentau(opentau, policy, 150)


@pytest.mark.slow
def test_ten_thousand_messages_over_zeromq(running: Callable[..., Running], policy: VLA) -> None:
    fuzz_groot(running, policy, 10000)


@pytest.mark.slow
def test_ten_thousand_messages_over_grpc(opentau: Running, policy: VLA) -> None:
    fuzz_opentau(opentau, policy, 10000)
