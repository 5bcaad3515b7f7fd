"""Clients of GR00T N1.6 and N1.7 get the chunks that the policy predicts alone, and clear errors."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np
import pytest

from anyvla.policy import VLA
from anyvla.serving.limits import ServerLimits
from anyvla.serving.mapping import ClientMapping
from anyvla.serving.protocols.groot import GrootProtocol
from anyvla.serving.protocols.groot_observation import split_rows
from anyvla.types import Observation
from tests import small
from tests.serving.clients import Running, seen
from tests.serving.protocols.groot_client import CODECS, GrootClient

PLAIN = ClientMapping(**GrootProtocol.keys)
NAMED = ClientMapping(
    **GrootProtocol.keys
    | {
        "cameras": {"corner": "video/ego_view", "wrist": "video/wrist_view"},
        "proprio": {"position": "state/left_arm"},
        "instruction": "language/annotation.human.task_description",
        "actions": {"left_arm": "position", "left_hand": "gripper"},
    }
)


@pytest.fixture(scope="module")
def policy() -> VLA:
    """Return a policy with a history and noise, so that a mix-up of sessions shows."""
    return small.awake(
        small.policy(history={"name": "policy_head", "window": 3}, fuser=small.FUSERS[3], decoder="flow")
    )


@pytest.fixture
def serve(running: Callable[..., Running], policy: VLA) -> Callable[..., Running]:
    def start(mapping: ClientMapping = PLAIN, **options: Any) -> Running:
        return running(options.pop("vla", policy), protocol=GrootProtocol, mapping=mapping, **options)

    return start


@pytest.fixture
def server(serve: Callable[..., Running]) -> Running:
    return serve()


@pytest.fixture(params=["N1.6", "N1.7"])
def client(server: Running, request: pytest.FixtureRequest) -> Iterator[GrootClient]:
    with GrootClient(server.port, request.param) as client:
        yield client


def batch(*observations: Observation, texts: tuple[str, ...] = ("open the drawer",)) -> dict[str, Any]:
    """Return observations as GR00T sends them, one robot in each row."""
    texts = texts * (len(observations) // len(texts))
    return {
        "video": {
            camera: np.stack([o.images[camera] for o in observations])[:, None] for camera in ("corner", "wrist")
        },
        "state": {"position": np.stack([o.proprio for o in observations])[:, None]},
        "language": {"task": [[text] for text in texts]},
    }


def alone(policy: VLA, seeds: list[int], instruction: str = "open the drawer", rollout: int = 0) -> list[np.ndarray]:
    session = policy.start(instruction, seed=rollout)
    return [policy.act([seen(seed)], [session])[0].actions for seed in seeds]


def joined(actions: dict[str, np.ndarray]) -> np.ndarray:
    assert list(actions) == ["position", "gripper"]
    assert all(values.dtype == np.float32 for values in actions.values())
    return np.concatenate(list(actions.values()), -1)


def test_chunks_are_those_of_the_policy_alone(client: GrootClient, policy: VLA) -> None:
    expected = alone(policy, [1, 2, 3])
    for seed, chunk in zip([1, 2, 3], expected, strict=True):
        actions, info = client.get_action(batch(seen(seed)))
        assert actions["position"].shape == (1, 4, 3)
        assert actions["gripper"].shape == (1, 4, 1)
        np.testing.assert_allclose(joined(actions)[0], chunk, atol=1e-5)
        assert info == {"execute": 2}


def test_a_reset_begins_a_new_rollout_of_this_client_alone(server: Running, policy: VLA) -> None:
    with GrootClient(server.port, "N1.6") as first, GrootClient(server.port, "N1.7") as second:
        for one in (first, second):
            one.get_action(batch(seen(1)))
        assert first.reset() == {}
        assert first.reset({"seed": 5}) == {}
        again = joined(first.get_action(batch(seen(2)))[0])[0]
        np.testing.assert_allclose(again, alone(policy, [2], rollout=5)[0], atol=1e-5)
        continued = joined(second.get_action(batch(seen(2)))[0])[0]
        np.testing.assert_allclose(continued, alone(policy, [1, 2])[1], atol=1e-5)
        assert np.abs(again - continued).max() > 1e-3


def test_the_rows_of_a_batch_are_sessions_of_their_own(client: GrootClient, policy: VLA) -> None:
    texts = ("open the drawer", "close it now, please", "press the button")
    for step in range(2):
        observation = batch(*(seen(10 * step + row) for row in range(3)), texts=texts)
        actions = joined(client.get_action(observation)[0])
        for row, text in enumerate(texts):
            expected = alone(policy, [row, 10 + row][: step + 1], text)[-1]
            np.testing.assert_allclose(actions[row], expected, atol=1e-5)


def test_a_row_that_fails_changes_no_row(client: GrootClient, policy: VLA) -> None:
    client.get_action(batch(seen(1), seen(2)))
    wrong = batch(seen(3), seen(4))
    wrong["state"]["position"][1, 0, 2] = 1e6  # refused by the policy, together with the first row
    with pytest.raises(RuntimeError, match=r"robot 1 of the batch: .*'position', dim 2 is 1e\+06"):
        client.get_action(wrong)
    actions = joined(client.get_action(batch(seen(3), seen(4)))[0])
    for row in range(2):
        np.testing.assert_allclose(actions[row], alone(policy, [1 + row, 3 + row])[1], atol=1e-5)


def test_a_new_connection_is_a_new_session(server: Running, policy: VLA) -> None:
    for _ in range(2):
        with GrootClient(server.port) as client:
            actions, _ = client.get_action(batch(seen(4)))
        np.testing.assert_allclose(joined(actions)[0], alone(policy, [4])[0], atol=1e-5)


def test_the_mapping_names_keys_of_observations_and_actions(serve: Callable[..., Running], policy: VLA) -> None:
    seen_one = batch(seen(1))
    theirs = {
        "video": {"ego_view": seen_one["video"]["corner"], "wrist_view": seen_one["video"]["wrist"]},
        "state": {"left_arm": seen_one["state"]["position"]},
        "language": {"annotation.human.task_description": [["open the drawer"]]},
    }
    for dialect in CODECS:
        with GrootClient(serve(NAMED).port, dialect) as client:
            actions, _ = client.get_action(theirs)
            config = client.call("get_modality_config")
        assert list(actions) == ["left_arm", "left_hand"]
        np.testing.assert_allclose(np.concatenate(list(actions.values()), -1)[0], alone(policy, [1])[0], atol=1e-5)
        assert {name: (of.delta_indices, of.modality_keys) for name, of in config.items()} == {
            "video": ([0], ["ego_view", "wrist_view"]),
            "state": ([0], ["left_arm"]),
            "action": ([0, 1, 2, 3], ["left_arm", "left_hand"]),
            "language": ([0], ["annotation.human.task_description"]),
        }


def test_the_flat_keys_of_simulations_are_read(client: GrootClient, policy: VLA) -> None:
    nested = batch(seen(1), seen(2))
    flat = {f"video.{key}": value for key, value in nested["video"].items()}
    flat |= {f"state.{key}": value for key, value in nested["state"].items()}
    actions, _ = client.get_action(flat | {"annotation.human.coarse_action": ["open the drawer", "open the drawer"]})
    assert list(actions) == ["action.position", "action.gripper"]
    for row in range(2):
        chunk = np.concatenate(list(actions.values()), -1)[row]
        np.testing.assert_allclose(chunk, alone(policy, [row + 1])[0], atol=1e-5)


def test_arrays_in_another_order_are_read(server: Running, policy: VLA) -> None:
    """numpy.save writes what is contiguous in Fortran's order as it is."""
    observation = batch(seen(1))
    observation["video"] = {key: np.asfortranarray(value) for key, value in observation["video"].items()}
    with GrootClient(server.port, "N1.6") as client:
        actions, _ = client.get_action(observation)
    np.testing.assert_allclose(joined(actions)[0], alone(policy, [1])[0], atol=1e-5)


