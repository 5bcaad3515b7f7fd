"""Clients of OpenTau get chunks that begin with what their robot executes already, and clear errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("grpc")

import grpc

from anyvla.config import build
from anyvla.policy import VLA
from anyvla.robot.shared_layout import Robot
from anyvla.robot.space import ActionSpace, Group
from anyvla.serving.limits import ServerLimits
from anyvla.serving.mapping import ClientMapping
from anyvla.serving.protocols.opentau import OpenTauProtocol
from anyvla.serving.protocols.opentau_schema import robot_inference_pb2 as schema
from anyvla.serving.protocols.protobuf_fields import check_fields
from tests import small
from tests.serving.certificate import make_certificate
from tests.serving.clients import Running, seen
from tests.serving.protocols.opentau_client import PLAIN, SERVICE, Client, fails, picture, read, request

HELD = np.array([[1.5, -0.5, 0.25, 1.0], [-1.25, 0.75, 1.0, -1.0]], np.float32)


@pytest.fixture(scope="module")
def policy() -> VLA:
    """Return a policy with a history and noise, so that a mix-up of sessions shows."""
    return small.awake(small.policy({"name": "policy_head", "window": 3}, small.FUSERS[3], decoder="flow"))


@pytest.fixture
def serve(policy: VLA) -> Iterator[Callable[..., Running]]:
    servers: list[Running] = []

    def start(vla: VLA = policy, mapping: ClientMapping = PLAIN, **options: Any) -> Running:
        servers.append(Running(vla, protocol=OpenTauProtocol, mapping=mapping, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def server(serve: Callable[..., Running]) -> Running:
    return serve()


@pytest.fixture
def client(server: Running) -> Iterator[Client]:
    with Client(server) as client:
        yield client


def alone(policy: VLA, seeds: list[int], committed: Any = None, instruction: str = "open the drawer") -> np.ndarray:
    """Return the chunk of the last step. `committed`: at that step."""
    session = policy.start(instruction)
    for seed in seeds[:-1]:
        policy.act([seen(seed)], [session])
    return policy.act([seen(seeds[-1])], [session], [committed])[0].actions


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_chunks_are_those_of_the_policy_alone(client: Client, policy: VLA, encoding: str) -> None:
    for count in (1, 2, 3):
        actions = client.chunk(count, encoding=encoding)
        np.testing.assert_allclose(actions, alone(policy, list(range(1, count + 1))), atol=1e-5)


def test_a_reply_has_the_id_of_its_request_and_no_uncertainty(client: Client) -> None:
    begin = time.time_ns()
    reply = client.get(request(seen(1), request_id="mine", timestamp_ns=5))
    assert reply.request_id == "mine"
    assert begin <= reply.timestamp_ns <= time.time_ns()
    assert 0 < reply.inference_time_ms < 20000
    assert not reply.HasField("accel")


def test_a_chunk_begins_with_the_committed_actions_and_continues_them(client: Client, policy: VLA) -> None:
    client.chunk(1)
    actions = client.chunk(2, prefix=np.concatenate([HELD, HELD]), delay=2)
    np.testing.assert_allclose(actions[:2], HELD, atol=1e-5)
    np.testing.assert_allclose(actions, alone(policy, [1, 2], HELD), atol=1e-5)
    assert np.abs(actions[2:] - alone(policy, [1, 2])[2:]).max() > 1e-2
    np.testing.assert_allclose(client.chunk(3), alone(policy, [1, 2, 3]), atol=1e-5)  # as the history has no actions


def test_committed_actions_have_the_clients_convention(serve: Callable[..., Running], policy: VLA) -> None:
    """The gripper of the client is 1 for open and 0 for closed, the robot's 1 and -1."""
    robot = small.embodiment()
    grip = build(Group, {"name": "gripper", "size": 1, "kind": "gripper", "low": -1, "high": 1, "open": 1})
    open_robot = replace(robot, action=ActionSpace(groups=(robot.action.groups[0], grip)))
    vla = small.awake(VLA(small.model(decoder="flow"), [Robot(open_robot, small.statistics())]).eval())
    mapping = replace(PLAIN, gripper=(1.0, 0.0))
    theirs = HELD.copy()
    theirs[:, 3] = [0.75, 0.0]
    own = HELD.copy()
    own[:, 3] = [0.5, -1.0]
    with Client(serve(vla, mapping, robot=open_robot)) as client:
        actions = client.chunk(1, prefix=theirs, delay=2)
    np.testing.assert_allclose(actions[:2], theirs, atol=1e-5)
    expected = alone(vla, [1], own)
    np.testing.assert_allclose(actions[2:, :3], expected[2:, :3], atol=1e-5)
    np.testing.assert_allclose(actions[2:, 3], (expected[2:, 3] + 1) / 2, atol=1e-5)


