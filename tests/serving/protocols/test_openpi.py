"""The protocol of openpi: a client written from the schema gets the chunks of the policy that acts in process."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from anyvla.policy import VLA
from anyvla.serving.limits import ServerLimits
from anyvla.serving.protocols.openpi import OpenpiProtocol
from tests import small
from tests.serving.clients import ROBOT, Running, dial, seen
from tests.serving.protocols.openpi_client_env import install_openpi_client
from tests.serving.protocols.openpi_wire import OPENPI, ask, flat, pack, unpack


@pytest.fixture
def server(vla: VLA, running: Callable[..., Running]) -> Running:
    return running(vla, protocol=OpenpiProtocol, mapping=OPENPI)


def opened(server: Running) -> ClientConnection:
    client = dial(server)
    unpack(client.recv(timeout=30))
    return client


def chunks(vla: VLA, *steps: int, seed: int = 0, size: int = 32) -> list[np.ndarray]:
    """Return the chunks that the policy predicts in process."""
    session = vla.start("open the drawer", seed)
    return [vla.act([seen(step, size)], [session])[0].actions for step in steps]


def test_the_metadata_comes_first_and_says_what_the_policy_reads(server: Running) -> None:
    with dial(server) as client:
        metadata = unpack(client.recv(timeout=30))
        assert metadata["cameras"].keys() == set(ROBOT.cameras)
        assert metadata["proprio"] == {"position": 3}
        assert (metadata["chunk"], metadata["execute"], metadata["robot"]) == (4, 2, "small")


def recurrent() -> VLA:
    """Return a policy whose chunks depend on the steps before."""
    return small.awake(small.policy({"name": "policy_head", "window": 3}, small.FUSERS[3]))


def test_a_connection_is_a_session_of_whole_chunks(running: Callable[..., Running]) -> None:
    vla = recurrent()
    server = running(vla, protocol=OpenpiProtocol, mapping=OPENPI)
    expected = chunks(vla, 1, 2, 3, 4)
    with opened(server) as client, opened(server) as other:
        for step in (1, 2, 3, 4):
            answer = ask(client, flat(seen(step)))
            assert answer["actions"].shape == (4, 4)
            assert answer["actions"].dtype == np.float32
            np.testing.assert_allclose(answer["actions"], expected[step - 1], atol=1e-5)
            timing = answer["server_timing"]
            assert timing["infer_ms"] >= answer["policy_timing"]["infer_ms"] > 0
            assert ("prev_total_ms" in timing) == (step > 1)
        np.testing.assert_allclose(ask(other, flat(seen(1)))["actions"], expected[0], atol=1e-5)


def test_reset_in_an_observation_and_a_new_prompt_begin_a_rollout(running: Callable[..., Running]) -> None:
    vla = recurrent()
    server = running(vla, protocol=OpenpiProtocol, mapping=OPENPI)
    with opened(server) as client:
        ask(client, flat(seen(1)))
        for reset in (True, np.bool_(True)):
            again = ask(client, flat(seen(2), reset=reset))["actions"]
            np.testing.assert_allclose(again, chunks(vla, 2)[0], atol=1e-5)
        ask(client, flat(seen(2), reset=False))
        assert ask(client, flat(seen(3), "close it"))["actions"].shape == (4, 4)
        np.testing.assert_allclose(ask(client, flat(seen(2)))["actions"], chunks(vla, 2)[0], atol=1e-5)


def test_nested_observations_with_channels_first_as_alohas(server: Running, vla: VLA) -> None:
    observation = seen(5)
    images = {camera: np.ascontiguousarray(i.transpose(2, 0, 1)) for camera, i in observation.images.items()}
    numbers = {f"joint {i}": np.zeros(7) for i in range(20)}  # more than an observation may have images
    inside = {**images, **numbers, "state": observation.proprio}
    sent = {"observation": inside, "prompt": np.str_("open the drawer")}
    with opened(server) as client:
        np.testing.assert_allclose(ask(client, sent)["actions"], chunks(vla, 5)[0], atol=1e-5)


def test_images_of_another_size_are_resized_as_in_process(running: Callable[..., Running]) -> None:
    vla = small.awake(small.policy(view={"size": [32, 32], "fit": "pad", "crop": 0.9}))
    server = running(vla, protocol=OpenpiProtocol, mapping=OPENPI)
    with opened(server) as client:
        np.testing.assert_allclose(ask(client, flat(seen(1, 48)))["actions"], chunks(vla, 1, size=48)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation/wrist": None}, "no image 'wrist', it has observation/corner, observation/state, prompt: "),
        ({"observation/state": None}, "no 'observation/state', it has observation/corner, observation/wrist, prompt: "),
        ({"prompt": None}, "no 'prompt', it has observation/corner, observation/wrist, observation/state: "),
        ({"prompt": ""}, "no prompt: it must say what to do"),
        ({"observation/state": np.zeros(5)}, "'observation/state' has 5 numbers, 3 finite ones are needed: position 3"),
        ({"observation/state": np.full(3, np.nan)}, "3 finite ones are needed"),
        ({"observation/state": np.full(3, 500.0)}, "far outside of the training data"),
        ({"observation/wrist": np.zeros((32, 32, 3), np.float32)}, "its numbers are in [0, 1]; send (image * 255)"),
        ({"observation/wrist": np.zeros((32, 32), np.uint8)}, "uint8 (32, 32); uint8 (H, W, 3) is needed"),
        ({"observation/wrist": np.zeros((48, 32, 3), np.uint8)}, "must have one size"),
        ({"observation/wrist": {b"__ndarray__": True, b"data": b"x" * 8, b"dtype": "|O", b"shape": [1]}}, "dtype '|O'"),
        ({"observation/wrist": {b"__ndarray__": True, b"data": b"", b"dtype": "|u1", b"shape": [2**31, 3]}}, "bytes"),
    ],
)  # fmt: skip
def test_an_error_is_a_text_frame_and_the_connection_ends(
    server: Running, change: dict[str, Any], message: str
) -> None:
    sent = {key: value for key, value in (flat(seen(1)) | change).items() if value is not None}
    with opened(server) as client:
        client.send(pack(sent))
        text = client.recv(timeout=30)
        assert isinstance(text, str)
        assert message in text
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=30)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1011
    with opened(server) as client:
        assert ask(client, flat(seen(1)))["actions"].shape == (4, 4)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ("text", "messages are binary msgpack, this one is text"),
        (b"\xc1", "not a msgpack message"),
        (pack([1, 2]), "a message is a map, this is a list"),
        (pack({"type": "hello", "payload": {"protocol_version": 1}}), "it has type, payload/protocol_version: "),
    ],
)
def test_a_frame_that_is_no_observation_is_answered_with_text(server: Running, frame: Any, message: str) -> None:
    with opened(server) as client:
        client.send(frame)
        assert message in client.recv(timeout=30)
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=30)


def test_a_fault_of_the_policy_is_not_shown_to_the_client(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server.service.vla, "act", lambda *_: 1 / 0)
    with opened(server) as client:
        client.send(pack(flat(seen(1))))
        text = client.recv(timeout=30)
        assert "the policy failed (ZeroDivisionError); see the server's log" in text
        assert "Traceback" not in text
    caplog.clear()


def test_a_key_is_asked_for_as_openpis_client_sends_it(vla: VLA, running: Callable[..., Running]) -> None:
    server = running(vla, key="secret", protocol=OpenpiProtocol, mapping=OPENPI)
    with dial(server, additional_headers={"Authorization": "Api-Key secret"}) as client:
        assert unpack(client.recv(timeout=30))["robot"] == "small"


SCRIPT = """
import sys
import numpy as np
from openpi_client import action_chunk_broker, websocket_client_policy