def test_ping_and_unknown_endpoints(client: GrootClient) -> None:
    assert client.call("ping")["status"] == "ok"
    with pytest.raises(RuntimeError, match=r"no endpoint 'get_actoin'; there are get_action"):
        client.call("get_actoin", {})


def test_kill_is_refused(client: GrootClient) -> None:
    with pytest.raises(RuntimeError, match="clients may not end this server"):
        client.call("kill")
    assert client.call("ping")["status"] == "ok"


@pytest.mark.parametrize("endpoint", ["ping", "get_action", "reset", "kill"])
def test_the_key_is_needed_for_everything(serve: Callable[..., Running], endpoint: str) -> None:
    server = serve(key="secret")
    for token in (None, "secre", "secret2", "Secret"):
        with GrootClient(server.port, token=token) as client, pytest.raises(RuntimeError, match="Unauthorized"):
            client.call(endpoint, {})
    with GrootClient(server.port, token="secret") as client:
        assert client.call("ping")["status"] == "ok"
        client.get_action(batch(seen(1)))


def without(part: str, key: str | None = None) -> dict[str, Any]:
    observation = batch(seen(1))
    del (observation if key is None else observation[part])[part if key is None else key]
    return observation


def changed(part: str, key: str, change: Callable[[Any], Any]) -> dict[str, Any]:
    observation = batch(seen(1))
    observation[part][key] = change(observation[part][key])
    return observation


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (without("video"), "no 'video' in a map; it has state, language"),
        (without("language"), "no 'instruction', it has video/corner"),
        (batch(seen(1)) | {"language": "go"}, "no 'language' in a map"),
        (without("video", "wrist"), "no image 'wrist', it has video/corner, state/position, language/task"),
        (without("state", "position"), "no 'state/position', it has video/corner"),
        (without("language", "task"), "no 'instruction', it has video/corner"),
        (changed("video", "wrist", lambda x: x / 255), r"video/wrist is float64 \[1, 1, 32, 32, 3\]; uint8 \[B, T"),
        (changed("video", "wrist", lambda x: x[0]), r"video/wrist is uint8 \[1, 32, 32, 3\]; uint8"),
        (changed("video", "wrist", lambda x: x.repeat(2, 1)), r"video/wrist is uint8 \[1, 2, .*T = 1"),
        (changed("video", "wrist", lambda x: x.repeat(2, 0)), "one batch size.*video/corner 1, video/wrist 2"),
        (changed("video", "wrist", lambda x: x[..., :1]), "video/wrist is uint8"),
        (changed("state", "position", lambda x: x.tolist()), "state/position is of type list; an array, float32"),
        (
            changed("state", "position", lambda x: x.astype(np.float64)),
            r"state/position is float64.*float32 \[B, T, D\]",
        ),
        (changed("state", "position", lambda x: x[..., :2]), "'state/position' has 2 numbers, 3 finite ones"),
        (changed("state", "position", lambda x: x * np.nan), "'state/position' has 3 numbers, 3 finite ones"),
        (changed("language", "task", lambda x: "open"), "language/task is 'open'; for each of the B robots"),
        (changed("language", "task", lambda x: [[" "]]), "must say what to do"),
        (changed("language", "task", lambda x: [["a", "b"]]), "a list of one text"),
        ({}, "no 'video' in a map; it has nothing"),
        (None, "no 'observation' in a map, but None"),
    ],
)
def test_observations_that_do_not_fit_are_explained(client: GrootClient, observation: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        client.get_action(observation)
    client.get_action(batch(seen(1)))


def test_the_rows_of_a_batch_are_limited(serve: Callable[..., Running]) -> None:
    """Each of them is a session, with a history in memory."""
    with GrootClient(serve(limits=ServerLimits(batch_rows=2)).port) as client:
        assert len(client.get_action(batch(seen(1), seen(2)))[0]["position"]) == 2
        with pytest.raises(RuntimeError, match=r"the batch has 3 observations; at most 2 .*--limits.batch_rows"):
            client.get_action(batch(seen(1), seen(2), seen(3)))
    with pytest.raises(ValueError, match=r"has 33 observations; at most 32"):
        split_rows(batch(*[seen(1)] * 33), ServerLimits().batch_rows)


class Harm:
    """A pickle that would run code."""

    def __reduce__(self) -> Any:
        return (print, ("unpickled",))


def npy_of_objects() -> dict[str, Any]:
    file = io.BytesIO()
    np.save(file, np.array([Harm()], object), allow_pickle=True)
    return {"__ndarray_class__": True, "as_npy": file.getvalue()}


def nd(**fields: Any) -> dict[bytes, Any]:
    good = {"nd": True, "type": "<f4", "kind": b"", "shape": [1, 1, 3], "data": bytes(12)}
    return {key.encode(): value for key, value in (good | fields).items()}


def header(dtype: str = "<f4", shape: str = "1, 1, 3") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({shape}), }}\n"