def test_without_a_prefix_or_a_delay_nothing_is_committed(client: Client, policy: VLA) -> None:
    for keys in ({"prefix": HELD}, {"delay": 2}, {}):
        fresh = client.chunk(4, prompt=f"{keys.keys()}", **keys)
        np.testing.assert_allclose(fresh, alone(policy, [4], None, f"{keys.keys()}"), atol=1e-5)


@pytest.mark.parametrize(
    ("prefix", "delay", "message"),
    [
        (HELD, 3, "delay is 3, but prefix_action has 2 actions"),
        (HELD, -1, "delay is -1"),
        (HELD[:, :3], 1, "prefix_action 0 has 3 numbers; 4 are needed"),
        (HELD.T, 2, "prefix_action 0 has 2 numbers; 4 are needed"),
        (np.tile(HELD, (3, 1)), 5, r"have the shape (5, 4); (K, 4) is needed, with at most the 4 actions of a chunk"),
        (HELD * np.nan, 2, "committed actions of robot 'small' are not finite: group 'position', dim 0"),
        (HELD * 1000, 1, "a committed action of robot 'small' is far outside of the training data"),
    ],
)
def test_wrong_committed_actions_are_refused(
    client: Client, policy: VLA, prefix: np.ndarray, delay: int, message: str
) -> None:
    client.chunk(1)
    code, text = fails(lambda: client.chunk(2, prefix=prefix, delay=delay))
    assert code == "INVALID_ARGUMENT"
    assert message in text
    np.testing.assert_allclose(client.chunk(2), alone(policy, [1, 2]), atol=1e-5)  # the session is unchanged


def test_actions_of_another_size_after_the_delay_are_refused_too(client: Client) -> None:
    message = request(seen(1), prefix=HELD, delay=1)
    del message.prefix_action[1].values[-1]
    assert fails(lambda: client.get(message))[1] == "prefix_action 1 has 3 numbers; 4 are needed"


def test_a_stream_has_a_session_of_its_own(client: Client, policy: VLA) -> None:
    client.chunk(9)
    for _ in range(2):
        replies = list(client.stream(iter([request(seen(seed), request_id=str(seed)) for seed in (1, 2, 3)])))
        assert [reply.request_id for reply in replies] == ["1", "2", "3"]
        for count, reply in enumerate(replies, 1):
            np.testing.assert_allclose(read(reply), alone(policy, list(range(1, count + 1))), atol=1e-5)


def test_an_error_ends_its_stream_alone(client: Client) -> None:
    replies = client.stream(iter([request(seen(1)), request(seen(2), prompt=" "), request(seen(3))]))
    assert len(read(next(replies))) == 4
    code, text = fails(lambda: next(replies))
    assert code == "INVALID_ARGUMENT"
    assert "must say what to do" in text
    assert len(list(client.stream(iter([request(seen(1))])))) == 1


def test_connections_and_names_have_sessions_of_their_own(server: Running, policy: VLA) -> None:
    with Client(server) as first, Client(server) as second:
        for one in (first, second):
            np.testing.assert_allclose(one.chunk(1), alone(policy, [1]), atol=1e-5)
        first.metadata = (("session-id", "left"),)
        np.testing.assert_allclose(first.chunk(2), alone(policy, [2]), atol=1e-5)
        second.metadata = (("session-id", "left"),)  # the same name, but of another client
        np.testing.assert_allclose(second.chunk(3), alone(policy, [3]), atol=1e-5)
        first.metadata = ()
        np.testing.assert_allclose(first.chunk(2), alone(policy, [1, 2]), atol=1e-5)


def test_a_client_that_gets_the_address_of_an_earlier_one_begins_a_new_rollout(client: Client, policy: VLA) -> None:
    """OpenTau's clients number their requests from 1 on; gRPC does not say that the earlier connection has ended."""
    for seed, number in [(1, 1), (2, 2)]:
        client.chunk(seed, request_id=f"req_{number}", timestamp_ns=number)
    history: list[int] = []
    for seed, number in [(3, 1), (4, 2), (5, 3)]:
        history.append(seed)
        actions = client.chunk(seed, request_id=f"req_{number}", timestamp_ns=10 + number)
    restarted = policy.start("open the drawer", seed=1)
    for seed in history:
        chunk = policy.act([seen(seed)], [restarted])[0]
    np.testing.assert_allclose(actions, chunk.actions, atol=1e-5)


