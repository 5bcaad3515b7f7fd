from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest

from anyvla import __version__
from anyvla.policy import VLA
from anyvla.serving.limits import ServerLimits
from tests.serving.clients import ROBOT, Running, answer, ask, dial, error, pack, payload, seen


def test_hello_and_health(server: Running) -> None:
    with dial(server) as socket:
        before = time.time()
        answer = ask(socket, "hello", {"harness_version": "0.8.0", "protocol_version": 1}, 7)
        assert answer["type"] == "hello"
        assert before <= answer["timestamp"] <= time.time()  # seconds since 1970, as in messages of vla-eval
        assert answer["payload"] == {
            "harness_version": f"anyvla {__version__}",
            "protocol_version": 1,
            "model_server": f"anyvla/{ROBOT.name}",
            "capabilities": {
                "policy": server.service.vla.identify(),
                "robot": ROBOT.name,
                "chunk": 4,
                "execute": 2,
                "cameras": ["corner", "wrist"],
            },
        }
        for version, advice in ((0, "use a newer vla-eval"), (2, "use a newer anyvla"), ("1", ""), (None, "")):
            text = error(socket, "hello", {"protocol_version": version})
            assert f"speaks protocol {version!r} of vla-eval, this server (anyvla {__version__}) protocol 1" in text
            assert advice in text
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/health", timeout=20) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"images": {}},
            "has no image 'their_corner', it has states, task_description: the policy reads its camera 'corner'",
        ),
        ({"states": None}, "has no 'states', it has images/their_corner, images/their_wrist, task_description: "),
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
    assert max(server.service.batcher.sizes) > 1


def test_the_limit_of_waiting_requests_is_used(
    vla: VLA, running: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the policy computes for one client, one other may wait; the third is refused at once."""
    begun, release, act = threading.Event(), threading.Event(), vla.act

    def slow(observations: Any, sessions: Any) -> Any:
        begun.set()
        assert release.wait(20)
        return act(observations, sessions)

    server = running(vla, ServerLimits(pending_requests=1))
    with dial(server) as first, dial(server) as second, dial(server) as third:
        for client in (first, second, third):  # a session and its first chunk: the next observation needs another
            for _ in range(vla.config.execute):
                assert ask(client, "observation", payload(seen(0)))["type"] == "action"
        monkeypatch.setattr(vla, "act", slow)
        first.send(pack("observation", payload(seen(1))))
        assert begun.wait(20)
        second.send(pack("observation", payload(seen(2))))
        end = time.monotonic() + 20
        while not server.service.batcher._waiting and time.monotonic() < end:
            time.sleep(0.01)
        assert "the server is busy: 1 requests wait" in error(third, "observation", payload(seen(3)))
        release.set()
        assert [answer(client)["type"] for client in (first, second)] == ["action"] * 2
