"""The protocol of starVLA: a client written from the schema gets the chunks of the policy that acts in process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from anyvla.policy import VLA
from anyvla.serving.protocols.starvla import StarVLAProtocol
from tests import small
from tests.serving.clients import Running, dial, seen
from tests.serving.protocols.openpi_wire import STARVLA, ask, example, pack, unpack


@pytest.fixture
def server(vla: VLA, running: Callable[..., Running]) -> Running:
    return running(vla, protocol=StarVLAProtocol, mapping=STARVLA)


def opened(server: Running) -> ClientConnection:
    client = dial(server)
    unpack(client.recv(timeout=30))
    return client


def chunks(vla: VLA, *steps: int, instruction: str = "open the drawer") -> list[np.ndarray]:
    session = vla.start(instruction, 0)
    return [vla.act([seen(step)], [session])[0].actions for step in steps]


def test_the_metadata_says_how_many_actions_to_execute(server: Running) -> None:
    with dial(server) as client:
        metadata = unpack(client.recv(timeout=30))
    assert metadata["action_chunk_size"] == 2  # the actions that its clients execute of a chunk of 4
    assert metadata["available_unnorm_keys"] == ["small"]
    assert metadata["default_unnorm_key"] == "small"
    assert (metadata["action_keys"], metadata["state_keys"]) == (["position", "gripper"], ["position"])


def test_the_size_of_the_images_is_that_of_training(running: Callable[..., Running]) -> None:
    """starVLA's clients warn if they send another size."""
    vla = small.policy(view={"size": [32, 24]})
    with dial(running(vla, protocol=StarVLAProtocol, mapping=STARVLA)) as client:
        assert unpack(client.recv(timeout=30))["training_obs_image_size"] == [32, 24]


@pytest.mark.parametrize("kind", ["infer", "predict_action", None])
def test_an_example_is_answered_by_its_chunk(server: Running, vla: VLA, kind: str | None) -> None:
    """The keys of sampling, which are those of starVLA's models, change nothing."""
    payload = {"examples": [example(seen(1))], "unnorm_key": None, "do_sample": False, "use_ddim": True}
    sent = payload if kind is None else {"type": kind, "request_id": "r1", "payload": payload}
    with opened(server) as client:
        answer = ask(client, sent)
    actions = answer.pop("data")["actions"]
    request_id = "default" if kind is None else "r1"
    assert answer == {"status": "ok", "ok": True, "type": "inference_result", "request_id": request_id}
    assert (actions.shape, actions.dtype) == ((1, 4, 4), np.float32)
    np.testing.assert_allclose(actions[0], chunks(vla, 1)[0], atol=1e-5)


def test_the_examples_of_a_connection_are_sessions_of_their_own(running: Callable[..., Running]) -> None:
    vla = small.awake(small.policy({"name": "policy_head", "window": 3}, small.FUSERS[3]))
    server = running(vla, protocol=StarVLAProtocol, mapping=STARVLA)
    first, second = chunks(vla, 1, 2, 3), chunks(vla, 11, 12, 13, instruction="close it")
    with opened(server) as client:
        for step in range(3):
            both = [example(seen(1 + step)), example(seen(11 + step), "close it")]
            actions = ask(client, {"examples": both})["data"]["actions"]
            np.testing.assert_allclose(actions[0], first[step], atol=1e-5)
            np.testing.assert_allclose(actions[1], second[step], atol=1e-5)
        again = ask(client, {"examples": [example(seen(1), reset=True), example(seen(11), "close it", reset=True)]})
        np.testing.assert_allclose(again["data"]["actions"], [first[0], second[0]], atol=1e-5)