def test_a_call_that_is_repeated_is_in_the_history_once(client: Client, policy: VLA) -> None:
    """OpenTau's client sends a call again, byte by byte, if its time was over just before the answer."""
    client.chunk(1, request_id="req_1", timestamp_ns=1)
    for _ in range(2):
        actions = client.chunk(2, request_id="req_2", timestamp_ns=2)
        np.testing.assert_allclose(actions, alone(policy, [1, 2]), atol=1e-5)
    actions = client.chunk(3, request_id="req_3", timestamp_ns=3)
    np.testing.assert_allclose(actions, alone(policy, [1, 2, 3]), atol=1e-5)


def test_a_request_without_an_id_is_always_the_next_one(client: Client, policy: VLA) -> None:
    client.chunk(1)
    np.testing.assert_allclose(client.chunk(1), alone(policy, [1, 1]), atol=1e-5)


def test_a_new_prompt_begins_a_new_rollout(client: Client, policy: VLA) -> None:
    client.chunk(1)
    actions = client.chunk(2, prompt="close it now, please")
    np.testing.assert_allclose(actions, alone(policy, [2], None, "close it now, please"), atol=1e-5)


def test_health_is_that_of_a_server_that_has_warmed_up(serve: Callable[..., Running]) -> None:
    server = serve(ready=False)
    with Client(server) as client:
        reply = client.health(schema.HealthCheckRequest())
        assert (reply.healthy, reply.status) == (False, "not ready: it warms up")
        server.service.status.set_ready()
        assert client.health(schema.HealthCheckRequest()).healthy


def test_an_empty_prompt_is_a_missing_one(serve: Callable[..., Running], policy: VLA) -> None:
    """Protobuf cannot tell them apart, and `--instruction` is for clients that send none."""
    with Client(serve(mapping=replace(PLAIN, default_instruction="close it"))) as client:
        np.testing.assert_allclose(client.chunk(1, prompt=""), alone(policy, [1], None, "close it"), atol=1e-5)


def test_far_committed_actions_are_executed_if_the_option_says_warn(
    serve: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    vla = small.awake(small.policy(decoder="flow"))
    vla.implausible = "warn"
    with Client(serve(vla)) as client:
        actions = client.chunk(1, prefix=HELD * 1000, delay=1)
    np.testing.assert_allclose(actions[0], HELD[0] * 1000, rtol=1e-5)
    assert "a committed action of robot 'small' is far outside of the training data" in caplog.text


def test_health_says_what_becomes_of_committed_actions(serve: Callable[..., Running], client: Client) -> None:
    reply = client.health(schema.HealthCheckRequest())
    assert (reply.healthy, reply.model_name, reply.device) == (True, "anyvla/small", "cpu")
    assert reply.status == "serving chunks of 4 actions; committed actions are continued by inpainting"
    with Client(serve(small.policy())) as other:
        assert "only put in place of a chunk's first" in other.health(schema.HealthCheckRequest()).status


def test_the_key_is_needed_for_every_call(serve: Callable[..., Running]) -> None:
    server = serve(key="secret")
    wrong = [(), (("x-tuner-api-key", "secre"),), (("authorization", "Bearer no"),), (("authorization", "secret"),)]
    wrong.append((("x-tuner-api-key", "secret"), ("authorization", "Bearer no")))
    for metadata in wrong:
        with Client(server, *metadata) as client:
            for call in (
                lambda: client.health(schema.HealthCheckRequest()),
                lambda: client.chunk(1),
                lambda: next(client.stream(iter([request(seen(1))]))),
            ):
                assert fails(call)[0] == "UNAUTHENTICATED"
    for metadata in ((("x-tuner-api-key", "secret"),), (("authorization", "Bearer secret"),)):
        with Client(server, *metadata) as client:
            assert client.health(schema.HealthCheckRequest()).healthy
            assert client.chunk(1).shape == (4, 4)


def changed(**keys: Any) -> Any:
    message = request(seen(1))
    for key, value in keys.items():
        message.ClearField(key)
        if isinstance(value, list):
            getattr(message, key).extend(value)
        elif isinstance(value, str):
            setattr(message, key, value)
        elif value is not None:
            getattr(message, key).CopyFrom(value)
    return message


PIXELS = seen(1).images["wrist"]


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (b"\xff" * 20, "no protobuf message"),
        (b"\x0b", "no protobuf message of version 3"),
        (b"\x0a\x05ab", "no ObservationRequest"),
        (b"\x0a\x00" * 5000, "more than 4096 fields"),
        (b"\x0a\x00" * 17, "17 images; at most 16"),
        (b"", "'state' has 0 numbers, 3 finite ones are needed"),
        (changed(prompt=None), "must say what to do"),
        (changed(robot_state=None), "'state' has 0 numbers, 3 finite ones are needed"),
        (changed(robot_state=schema.RobotState(state=[1, 2, 3, 4])), "'state' has 4 numbers"),
        (changed(robot_state=schema.RobotState(state=[1, 2, np.inf])), "'state' has 3 numbers, 3 finite"),
        (changed(robot_state=schema.RobotState(state=[0] * 300000)), "robot_state has 300000 numbers; 3 are needed"),
        (changed(images=[picture(PIXELS)]), "no image 'wrist', it has cameras/corner"),
        (changed(images=[schema.CameraImage()] * 2), "images/0 has the encoding ''; jpeg, png and raw"),
        (changed(images=[schema.CameraImage(encoding="png")] * 2), "it is no PNG file"),
        (changed(images=[schema.CameraImage(encoding="raw", image_data=b"123")] * 2), "raw is float32 of a square"),
        (changed(images=[schema.CameraImage(encoding="raw")] * 2), "raw is float32 of a square"),
        (changed(images=[picture(PIXELS / 255, "raw")] * 2), "no whole numbers from 0 to 255"),
        (changed(images=[picture(PIXELS * 2.0, "raw")] * 2), "no whole numbers from 0 to 255"),
        (changed(images=[picture(PIXELS * np.nan, "raw")] * 2), "no whole numbers from 0 to 255"),
        (changed(request_id="x" * 70000), "request_id is longer than 65536"),
    ],
)
def test_messages_that_do_not_fit_are_explained(client: Client, message: Any, text: str) -> None:
    code, got = fails(lambda: client.get(message))
    assert code == "INVALID_ARGUMENT"
    assert text in got
    assert client.chunk(1).shape == (4, 4)


