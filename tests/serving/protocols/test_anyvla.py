"""The client of anyvla-sim against the real server, over connections that are lost at the worst moments.

The policy has a history and samples noise, so that an observation that it sees twice, misses or gets from another
session changes its actions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from anyvla.config import ConfigError, build
from anyvla.policy import VLA
from anyvla.serving.arrays import write_array
from anyvla.serving.limits import ServerLimits
from anyvla.serving.mapping import ClientMapping, Translator
from anyvla.serving.policy_service import PolicyService
from anyvla.serving.protocols.anyvla import AnyvlaProtocol
from anyvla_sim.client import AccessDenied, Client, ClientError, ServerError, Session, SessionLost, Unreachable
from tests import small
from tests.serving.certificate import make_certificate
from tests.serving.clients import ROBOT, Running, dial, seen
from tests.serving.lossy import LossyProxy

OPEN, CLOSE = "open the drawer", "close it"
KEYS = build(ClientMapping, AnyvlaProtocol.keys)


@pytest.fixture(scope="module")
def policy() -> VLA:
    history, fuser = {"name": "policy_head", "window": 3}, {"name": "lstm", "hidden": 32, "layers": 1}
    return small.awake(small.policy(history, fuser, decoder="diffusion", chunk=5, execute=2))


@pytest.fixture
def serving(policy: VLA, running: Callable[..., Running]) -> Callable[..., Running]:
    return lambda **options: running(policy, protocol=AnyvlaProtocol, mapping=KEYS, **options)


def chunks(vla: VLA, seed: int, instruction: str, numbers: Sequence[int]) -> list[np.ndarray]:
    """Return the chunks of a new session for the observations of these numbers."""
    session = vla.start(instruction, seed)
    return [vla.act([seen(number)], [session])[0].actions for number in numbers]


def predict(session: Session, *numbers: int) -> list[np.ndarray]:
    return [session.predict(seen(number)).actions for number in numbers]


def same(got: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> bool:
    return np.allclose(got, expected, atol=1e-5)


def test_the_actions_are_those_of_the_policy_acting_alone(serving: Callable[..., Running], policy: VLA) -> None:
    with Client(serving().url) as client, client.start(OPEN, seed=7) as session:
        got = [session.act(seen(number)) for number in range(5)]
        session.reset()
        again = [session.act(seen(number)) for number in range(5)]
        session.reset(CLOSE, seed=8)
        other = predict(session, 3, 4)
    first, second, third = chunks(policy, 7, OPEN, [0, 2, 4])
    assert same(got, [*first[:2], *second[:2], third[0]])
    assert same(again, got)
    assert same(other, chunks(policy, 8, CLOSE, [3, 4]))


@pytest.mark.parametrize("images", ["png", "raw"])
def test_no_pixel_is_lost(serving: Callable[..., Running], policy: VLA, images: str) -> None:
    with Client(serving().url, images=images) as client:
        got = predict(client.start(OPEN), 0)
    assert np.array_equal(got, chunks(policy, 0, OPEN, [0]))


def test_the_client_learns_the_robot(serving: Callable[..., Running]) -> None:
    with Client(serving(execute=3).url) as client:
        robot = client.robot
    assert (robot.name, dict(robot.cameras)) == (ROBOT.name, {"corner": None, "wrist": None})
    assert (robot.chunk, robot.execute, robot.control_hz) == (5, 3, 10)
    assert [(group.name, group.size) for group in robot.action] == [("position", 3), ("gripper", 1)]
    assert robot.action[1].meaning == {"kind": "gripper", "mode": "absolute", "low": -1, "high": 1}
    assert [(group.name, group.size) for group in robot.proprio] == [("position", 3)]


def test_a_policy_without_proprio_needs_none(running: Callable[..., Running]) -> None:
    vla = small.awake(small.policy(proprio="none"))
    images = seen(0).images
    with Client(running(vla, protocol=AnyvlaProtocol, mapping=KEYS).url) as client:
        assert client.robot.proprio == ()
        got = client.start(OPEN).predict({"images": images}).actions
    assert same([got], [vla.act([seen(0)], [vla.start(OPEN)])[0].actions])


@pytest.fixture
def lossy() -> Iterator[Callable[..., LossyProxy]]:
    made: list[LossyProxy] = []

    def make(server: Running, loses: Callable[[int], bool]) -> LossyProxy:
        made.append(LossyProxy(server.port, loses))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


def test_a_session_outlasts_connections_and_sees_each_observation_once(
    serving: Callable[..., Running], policy: VLA, lossy: Callable[..., LossyProxy]
) -> None:
    """Every other answer gets lost, after the server has executed the request."""
    proxy = lossy(serving(), lambda answers: answers % 4 == 0)  # with those to the handshake and the hello
    with Client(proxy.url) as client:
        session = client.start(OPEN, seed=2)
        got = predict(session, *range(8))
        session.reset(seed=3)
        got += predict(session, *range(3))
    assert same(got, [*chunks(policy, 2, OPEN, range(8)), *chunks(policy, 3, OPEN, range(3))])
    assert proxy.answers > 40


def test_a_slow_answer_is_waited_for_on_the_next_connection(
    running: Callable[..., Running], policy: VLA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy takes longer than the client's patience; the repeated request gets the answer to the first."""
    act, calls = policy.act, []

    def slow(*args: Any, **keys: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            time.sleep(1.5)
        return act(*args, **keys)

    monkeypatch.setattr(policy, "act", slow)
    server = running(policy, protocol=AnyvlaProtocol, mapping=KEYS)
    with Client(server.url, timeout_s=0.6) as client:
        got = predict(client.start(OPEN), 0, 1, 2)
    assert len(calls) == 3
    assert same(got, chunks(policy, 0, OPEN, range(3)))


def test_sessions_of_one_client_and_of_others_are_separate(serving: Callable[..., Running], policy: VLA) -> None:
    server = serving()
    with Client(server.url) as one, Client(server.url) as two:
        sessions = [one.start(OPEN, seed=1), one.start(OPEN, seed=2), two.start(CLOSE, seed=1)]
        assert len({session.name for session in sessions}) == 3
        assert min(len(session.name) for session in sessions) >= 22  # 128 random bits
        got = [[predict(session, 10 * k + step)[0] for k, session in enumerate(sessions)] for step in range(3)]
    for k, (instruction, seed) in enumerate([(OPEN, 1), (OPEN, 2), (CLOSE, 1)]):
        expected = chunks(policy, seed, instruction, [10 * k + step for step in range(3)])
        assert same([each[k] for each in got], expected)


def test_a_session_that_has_ended_or_expired_is_lost(serving: Callable[..., Running]) -> None:
    server = serving(limits=ServerLimits(session_seconds=60))
    now = [0.0]
    server.service._stores[-1]._clock = lambda: now[0]
    with Client(server.url) as client:
        ended, idle = client.start(OPEN), client.start(OPEN)
        ended.end()
        ended.end()  # once more changes nothing
        with pytest.raises(SessionLost, match="does not know this session: it has expired or ended"):
            ended.act(seen(0))
        for now[0] in (50.0, 100.0):
            idle.predict(seen(0))
        now[0] = 160.0
        with pytest.raises(SessionLost, match="expired"):
            idle.predict(seen(1))
        client.start(OPEN).act(seen(0))


def test_there_is_a_limit_of_sessions(serving: Callable[..., Running]) -> None:
    with Client(serving(limits=ServerLimits(sessions=2)).url) as client:
        first = client.start(OPEN)
        client.start(OPEN)
        with pytest.raises(ServerError, match=r"has its 2 sessions \(--limits.sessions\)"):
            client.start(OPEN)
        first.end()
        client.start(OPEN)


def test_a_refused_request_changes_nothing(serving: Callable[..., Running], policy: VLA) -> None:
    with Client(serving().url) as client:
        session = client.start(OPEN, seed=4)
        got = predict(session, 0)
        far = seen(1)
        far.proprio[0] = 1e6
        with pytest.raises(ServerError, match="far outside of the training data") as raised:
            session.predict(far)
        assert raised.value.code == "request"
        with pytest.raises(ServerError, match="instruction"):
            session.reset("  ")
        got += predict(session, 1)
    assert same(got, chunks(policy, 4, OPEN, [0, 1]))


def test_committed_actions_begin_the_chunk_and_are_not_executed_again(
    serving: Callable[..., Running], policy: VLA
) -> None:
    committed = np.full((2, 4), 0.25, np.float32)
    with Client(serving().url) as client:
        session = client.start(OPEN)
        chunk = session.predict(seen(0), committed=committed, delay=2)
        assert np.allclose(chunk.actions[:2], committed, atol=1e-5)
        assert chunk.execute == (2, 4)
        assert session.predict(seen(1), delay=4).execute == (4, 5)  # the chunk has 5 actions
        for faulty in ({"delay": 5}, {"committed": np.zeros((6, 4))}, {"committed": np.zeros((0, 4))}):
            with pytest.raises(ServerError, match=r"'(delay|committed)'"):
                session.predict(seen(2), **faulty)


@pytest.mark.parametrize("shape", [(4, 2), (8,), (2, 2, 2), (1, 2, 4), (4, 3), (0, 4), (6, 4), (4, 0)])
def test_committed_actions_of_another_shape_are_refused(
    serving: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    """A transposed or flat array may have a number of values that fits."""
    monkeypatch.setattr("anyvla_sim.client.client.Session._write_committed", lambda session, array: write_array(array))
    with Client(serving().url) as client:
        session = client.start(OPEN)
        with pytest.raises(ServerError) as raised:
            session.predict(seen(0), committed=np.zeros(shape, np.float32))
        needed = "(K, 4) is needed: 1 to 5 actions, each of position 3, gripper 1"
        assert f"'committed' has the shape {shape}; {needed}" in str(raised.value)
        session.predict(seen(0), committed=np.zeros((5, 4), np.float32))


def test_a_key_is_needed_where_the_server_has_one(serving: Callable[..., Running]) -> None:
    server = serving(key="secret")
    with pytest.raises(AccessDenied):
        Client(server.url)
    with Client(server.url, key="secret") as client:
        client.start(OPEN).act(seen(0))


def test_tls_with_the_authority_of_the_server(serving: Callable[..., Running], tmp_path: Path) -> None:
    files, other = make_certificate(tmp_path), make_certificate(tmp_path, "other")
    server = serving(tls=files)
    url = server.url.replace("ws://127.0.0.1", "wss://localhost")
    with Client(url, ca_file=files.certificate) as client:
        client.start(OPEN).act(seen(0))
    for ca_file in (None, other.certificate):
        with pytest.raises(ClientError, match=r"is not trusted .*; give ca_file"):
            Client(url, ca_file=ca_file)
    with pytest.raises(Unreachable, match="does not answer as a policy server"):
        Client(server.url.replace("wss:", "ws:"), retries=0)


class Plain:
    """A client that writes its messages itself."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket

    def ask(self, message: Any) -> dict[str, Any]:
        self.socket.send(message if isinstance(message, bytes | str) else msgpack.packb(message))
        return msgpack.unpackb(self.socket.recv(timeout=20))  # type: ignore[no-any-return]


HELLO = {"type": "hello", "id": 1, "protocol": 1}


@pytest.mark.parametrize("version", [2, 0, None, "1", True])
def test_another_version_is_refused_with_the_versions_and_the_connection_is_closed(
    serving: Callable[..., Running], version: Any
) -> None:
    with dial(serving()) as socket:
        got = Plain(socket).ask({**HELLO, "protocol": version})
        assert (got["type"], got["id"], got["code"]) == ("error", 1, "version")
        assert got["error"].startswith(f"the client speaks version {version!r} of the protocol, this server (anyvla ")
        assert "version 1: install" in got["error"]
        with pytest.raises(Exception, match="1002"):
            socket.recv(timeout=20)


def test_requests_before_the_hello_are_refused(serving: Callable[..., Running]) -> None:
    with dial(serving()) as socket:
        got = Plain(socket).ask({"type": "start", "id": 9, "instruction": OPEN})
        assert (got["code"], got["id"]) == ("version", 9)


FAULTS: list[tuple[Any, str]] = [
    ("text", "messages are binary msgpack, this one is text"),
    (b"\xc1", "has a type that is not accepted"),
    ([1], "a message is a map, this is a list"),
    ({}, "a message has a type and an id; this one has nothing"),
    ({"type": "start"}, "'id' must be a whole number from 0 on; got None"),
    ({"type": "start", "id": -1}, "'id' must be a whole number from 0 on; got -1"),
    ({"type": "start", "id": True}, "'id' must be"),
    ({"type": "dance", "id": 3}, "no message of type 'dance'; known are hello, start, predict, reset, end"),
    ({"type": "start", "id": 3}, "instruction"),
    ({"type": "start", "id": 3, "instruction": ""}, "instruction"),
    ({"type": "start", "id": 3, "instruction": "x" * 1001}, "1001 characters; at most 1000"),
    ({"type": "start", "id": 3, "instruction": OPEN, "seed": -1}, "seed must be an integer"),
    ({"type": "predict", "id": 3}, "a predict message has the session that start returned; this one has None"),
    ({"type": "predict", "id": 3, "session": "mine"}, "does not know this session"),
    ({"type": "predict", "id": 3, "number": 0}, "'number' must be a whole number from 1 on; got 0"),
    (
        {"type": "predict", "id": 3, "number": 1},
        "a predict message has an 'observation'; this one has session, type, id, number",
    ),
    ({"type": "predict", "id": 3, "number": 1, "observation": {}}, "the observation has no"),
    ({"type": "predict", "id": 3, "number": 1, "observation": {"images": {}}}, "the observation has no 'proprio'"),
    (
        {"type": "predict", "id": 3, "number": 1, "observation": {"images": {}, "proprio": [0, 0, 0]}},
        "the observation has no image 'corner'",
    ),
    ({"type": "reset", "id": 3, "number": 1, "instruction": 4}, "instruction"),
    ({"type": "reset", "id": 3, "number": 1, "seed": "a"}, "seed must be"),
]


def test_faulty_messages_get_errors_that_name_the_fault(serving: Callable[..., Running], policy: VLA) -> None:
    with dial(serving()) as socket:
        client = Plain(socket)
        client.ask(HELLO)
        session = client.ask({"type": "start", "id": 2, "instruction": OPEN})["session"]
        for message, text in FAULTS:
            if isinstance(message, dict) and "number" in message:
                message = {"session": session, **message}
            got = client.ask(message)
            assert got["type"] == "error", message
            assert text in got["error"], message
            assert got["id"] == (3 if isinstance(message, dict) and message.get("id") == 3 else None)


def test_a_failing_policy_is_not_the_clients_fault(
    running: Callable[..., Running], policy: VLA, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = running(policy, protocol=AnyvlaProtocol, mapping=KEYS)
    with Client(server.url) as client:
        session = client.start(OPEN)

        def fail(*args: Any, **keys: Any) -> Any:
            raise RuntimeError("secret path")

        with monkeypatch.context() as patch:
            patch.setattr(policy, "act", fail)
            with pytest.raises(
                ServerError, match=r"the policy failed \(RuntimeError\); see the server's log"
            ) as raised:
                session.act(seen(0))
        assert raised.value.code == "policy"
        assert same(predict(session, 0), chunks(policy, 0, OPEN, [0]))
    caplog.clear()


def test_a_mapping_is_refused(policy: VLA) -> None:
    service = PolicyService(policy, Translator(ClientMapping(proprio="state"), ROBOT))
    with pytest.raises(ConfigError, match="--protocol anyvla takes no --mapping"):
        AnyvlaProtocol(service)
    service.close()