def test_if_one_example_is_refused_none_advances(running: Callable[..., Running]) -> None:
    vla = small.awake(small.policy({"name": "policy_head", "window": 3}, small.FUSERS[3]))
    server = running(vla, protocol=StarVLAProtocol, mapping=STARVLA)
    with opened(server) as client:
        ask(client, {"examples": [example(seen(1)), example(seen(1))]})
        far = example(seen(2)) | {"state": np.full(3, 500.0)}
        refused = ask(client, {"examples": [example(seen(5)), far]})
        assert "robot 1 of the batch: " in refused["error"]["message"]
        actions = ask(client, {"examples": [example(seen(2)), example(seen(2))]})["data"]["actions"]
        for chunk in actions:
            np.testing.assert_allclose(chunk, chunks(vla, 1, 2)[1], atol=1e-5)


def test_ping_and_unknown_types(server: Running) -> None:
    with opened(server) as client:
        pong = {"status": "ok", "ok": True, "type": "ping"}
        for request_id in ("x" * 40, 7):
            assert ask(client, {"type": "ping", "request_id": request_id}) == pong | {"request_id": request_id}
        for request_id in (None, [1], b"x", True):
            assert ask(client, {"type": "ping", "request_id": request_id})["request_id"] == "default"
        answer = ask(client, {"type": "reset", "request_id": "r"})
        assert answer == {
            "status": "error", "ok": False, "type": "unknown", "request_id": "r",
            "error": {"message": "there is no message of type 'reset'"},
        }  # fmt: skip


BAD: list[tuple[dict[str, Any], str]] = [
    ({"payload": 5}, "the payload must be a map with examples, this is 5"),
    ({"payload": {}}, "the message has no examples, a list of observations; it has nothing"),
    ({"payload": {"observation": 1}}, "it has observation"),
    ({"payload": {"examples": []}}, "the message has no examples"),
    ({"payload": {"examples": [5]}}, "an example is a map of image, lang and state, this is 5"),
    ({"examples": [{}] * 33}, "has 33 examples; at most 32 are accepted (--limits.batch_rows)"),
    ({"examples": [{"lang": "go"}]}, "no 'state', it has lang: "),
    ({"examples": [{"lang": "go", "state": [1, 2, 3]}]}, "has no image 'image/0', it has lang, state: "),
    ({"examples": [example(seen(1)), example(seen(1), "")]}, "example 1: the observation has no lang: "),
    ({"examples": [example(seen(1)) | {"image": [np.zeros((32, 32, 3), np.uint8)]}]}, "has no image 'image/1', it has"),
    ({"examples": [example(seen(1)) | {"state": np.full(3, 500.0)}]}, "far outside of the training data"),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "message"), BAD)
def test_an_error_is_a_frame_and_the_connection_stays(server: Running, sent: dict[str, Any], message: str) -> None:
    with opened(server) as client:
        answer = ask(client, {"request_id": 3, **sent})
        assert message in answer.pop("error")["message"]
        assert answer == {"status": "error", "ok": False, "type": "inference_result", "request_id": 3}
        assert ask(client, {"examples": [example(seen(1))]})["ok"]


def test_one_image_needs_no_list(running: Callable[..., Running], vla: VLA) -> None:
    mapping = STARVLA.__class__(**{**StarVLAProtocol.keys, "cameras": {"corner": "image/0", "wrist": "image/0"}})
    observation = seen(1)
    corner = observation.images["corner"]
    server = running(vla, protocol=StarVLAProtocol, mapping=mapping)
    with opened(server) as client:
        sent = example(observation)
        one = ask(client, {"examples": [sent | {"image": corner}]})["data"]["actions"]
        listed = ask(client, {"examples": [sent | {"image": [corner], "reset": True}]})["data"]["actions"]
        np.testing.assert_allclose(one, listed, atol=1e-5)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ("text", "messages are binary msgpack, this one is text"),
        (b"\xc1", "not a msgpack message"),
        (pack([1, 2]), "a message is a map, this is a list"),
        (pack({"type": 5}), "the type of a message is a text, this is 5"),
    ],
)
def test_a_frame_that_is_no_message_is_answered_with_text(server: Running, frame: Any, message: str) -> None:
    with opened(server) as client:
        client.send(frame)
        assert message in client.recv(timeout=30)
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=30)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1011
