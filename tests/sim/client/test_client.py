from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from anyvla_sim.client import Client, ClientError, ServerError, SessionLost, WrongObservation
from tests.sim.client.scripted import answer, chunk, error, observation, scripted


def test_act_executes_some_actions_of_a_chunk_and_then_asks_again() -> None:
    with scripted() as server, Client(server.url) as client, client.start("open it", seed=3) as session:
        got = [session.act(observation(step)).tolist() for step in range(5)]
    assert [(action[0], action[1]) for action in got] == [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0)]
    kinds = [message["type"] for message in server.messages]
    assert kinds == ["start", "predict", "predict", "predict", "end"]
    started, first, second, *_ = server.messages
    assert (started["instruction"], started["seed"]) == ("open it", 3)
    assert [first["number"], second["number"]] == [1, 2]
    assert {message["session"] for message in server.messages[1:]} == {"s1"}
    sent = second["observation"]
    assert sent["images"]["hand"]["data"] == observation(2)["images"]["hand"].tobytes()  # raw, on this machine
    assert np.frombuffer(sent["proprio"]["data"], "<f4").tolist() == observation(2)["proprio"].tolist()


def test_the_server_decides_which_actions_of_a_chunk_are_executed() -> None:
    actions = np.arange(16, dtype=np.float32).reshape(4, 4)

    def script(message: dict[str, Any]) -> Any:
        return chunk(actions, 1, 4) if message["type"] == "predict" else None

    with scripted(script) as server, Client(server.url) as client:
        session = client.start("open it")
        assert [session.act(observation())[0] for _ in range(4)] == [4, 8, 12, 4]
        predicted = session.predict(observation(), committed=np.ones((2, 4)), delay=1)
        assert predicted.execute == (1, 4)
        assert np.array_equal(predicted.actions, actions)
    sent = server.messages[-1]
    assert (sent["delay"], sent["committed"]["shape"]) == (1, [2, 4])


def test_a_prediction_and_a_reset_discard_the_rest_of_a_chunk() -> None:
    with scripted() as server, Client(server.url) as client:
        session = client.start("open it")
        session.act(observation())
        session.predict(observation())
        assert session.act(observation())[:2].tolist() == [3, 0]
        session.reset("close it")
        assert session.act(observation())[:2].tolist() == [5, 0]
        session.reset(seed=4)
    resets = [message for message in server.messages if message["type"] == "reset"]
    assert [{k: m[k] for k in ("instruction", "seed") if k in m} for m in resets] == [
        {"instruction": "close it"},
        {"seed": 4},
    ]


def test_an_observation_that_does_not_fit_is_not_sent_even_in_mid_chunk() -> None:
    with scripted() as server, Client(server.url) as client:
        session = client.start("open it")
        session.act(observation())
        wrong = observation() | {"proprio": np.zeros(3)}
        with pytest.raises(WrongObservation, match="must have 4 numbers"):
            session.act(wrong)
        with pytest.raises(WrongObservation, match="must have 4 numbers"):
            session.predict(wrong)
        assert session.act(observation())[:2].tolist() == [1, 1]
    assert len(server.received) == 2


@pytest.mark.parametrize(
    ("code", "kind"), [("request", ServerError), ("policy", ServerError), ("session", SessionLost)]
)
def test_the_servers_errors_have_its_text_and_do_not_end_the_connection(code: str, kind: type) -> None:
    faults = iter([True, False])

    def script(message: dict[str, Any]) -> Any:
        return error(code, "proprio is far away") if message["type"] == "predict" and next(faults) else None

    with scripted(script) as server, Client(server.url) as client:
        session = client.start("open it")
        with pytest.raises(kind, match=r"^proprio is far away$") as raised:
            session.act(observation())
        assert type(raised.value) is kind
        assert raised.value.code == code
        assert session.act(observation())[:2].tolist() == [2, 0]
    assert server.connections == 1


@pytest.mark.parametrize(
    "given",
    [
        {"actions": None},
        {"execute": [0, 5]},
        {"execute": [2, 2]},
        {"execute": 3},
        {"execute": ["first", None]},
        chunk(np.zeros((4, 3), np.float32), 0, 2),
        chunk(np.zeros(4, np.float32), 0, 2),
        chunk(np.full((4, 4), np.nan, np.float32), 0, 2),
    ],
)
def test_a_chunk_that_cannot_be_executed_is_an_error(given: dict[str, Any]) -> None:
    def script(message: dict[str, Any]) -> Any:
        return answer(message, None, {}) | given if message["type"] == "predict" else None

    with scripted(script) as server, Client(server.url) as client, pytest.raises(ClientError, match="sent a chunk"):
        client.start("open it").act(observation())


def test_threads_may_share_a_client() -> None:
    """Each of their sessions gets its own answers: the actions have the number of the session's request."""

    def script(message: dict[str, Any]) -> Any:
        if message["type"] == "start":
            return {"session": message["instruction"]}
        if message["type"] == "predict":
            return chunk(np.full((4, 4), 1000 * int(message["session"]) + message["number"], np.float32), 0, 1)
        return None

    found: dict[int, list[float]] = {}

    def run(client: Client, number: int) -> None:
        session = client.start(str(number))
        found[number] = [float(session.act(observation())[0]) for _ in range(20)]

    with scripted(script) as server, Client(server.url) as client:
        threads = [threading.Thread(target=run, args=(client, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {number: [1000 * number + k for k in range(1, 21)] for number in range(4)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "bmp"}, "images='bmp': known are auto, raw, png, jpeg"),
        ({"timeout_s": 0}, "timeout_s must be above 0"),
        ({"retries": -1}, "retries not below"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Client("ws://127.0.0.1:1", **options)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://robot:8000", "ws://", "ws://host:port"])
def test_a_url_of_something_else(url: str) -> None:
    with pytest.raises(ValueError, match=r"is no address of a policy server \(.*\): give ws://HOST:PORT"):
        Client(url)


@pytest.mark.parametrize(("images", "key"), [("raw", "__ndarray__"), ("png", "__image__"), ("auto", "__ndarray__")])
def test_the_caller_chooses_the_form_of_images(images: str, key: str) -> None:
    with scripted() as server, Client(server.url, images=images) as client:
        client.start("open it").act(observation())
    assert key in server.messages[-1]["observation"]["images"]["front"]
