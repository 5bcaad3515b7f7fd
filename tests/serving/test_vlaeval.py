from __future__ import annotations

import urllib.request
from typing import Any

import msgpack
import numpy as np
import pytest
from clients import ROBOT, Running, ask, dial, pack, payload, seen

from anyvla.config import ConfigError, build
from anyvla.data.episode import Embodiment
from anyvla.policy import VLA
from anyvla.serving.mapping import ClientMapping, Translator
from anyvla.types import Chunk


def test_hello_and_health(server: Running) -> None:
    with dial(server) as socket:
        answer = ask(socket, "hello", {"harness_version": "0.8.0", "protocol_version": 1}, 7)
        assert answer["type"] == "hello"
        assert answer["payload"]["protocol_version"] == 1
        assert answer["payload"]["model_server"] == f"anyvla/{ROBOT.name}"
        assert ask(socket, "hello", {"protocol_version": 2})["type"] == "error"
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/health", timeout=20) as answer:
        assert answer.status == 200


def test_two_clients_get_what_each_would_alone(server: Running, vla: VLA) -> None:
    """One action of the chunk for each observation; a new chunk after `execute` of them."""
    steps = 2 * vla.config.execute + 1
    alone: list[list[np.ndarray]] = []
    for client in (0, 1):
        session, actions = vla.start(f"do {client}", 1), []
        for step in range(steps):
            if step % vla.config.execute == 0:
                (chunk,) = vla.act([seen(100 * client + step)], [session])
            actions.append(chunk.actions[step % vla.config.execute])
        alone.append(actions)
    with dial(server) as one, dial(server) as two:
        for socket in (one, two):
            socket.send(pack("episode_start", {"task": "x"}))
        got: list[list[np.ndarray]] = [[], []]
        for step in range(steps):
            for client, socket in enumerate((one, two)):  # both ask before either is answered
                socket.send(pack("observation", payload(seen(100 * client + step), f"do {client}"), step))
            for client, socket in enumerate((one, two)):
                array = msgpack.unpackb(socket.recv(timeout=30), raw=False)["payload"]["actions"]
                got[client].append(np.frombuffer(array["data"], array["dtype"]))
    for client in (0, 1):
        assert np.allclose(got[client], alone[client], atol=1e-5)


def test_an_episode_begins_anew(server: Running) -> None:
    with dial(server) as socket:
        first = ask(socket, "observation", payload(seen(1)))["payload"]
        socket.send(pack("episode_end", {"success": False}))
        socket.send(pack("episode_start", {}))
        again = ask(socket, "observation", payload(seen(1)))["payload"]
        assert np.allclose(first, again, atol=1e-6)  # no action is left of the chunk before


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


def test_an_action_that_is_not_finite_is_not_sent(server: Running, vla: VLA, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [Chunk(np.full((vla.config.chunk, ROBOT.action.size), np.nan, np.float32))]
    monkeypatch.setattr(vla, "act", lambda observations, sessions: broken)
    with dial(server) as socket:
        answer = ask(socket, "observation", payload(seen(1)))
        assert answer["type"] == "error"
        assert "not finite; it is not sent" in answer["payload"]["error"]


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


def test_a_mapping_that_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="the mapping names the camera 'top'; the policy has"):
        Translator(ClientMapping(cameras={"top": "x"}), ROBOT)


def test_the_gripper_is_converted() -> None:
    gripper = {"name": "gripper", "size": 1, "kind": "gripper", "low": -1, "high": 1, "open": -1}
    space = {"groups": [{"name": "position", "size": 3}, gripper]}
    robot = build(
        Embodiment, {"name": "r", "cameras": ["c"], "control_hz": 5, "proprio": {"groups": []}, "action": space}
    )
    to = Translator(ClientMapping(gripper=(1.0, 0.0)), robot)  # 1 open, 0 closed
    assert to.action(np.array([1, 2, 3, -1], np.float32)).tolist() == [1, 2, 3, 1]
    assert to.action(np.array([1, 2, 3, 1], np.float32)).tolist() == [1, 2, 3, 0]
    assert to.action(np.array([1, 2, 3, 0], np.float32))[3] == 0.5
    lacking = build(
        Embodiment, {"name": "r", "cameras": ["c"], "control_hz": 5, "proprio": {"groups": []},
                     "action": {"groups": [{**gripper, "open": None}]}}
    )  # fmt: skip
    with pytest.raises(ConfigError, match="the mapping converts a gripper"):
        Translator(ClientMapping(gripper=(1.0, 0.0)), lacking)