port, file = int(sys.argv[1]), sys.argv[2]
recorded = np.load(file)
policy = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", port, api_key="secret")
metadata = policy.get_server_metadata()
broker = action_chunk_broker.ActionChunkBroker(policy, metadata["execute"])
executed = []
for step in range(6):
    observation = {f"observation/{k}": recorded[f"{k}_{step // 2}"] for k in ("corner", "wrist", "state")}
    executed.append(broker.infer({**observation, "prompt": "open the drawer"})["actions"])
first = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", port, api_key="secret")
observation = {f"observation/{k}": recorded[f"{k}_0"] for k in ("corner", "wrist", "state")}
whole = first.infer({**observation, "prompt": "open the drawer"})
assert whole["server_timing"]["infer_ms"] > 0 and whole["policy_timing"]["infer_ms"] > 0
try:
    first.infer({"observation/corner": recorded["corner_0"], "prompt": "open the drawer"})
    raise SystemExit("no error")
except RuntimeError as error:
    assert "no 'observation/state'" in str(error) or "no image 'wrist'" in str(error), error
np.savez(file, executed=executed, whole=whole["actions"], timing=sorted(whole["server_timing"]))
"""


@pytest.mark.slow
def test_the_real_client_of_openpi(running: Callable[..., Running], tmp_path: Path) -> None:
    """PyPI `openpi-client` and its ActionChunkBroker get the actions of the policy in process."""
    python = install_openpi_client(tmp_path / "env")
    vla = recurrent()
    server = running(vla, ServerLimits(), "secret", protocol=OpenpiProtocol, mapping=OPENPI)
    arrays: dict[str, np.ndarray] = {}
    for step in range(3):
        observation = seen(step)
        arrays |= {f"{camera}_{step}": image for camera, image in observation.images.items()}
        arrays[f"state_{step}"] = observation.proprio.astype(np.float64)
    np.savez(tmp_path / "recorded.npz", **arrays)  # type: ignore[arg-type]
    command = [python, "-c", SCRIPT, str(server.port), str(tmp_path / "recorded.npz")]
    subprocess.run(command, check=True, timeout=120, env={"PATH": ""})
    found, expected = np.load(tmp_path / "recorded.npz"), chunks(vla, 0, 1, 2)
    np.testing.assert_allclose(found["executed"], np.concatenate([c[:2] for c in expected]), atol=1e-5)
    np.testing.assert_allclose(found["whole"], expected[0], atol=1e-5)
