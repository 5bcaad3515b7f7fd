from __future__ import annotations

import asyncio
import io
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
import small
from PIL import Image

pytest.importorskip("websockets")

from websockets.sync.client import ClientConnection, connect

from anyvla.config import ConfigError, build
from anyvla.data.episode import Embodiment
from anyvla.policy import VLA
from anyvla.serving.mapping import ClientMapping, Translator
from anyvla.serving.vlaeval import Server
from anyvla.types import Chunk, Observation

ROBOT = small.embodiment()
MAPPING = ClientMapping(cameras={camera: f"their_{camera}" for camera in ROBOT.cameras})


def pack(kind: str, payload: dict[str, Any], seq: int = 0) -> bytes:
    """A frame as vla-eval's client writes it: images as PNG, arrays as bytes."""

    def encode(value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3:
            file = io.BytesIO()
            Image.fromarray(value).save(file, "PNG")
            return {"__image__": True, "format": "png", "data": file.getvalue(), "shape": list(value.shape)}
        return {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}

    message = {"type": kind, "payload": payload, "seq": seq, "timestamp": time.time()}
    return msgpack.packb(message, default=encode, use_bin_type=True)  # type: ignore[no-any-return]


def ask(socket: ClientConnection, kind: str, payload: dict[str, Any], seq: int = 0) -> dict[str, Any]:
    socket.send(pack(kind, payload, seq))
    answer = msgpack.unpackb(socket.recv(timeout=30), raw=False)
    assert answer["seq"] == seq
    if answer["type"] == "action":
        array = answer["payload"]["actions"]
        answer["payload"] = np.frombuffer(array["data"], array["dtype"]).reshape(array["shape"])
    return answer  # type: ignore[no-any-return]


def seen(seed: int) -> Observation:
    rng = np.random.default_rng(seed)
    images = {c: rng.integers(0, 255, (32, 32, 3), np.uint8) for c in ROBOT.cameras}
    return Observation(images, rng.normal(size=ROBOT.proprio.size).astype(np.float32))


def payload(observation: Observation, said: str = "open the drawer") -> dict[str, Any]:
    images = {f"their_{c}": image for c, image in observation.images.items()}
    return {"images": images, "states": observation.proprio.astype(np.float64), "task_description": said}


@pytest.fixture(scope="module")
def vla() -> VLA:
    return small.policy()


@pytest.fixture
def server(vla: VLA) -> Iterator[tuple[Server, str]]:
    made = Server(vla, Translator(MAPPING, ROBOT))
    loop, ports = asyncio.new_event_loop(), []
    listening = threading.Event()
    task: list[asyncio.Task[None]] = []

    async def run() -> None:
        task.append(asyncio.create_task(made.serve("127.0.0.1", 0, lambda p: (ports.append(p), listening.set())[0])))
        try:
            await task[0]
        except asyncio.CancelledError:
            return

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    assert listening.wait(20)
    yield made, f"127.0.0.1:{ports[0]}"
    loop.call_soon_threadsafe(task[0].cancel)
    thread.join(20)
    made.batcher.close()


def test_hello_and_health(server: tuple[Server, str]) -> None:
    with connect(f"ws://{server[1]}") as socket:
        answer = ask(socket, "hello", {"harness_version": "0.8.0", "protocol_version": 1}, 7)
        assert answer["type"] == "hello"
        assert answer["payload"]["protocol_version"] == 1
        assert answer["payload"]["model_server"] == f"anyvla/{ROBOT.name}"
        assert ask(socket, "hello", {"protocol_version": 2})["type"] == "error"
    with urllib.request.urlopen(f"http://{server[1]}/health", timeout=20) as answer:
        assert answer.status == 200


def test_two_clients_get_what_each_would_alone(server: tuple[Server, str], vla: VLA) -> None:
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
    with connect(f"ws://{server[1]}") as one, connect(f"ws://{server[1]}") as two:
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


def test_an_episode_begins_anew(server: tuple[Server, str]) -> None:
    with connect(f"ws://{server[1]}") as socket:
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
    server: tuple[Server, str], change: dict[str, Any], message: str
) -> None:
    with connect(f"ws://{server[1]}") as socket:
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
        (pack("hello", {"a": {"__ndarray__": True, "shape": [1]}}), "without its 'dtype'"),
        (msgpack.packb([1]), "a message is a map, this is a list"),
        (msgpack.packb({"type": "hello"}), "a message has type, payload"),
        (pack("dance", {}), "there is no message of type 'dance'"),
        (pack("hello", {"a": {"__ndarray__": True, "dtype": "|O", "shape": [1], "data": b"x"}}), "dtype object"),
        (pack("hello", {"a": {"__image__": True, "format": "png", "data": b"x", "shape": [1]}}), "cannot be decoded"),
    ],
    ids=["text", "no msgpack", "no dtype", "a list", "no payload", "unknown type", "objects", "no picture"],
)
def test_bad_frames(server: tuple[Server, str], frame: bytes | str, message: str) -> None:
    with connect(f"ws://{server[1]}") as socket:
        socket.send(frame)
        answer = msgpack.unpackb(socket.recv(timeout=30), raw=False)
        assert answer["type"] == "error"
        assert message in answer["payload"]["error"]


def test_an_action_that_is_not_finite_is_not_sent(
    server: tuple[Server, str], vla: VLA, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [Chunk(np.full((vla.config.chunk, ROBOT.action.size), np.nan, np.float32))]
    monkeypatch.setattr(vla, "act", lambda observations, sessions: broken)
    with connect(f"ws://{server[1]}") as socket:
        answer = ask(socket, "observation", payload(seen(1)))
        assert answer["type"] == "error"
        assert "not finite; it is not sent" in answer["payload"]["error"]


def test_requests_that_come_together_are_answered_together(server: tuple[Server, str]) -> None:
    sockets = [connect(f"ws://{server[1]}") for _ in range(4)]
    for _ in range(3):
        for socket in sockets:
            socket.send(pack("episode_start", {}))
            socket.send(pack("observation", payload(seen(1))))
        for socket in sockets:
            socket.recv(timeout=30)
    for socket in sockets:
        socket.close()
    assert max(server[0].batcher.sizes) > 1


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