def npy(text: str, data: bytes = bytes(12), version: bytes = b"\x01\x00") -> dict[str, Any]:
    size = len(text).to_bytes(2, "little")
    return {"__ndarray_class__": True, "as_npy": b"\x93NUMPY" + version + size + text.encode() + data}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (npy_of_objects(), "the dtype '|O'; booleans, integers and floats"),
        (npy(header("|O")), "dtype"),
        (npy(header(shape="1, 1, 9999999")), "has 12 bytes"),
        (npy(header(shape="1, 1, -3")), "no file of numpy.save"),
        (
            npy(header(shape="1, 1, __import__('os')")),
            "no file of numpy.save",
        ),
        (npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,), }\n"), "no file of numpy.save"),
        (
            npy(header(), version=b"\x09\x00"),
            "unknown version",
        ),
        ({"__ndarray_class__": True, "as_npy": b"\x93NUMPY"}, "unknown version"),
        ({"__ndarray_class__": True, "as_npy": "text"}, "no 'as_npy' of numpy.save, but 'text'"),
        ({"__ndarray_class__": True}, "no 'as_npy' of numpy.save, but None"),
        (nd(kind=b"O"), "kind 'O'; only plain numbers are read, never a pickle"),
        (nd(kind=b"V", type=[["a", "<f4"]]), "kind 'V'"),
        (nd(type="|O"), "the dtype"),
        (nd(type=7), "the dtype 7"),
        (nd(shape=[1, 1, 4]), "has 12 bytes"),
        (nd(shape=[-1, -1, 3]), r"the shape \[-1, -1, 3\]"),
        (nd(data="x"), "no 'data' in binary"),
        (nd(nd=False, shape=None), "the shape None"),
    ],
)
def test_nothing_is_unpickled_and_sizes_are_checked_first(
    server: Running, capsys: pytest.CaptureFixture[str], state: Any, message: str
) -> None:
    observation = batch(seen(1))
    observation["state"] = {"position": state}
    with GrootClient(server.port) as client, pytest.raises(RuntimeError, match=message.replace("|", r"\|")):
        client.get_action(observation)
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a msgpack message"),
        (b"\xc1", "not a msgpack message"),
        (b"\x91" * 5000, "nested deeper"),
        (msgpack.packb([1]), "a request is a map"),
        (msgpack.packb({"endpoint": 3}), "a request has an endpoint"),
        (msgpack.packb({"endpoint": "reset", "data": [1]}), "a request has an endpoint"),
        (msgpack.packb({}), "no 'observation' in a map"),
    ],
)
def test_broken_messages_are_explained(server: Running, data: bytes, message: str) -> None:
    with GrootClient(server.port) as client, pytest.raises(RuntimeError, match=message):
        client.send(data)


def test_numpy_scalars_and_other_values_pass(client: GrootClient, policy: VLA) -> None:
    observation = batch(seen(1)) | {"more": {"time": np.float64(0.5) if client.codec is CODECS["N1.7"] else 0.5}}
    actions, _ = client.get_action(observation, {"anything": [1, None]})
    np.testing.assert_allclose(joined(actions)[0], alone(policy, [1])[0], atol=1e-5)
