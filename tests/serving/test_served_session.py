"""An error is sent to the request that caused it, and leaves the episode unchanged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from anyvla.policy import VLA
from anyvla.serving.batching import Batcher, BusyError
from anyvla.types import Chunk, Observation
from tests import small
from tests.serving.clients import ROBOT, Running, answer, ask, dial, error, pack, payload, seen

STATEFUL = [
    {"history": {"name": "policy_head", "window": 3}, "fuser": {"name": "lstm", "hidden": 32, "layers": 1}},
    {"history": {"name": "interleaved", "window": 3}},
    {"history": "recurrent", "fuser": small.FUSERS[4]},
    {"history": "none", "decoder": "diffusion"},
]
NAMES = ["policy_head", "interleaved", "recurrent", "diffusion"]


@pytest.fixture(params=STATEFUL, ids=NAMES)
def stateful(request: pytest.FixtureRequest) -> VLA:
    return small.awake(small.policy(**request.param))


def alone(vla: VLA, observations: list[Observation], instruction: str = "open the drawer") -> list[np.ndarray]:
    """Return the actions of an episode in which every observation is sent once, without errors."""
    session, actions = vla.start(instruction, 0), []
    for step, observation in enumerate(observations):
        if step % vla.config.execute == 0:
            (chunk,) = vla.act([observation], [session])
        actions.append(chunk.actions[step % vla.config.execute])
    return actions


BAD: list[dict[str, Any]] = [
    {"states": np.full(3, np.nan)},
    {"states": np.full(3, 1e300)},
    {"states": {"a": 1}},
    {"images": {}},
    {"images": {"their_corner": 5, "their_wrist": 5}},
    {"task_description": "  "},
    {"task_description": 5},
    {"task_description": "close it", "states": np.full(3, np.nan)},  # a new instruction must not take effect either
]


def test_errors_in_between_change_nothing(stateful: VLA, running: Callable[..., Running]) -> None:
    observations = [seen(i) for i in range(5)]
    expected = alone(stateful, observations)
    got = []
    with dial(running(stateful)) as client:
        for step, observation in enumerate(observations):
            for change in BAD:
                error(client, "observation", payload(observation) | change)
            damaged = payload(observation)
            damaged["images"] = damaged["images"] | {"their_wrist": np.zeros((8, 8, 3), np.uint8)}
            if step % stateful.config.execute == 0:  # images of two sizes: refused by the policy itself
                assert "one size" in error(client, "observation", damaged)
            got.append(ask(client, "observation", payload(observation))["payload"])
    assert np.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_policy_that_fails_changes_nothing(
    stateful: VLA, running: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The policy fails once in each step, either at the start or just before the end."""
    observations = [seen(i) for i in range(0, 6)]
    expected = alone(stateful, observations)
    part, name = (stateful.backbone, "forward") if when == "before" else (stateful.decoder, "sample")
    real, armed = getattr(part, name), []

    def fails(*args: Any, **options: Any) -> Any:
        result = real(*args, **options)
        if armed:
            armed.clear()
            raise ValueError("it failed")
        return result

    monkeypatch.setattr(part, name, fails)
    got = []
    with dial(running(stateful)) as client:
        for step, observation in enumerate(observations):
            if step % stateful.config.execute == 0:
                armed.append(True)
                assert "it failed" in error(client, "observation", payload(observation))
            got.append(ask(client, "observation", payload(observation))["payload"])
    assert np.allclose(got, expected, atol=1e-5)