def test_unknown_methods_and_large_messages_are_refused(serve: Callable[..., Running]) -> None:
    server = serve(limits=ServerLimits(message_bytes=10000))
    with Client(server) as client:
        unknown = client.channel.unary_unary(f"{SERVICE}/Kill")
        assert fails(lambda: unknown(b"", timeout=20))[0] == "UNIMPLEMENTED"
        assert fails(lambda: client.get(b"x" * 10001))[0] == "RESOURCE_EXHAUSTED"


def test_fields_are_counted_as_protobuf_writes_them() -> None:
    message = request(seen(1), prefix=HELD, delay=2, request_id="a", timestamp_ns=2**62).SerializeToString()
    check_fields(message, 9)  # two images, a state, a prompt, two actions, a delay, a time, an id
    with pytest.raises(ValueError, match="more than 8 fields"):
        check_fields(message, 8)


def test_stopping_answers_calls_in_progress_and_ends_idle_streams(serve: Callable[..., Running]) -> None:
    vla = small.awake(small.policy(decoder="flow"))
    real, computes, release = vla.act, threading.Event(), threading.Event()

    def act(*args: Any) -> Any:
        computes.set()
        assert release.wait(20)
        return real(*args)

    server = serve(vla)
    done = threading.Event()

    def slow() -> Iterator[Any]:
        yield request(seen(1))
        done.wait(20)

    with Client(server) as client:
        replies = client.stream(slow())
        next(replies)
        vla.act = act  # type: ignore[method-assign]
        answers: list[np.ndarray] = []
        thread = threading.Thread(target=lambda: answers.append(client.chunk(1)))
        thread.start()
        assert computes.wait(20)
        server.stop()
        assert fails(lambda: next(replies)) == ("UNAVAILABLE", "the server stops")
        release.set()
        thread.join(20)
        server.thread.join(20)
        done.set()
    assert answers[0].shape == (4, 4)
    assert server.unanswered == 0


def test_a_client_that_knows_the_certificate_is_answered(
    serve: Callable[..., Running], policy: VLA, tmp_path: Path
) -> None:
    files = make_certificate(tmp_path)
    server = serve(tls=files)
    credentials = grpc.ssl_channel_credentials(files.certificate.read_bytes())
    with grpc.secure_channel(f"localhost:{server.port}", credentials) as channel:
        get = channel.unary_unary(f"{SERVICE}/GetActionChunk")
        data = get(request(seen(1)).SerializeToString(), timeout=20)
    np.testing.assert_allclose(read(schema.ActionChunkResponse.FromString(data)), alone(policy, [1]), atol=1e-5)
    with Client(server, timeout=3) as plain:
        assert fails(lambda: plain.chunk(1))[0] in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
