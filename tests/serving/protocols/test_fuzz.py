"""Malformed, incomplete and mistyped messages get an error or a clean close.

Meanwhile another client, whose messages are valid, gets exactly the actions of its episode.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

import msgpack
import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from anyvla.policy import VLA
from anyvla.serving.limits import ServerLimits
from tests.serving.clients import Raw, Running, frame, image, seen
from tests.serving.protocols.wires import WIRES, Wire

LIMITS = ServerLimits(close_seconds=1, pings_per_second=1000, requests_per_second=10000, sessions=2)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.sampled_from([math.nan, math.inf, -1, 0, 2**31, 1e300, "", "states", b"", b"\x93NUMPY", msgpack.Timestamp(1)]),
    st.text(max_size=20),
    st.binary(max_size=40),
    st.builds(lambda size: "x" * size, st.sampled_from([999, 1001, 70000])),
)
shapes = st.lists(st.integers(-2, 9) | st.sampled_from([2**31, 2**62, None, "3", 1.5]), max_size=5) | scalars
dtypes = (
    st.sampled_from(["|u1", "<f4", ">f8", "|O", "O", "|V8", "U4", "u1,u1", "c8", "nonsense", "datetime64[s]"]) | scalars
)
arrays = st.fixed_dictionaries(
    {"__ndarray__": st.just(True) | scalars},
    optional={"dtype": dtypes, "shape": shapes, "data": st.binary(max_size=200) | scalars},
)
arrays |= arrays.map(lambda array: {key.encode(): value for key, value in array.items()})  # as openpi's clients
PNG = image(np.zeros((32, 32, 3), np.uint8))["data"]
JPEG = image(np.zeros((32, 32, 3), np.uint8), "jpeg")["data"]


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Return the bytes with some of them replaced, inserted or cut off."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 4))):
        if data:
            at = draw(st.integers(0, len(data) - 1))
            data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(data[: draw(st.just(len(data)) | st.integers(0, len(data)))])


images = st.fixed_dictionaries(
    {"__image__": st.just(True) | scalars},
    optional={
        "format": st.sampled_from(["png", "jpeg", "raw", "gif"]) | scalars,
        "data": damaged(PNG) | damaged(JPEG) | scalars,
        "shape": st.just([32, 32, 3]) | shapes,
        "dtype": dtypes,
    },
)
values = st.recursive(
    scalars | arrays | images,
    lambda v: st.lists(v, max_size=5) | st.dictionaries(st.text(max_size=9) | st.binary(max_size=9), v, max_size=5),
    max_leaves=20,
)


def bodies(wire: Wire) -> st.SearchStrategy[bytes]:
    """Return whole messages, of which many are wrong in one part only."""
    good = wire.observation(seen(1), "go")
    parts = {key: st.just(value) | values for key, value in good.items()}
    observations = st.fixed_dictionaries({}, optional=parts | {"more": values})
    if isinstance(good.get("images"), dict):
        several = st.fixed_dictionaries({}, optional=dict.fromkeys(good["images"], values))
        observations |= st.fixed_dictionaries({}, optional=parts | {"images": several})
    messages = wire.odd(values, observations) | observations.map(wire.wrap)
    packed = messages.map(wire.pack)
    return st.one_of(
        packed,
        values.map(wire.pack),
        st.binary(max_size=300),
        packed.flatmap(damaged),
        st.integers(1, 5000).map(lambda n: b"\x91" * n),
        st.integers(1, 5000).map(lambda n: b"\x81\xa1a" * n),
        st.tuples(st.sampled_from(b"\xc6\xdb\xdd\xdf\xc9"), st.integers(0, 2**32 - 1)).map(
            lambda t: struct.pack(">BI", *t)
        ),
    )


frames = st.tuples(
    st.just("frame"),
    st.builds(
        frame,
        st.binary(max_size=200),
        st.integers(0, 15),
        st.booleans(),
        st.none() | st.sampled_from([0, 5, 2**20, 2**40]),
    )
    | st.binary(max_size=60),
)


class Arena:
    """A server, a client that sends valid messages, and counts of how attacks ended."""

    def __init__(self, server: Running, vla: VLA, wire: Wire) -> None:
        self.server, self.wire, self.good = server, wire, wire.open(server)
        session, self.expected, self.step = vla.start("mine alone", 0), [], 0
        every = 1 if wire.whole_chunks else vla.config.execute
        for step in range(2 * vla.config.execute):
            if step % every == 0:
                (chunk,) = vla.act([seen(step)], [session])
            self.expected.append(chunk.actions if wire.whole_chunks else chunk.actions[step % every])
        self.outcomes = {"answered": 0, "closed": 0, "half a frame": 0}

    def attack(self, parts: list[tuple[str, bytes]]) -> None:
        client = Raw(self.server)
        try:
            self._talk(client, parts)
        finally:
            client.close()
        if sum(self.outcomes.values()) % 5 == 0:
            self.check_the_good_one()

    def _talk(self, client: Raw, parts: list[tuple[str, bytes]]) -> None:
        """Send all, then a valid message. It must be answered, unless the connection is closed or waits for a frame."""
        try:
            for _, data in parts:
                client.send(data)
            client.send(frame(self.wire.last()))
        except OSError:
            self.outcomes["closed"] += 1
            return
        if any(kind == "frame" for kind, _ in parts):
            client.socket.settimeout(0.05)  # the server may be waiting for the rest of a frame
        try:
            while (reply := client.message()) is not None:
                if self.wire.is_last(reply):
                    self.outcomes["answered"] += 1
                    return
            self.outcomes["closed"] += 1
        except TimeoutError:
            assert any(kind == "frame" for kind, _ in parts)
            self.outcomes["half a frame"] += 1

    def check_the_good_one(self) -> None:
        more = {}
        if self.step == len(self.expected):
            more, self.step = self.wire.restart(self.good), 0
        got = self.wire.act(self.good, seen(self.step), "mine alone", self.step, **more)
        assert np.allclose(got, self.expected[self.step], atol=1e-5)
        self.step += 1

    def fuzz(self, count: int) -> None:
        messages = st.tuples(st.just("message"), st.builds(frame, bodies(self.wire), st.sampled_from([2, 2, 2, 2, 1])))

        @settings(
            max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(st.lists(messages, min_size=1, max_size=3) | st.lists(messages | frames, min_size=1, max_size=3))
        # One of each outcome, since the drawn examples depend on the modules that other tests have imported.
        @example([("frame", frame(b"half", claims=2**20))])
        @example([("frame", frame(b"", 3))])  # a reserved opcode
        @example([("frame", frame(b"", 9))])  # a ping
        @example([])  # an answer even where the server is too busy to answer after a frame in time
        def run(parts: list[tuple[str, bytes]]) -> None:
            self.attack(parts)

        run()
        self.check_the_good_one()
        self.good.close()


def fuzz(wire: Wire, vla: VLA, running: Callable[..., Running], count: int) -> None:
    server = running(vla, LIMITS, protocol=wire.protocol, mapping=wire.mapping)
    arena = Arena(server, vla, wire)
    files = psutil.Process().num_fds()
    arena.fuzz(count)
    assert server.settles()
    assert psutil.Process().num_fds() <= files + 2
    assert min(arena.outcomes.values()) > 0, arena.outcomes
    print(arena.outcomes)


@pytest.mark.parametrize("wire", WIRES)
def test_hundreds_of_messages(wire: str, vla: VLA, running: Callable[..., Running]) -> None:
    fuzz(WIRES[wire](), vla, running, 200 if wire == "vla-eval" else 100)


@pytest.mark.slow
@pytest.mark.parametrize("wire", WIRES)
def test_ten_thousand_messages(wire: str, vla: VLA, running: Callable[..., Running]) -> None:
    fuzz(WIRES[wire](), vla, running, 10000)