def test_after_a_rejected_chunk_none_of_it_is_sent(server: Running, vla: VLA, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second action of the chunk is invalid, so the first one is not sent either."""
    half = np.ones((vla.config.chunk, ROBOT.action.size), np.float32)
    half[1] = np.nan
    with dial(server) as client:
        with monkeypatch.context() as patch:
            patch.setattr(vla, "act", lambda observations, sessions: [Chunk(half)])
            assert "not finite; it is not sent" in error(client, "observation", payload(seen(1)))
        got = ask(client, "observation", payload(seen(1)))
    assert np.allclose(got["payload"], alone(vla, [seen(1)])[0], atol=1e-5)


def test_a_chunk_that_the_client_cannot_take_changes_nothing(
    stateful: VLA, running: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    observations = [seen(i) for i in range(6)]
    expected, got = alone(stateful, observations), []
    server = running(stateful)
    with dial(server) as client:
        for step, observation in enumerate(observations):
            if step % stateful.config.execute == 0:
                with monkeypatch.context() as patch:
                    patch.setattr(server.service.translator, "their_actions", refuse)
                    assert "not finite" in error(client, "observation", payload(observation))
            got.append(ask(client, "observation", payload(observation))["payload"])
    assert np.allclose(got, expected, atol=1e-5)


def refuse(action: np.ndarray) -> np.ndarray:
    raise ValueError("not finite")


def test_another_encoding_of_the_instruction_continues_the_session(server: Running, vla: VLA) -> None:
    """Another Unicode normalization and surrounding blanks do not make a new instruction."""
    with dial(server) as client:
        first = ask(client, "observation", payload(seen(1), "caf\u00e9"))["payload"]
        second = ask(client, "observation", payload(seen(2), " cafe\u0301\n"))["payload"]
    assert np.allclose([first, second], alone(vla, [seen(1), seen(2)], "caf\u00e9"), atol=1e-5)


def test_an_error_is_given_to_its_client_only(server: Running, vla: VLA) -> None:
    """Eight clients ask at once. The images of two of them have different sizes, which the policy refuses."""
    bad = seen(0)
    bad = Observation(bad.images | {"wrist": np.zeros((8, 8, 3), np.uint8)}, bad.proprio)
    expected = [alone(vla, [seen(number)])[0] for number in range(8)]
    clients = [dial(server) for _ in range(8)]
    for number, client in enumerate(clients):
        client.send(pack("observation", payload(bad if number in (2, 5) else seen(number)), number))
    for number, client in enumerate(clients):
        reply = answer(client, number)
        assert (reply["type"] == "error") == (number in (2, 5)), reply
        if number not in (2, 5):
            assert np.allclose(reply["payload"], expected[number], atol=1e-5)
        client.close()


def test_a_batch_that_fails_is_repeated_in_halves(vla: VLA, monkeypatch: pytest.MonkeyPatch) -> None:
    """One invalid observation among eight gives seven chunks and one error, whatever the policy raises."""
    real, sizes = vla.act, []

    def act(observations: list[Observation], sessions: list[Any]) -> list[Chunk]:
        sizes.append(len(observations))
        if any(o.proprio[0] == 5 for o in observations):
            raise RuntimeError("out of memory")
        return real(observations, sessions)

    monkeypatch.setattr(vla, "act", act)

    async def ask_all() -> list[Any]:
        batcher = Batcher(vla)
        asked = [Observation(seen(i).images, np.float32([i, 0, 0])) for i in range(8)]
        sessions = [await batcher.start("open it", 0, ROBOT.name) for _ in asked]
        found = await asyncio.gather(*map(batcher.act, asked, sessions), return_exceptions=True)
        assert batcher.close()
        return found

    found = asyncio.run(ask_all())
    assert [isinstance(f, Exception) for f in found] == [i == 5 for i in range(8)]
    assert sizes == [8, 4, 4, 2, 1, 1, 2]


def test_too_many_requests_are_refused(vla: VLA) -> None:
    async def ask_all() -> list[Any]:
        batcher = Batcher(vla, pending=3)
        sessions = [await batcher.start("open it", 0, ROBOT.name) for _ in range(5)]
        found = await asyncio.gather(*(batcher.act(seen(1), s) for s in sessions), return_exceptions=True)
        batcher.close()
        return found

    assert [isinstance(f, BusyError) for f in asyncio.run(ask_all())] == [False] * 3 + [True] * 2


def test_a_client_that_leaves_takes_its_request_with_it(vla: VLA, running: Callable[..., Running]) -> None:
    calls: list[int] = []
    slow = small.policy()
    real = slow.act

    def act(observations: Any, sessions: Any) -> Any:
        calls.append(len(observations))
        time.sleep(0.5)
        return real(observations, sessions)

    slow.act = act  # type: ignore[method-assign]
    server = running(slow)
    with dial(server) as first:
        first.send(pack("observation", payload(seen(1))))
        time.sleep(0.2)  # the policy computes
        leaving = [dial(server) for _ in range(4)]
        for client in leaving:
            client.send(pack("observation", payload(seen(2))))
        time.sleep(0.1)
        for client in leaving:
            client.close()
        assert answer(first)["type"] == "action"
        assert server.settles(1)
        assert ask(first, "observation", payload(seen(3)))["type"] == "action"  # of its chunk
    assert calls == [1]


def test_an_unexpected_exception_is_an_error_without_its_message(
    vla: VLA, server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def act(observations: Any, sessions: Any) -> Any:
        raise RuntimeError("secret")

    with dial(server) as client:
        with monkeypatch.context() as patch:
            patch.setattr(vla, "act", act)
            assert (
                error(client, "observation", payload(seen(1)))
                == "the policy failed (RuntimeError); see the server's log"
            )
        assert ask(client, "observation", payload(seen(1)))["type"] == "action"
    assert "secret" in caplog.text
    caplog.clear()


def test_only_the_cameras_that_the_policy_reads_are_decoded(server: Running) -> None:
    with dial(server) as client:
        sent = payload(seen(1))
        sent["images"] = sent["images"] | {"depth": {"__image__": True, "format": "png", "data": b"no image"}}
        assert ask(client, "observation", sent)["type"] == "action"
        sent["images"] = {str(i): {"__image__": True} for i in range(20)} | sent["images"]
        assert "'images' has 23 images; at most 16" in error(client, "observation", sent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"states": {"x": 1.0}}, "the observation has no 'states/position', it has images/their_corner, "),
        ({"states": np.array([1, 2, np.inf])}, "'states' has 3 numbers, 3 finite ones are needed"),
        ({"states": "abc"}, "'states' is of type str"),
        ({"states": [[1.0, 2.0, 3.0]]}, "'states' is of type list, of other values"),
        ({"images": [1, 2]}, "has no image 'their_corner', it has images, states, task_description: "),
        ({"images": None}, "has no image 'their_corner', it has images, states, task_description: "),
        ({"task_description": ["open"]}, "no task_description: it must say what to do, in text; got ['open']"),
        ({"task_description": b"\xff"}, "got b'\\xff'"),
        ({"task_description": "x" * 1001}, "'task_description' has 1001 characters; at most 1000"),
        ({"task_description": "open\0it"}, "control character"),
    ],
)
def test_errors_name_the_key_also_within_a_chunk(server: Running, change: dict[str, Any], message: str) -> None:
    with dial(server) as client:
        assert message in error(client, "observation", payload(seen(1)) | change, 1)
        assert ask(client, "observation", payload(seen(1)), 2)["type"] == "action"
        assert message in error(client, "observation", payload(seen(1)) | change, 3)
        assert ask(client, "observation", payload(seen(1)), 4)["type"] == "action"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_description": "x" * 70000}, "'payload.task_description' is a text of 70000 bytes; at most 65536"),
        ({str(i): i for i in range(300)}, "'payload' has 303 keys; at most 256"),
        ({"states": [0.5] * 5000}, "'payload.states' has 5000 values; at most 4096"),
        (
            {"images": {b"their_corner": 1}},
            "'payload.images' has the key b'their_corner' of type binary; keys are text",
        ),
    ],
)
def test_errors_name_the_key_that_exceeds_a_limit(server: Running, change: dict[str, Any], message: str) -> None:
    with dial(server) as client:
        assert message in error(client, "observation", payload(seen(1)) | change)
        assert ask(client, "observation", payload(seen(1)), 2)["type"] == "action"
