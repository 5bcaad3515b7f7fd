from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from clients import ROBOT, Running, ask, dial, pack, payload, seen

from anyvla import __version__
from anyvla.policy import VLA
from anyvla.serving.limits import Limits


def test_hello_and_health(server: Running) -> None:
    with dial(server) as socket:
        before = time.time()
        answer = ask(socket, "hello", {"harness_version": "0.8.0", "protocol_version": 1}, 7)
        assert answer["type"] == "hello"
        assert before <= answer["timestamp"] <= time.time()  # seconds since 1970, as vla-eval's own messages
        assert answer["payload"] == {
            "harness_version": f"anyvla {__version__}",
            "protocol_version": 1,
            "model_server": f"anyvla/{ROBOT.name}",
            "capabilities": {"chunk": 4, "execute": 2, "cameras": ["corner", "wrist"]},
        }
        for version in (0, 2, "1", None):
            assert ask(socket, "hello", {"protocol_version": version})["type"] == "error"
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/health", timeout=20) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": {}}, "has no image 'their_corner', it has none;"),
        ({"states": None}, "has no 'states', it has images, task_description"),
        ({"states": np.zeros(5)}, "'states' has 5 numbers"),
        ({"states": np.full(ROBOT.proprio.size, np.nan)}, "finite ones are needed"),
        ({"task_description": ""}, "no task_description: it must say what to do"),
    ],
)
def test_bad_observations_are_answered_and_the_server_lives(
    server: Running, change: dict[str, Any], message: str
) -> None:
    with dial(server) as socket:
        sent = {k: v for k, v in {**payload(seen(1)), **change}.items() if v is not None}
        answer = ask(socket, "observation", sent, 3)
        assert answer["type"] == "error"
        assert message in answer["payload"]["error"]
        assert ask(socket, "observation", payload(seen(1)), 4)["type"] == "action"


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ("text", "this one is text"),
        (b"\xc1", "not a msgpack message"),
        (msgpack.packb([1]), "a message is a map, this is a list"),
        (msgpack.packb({"type": "hello"}), "a message has type, payload"),
        (pack("dance", {}), "there is no message of type 'dance'"),
    ],
    ids=["text", "no msgpack", "a list", "no payload", "unknown type"],
)
def test_bad_frames(server: Running, frame: bytes | str, message: str) -> None:
    with dial(server) as socket:
        socket.send(frame)
        answer = msgpack.unpackb(socket.recv(timeout=30), raw=False)
        assert answer["type"] == "error"
        assert message in answer["payload"]["error"]


def test_requests_that_come_together_are_answered_together(server: Running) -> None:
    sockets = [dial(server) for _ in range(4)]
    for _ in range(3):
        for socket in sockets:
            socket.send(pack("episode_start", {}))
            socket.send(pack("observation", payload(seen(1))))
        for socket in sockets:
            socket.recv(timeout=30)
    for socket in sockets:
        socket.close()
    assert max(server.protocol.batcher.sizes) > 1


def test_the_limit_of_waiting_requests_is_used(vla: VLA, running: Callable[..., Running]) -> None:
    """One request waits; the others are answered at once that the server is busy."""
    sockets = []
    server = running(vla, Limits(pending_requests=1))
    server.protocol.batcher._wait_s = 0.2
    for number in range(3):
        sockets.append(dial(server))
        sockets[-1].send(pack("observation", payload(seen(number))))
    kinds = [msgpack.unpackb(socket.recv(timeout=30))["type"] for socket in sockets]
    for socket in sockets:
        socket.close()
    assert sorted(kinds) == ["action", "error", "error"]
