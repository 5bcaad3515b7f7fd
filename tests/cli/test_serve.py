from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import pytest
import torch

from anyvla.cli.main import main
from anyvla.config import ConfigError
from anyvla.policy import VLA
from anyvla.robot.shared_layout import Robot
from anyvla.robot.space import ActionSpace
from tests import small


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "checkpoint"
    small.policy().save(folder, {"name": "small"})
    return folder


@pytest.fixture
def refuses(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """Return a function that says whether the command refuses options. A server that starts returns at once."""

    async def started(*_: Any) -> int:
        return 0

    monkeypatch.setattr("anyvla.cli.serve._serve", started)
    return lambda *options: main(["serve", *map(str, options)]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--execute", "5"], "--execute 5: the policy predicts 4 actions at once"),
        (["--robot", "smal"], "which robot? --robot one of small"),
        (
            ["--mapping", "MAPPING"],
            "the mapping names the camera 'top', which the policy has not: known: corner, wrist",
        ),
    ],
)
def test_bad_options(
    checkpoint: Path,
    tmp_path: Path,
    refuses: Callable[..., bool],
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text("cameras: {top: image}\n")
    given = [str(mapping) if option == "MAPPING" else option for option in options]
    assert refuses(checkpoint, "--port", "0", *given)
    assert message in capsys.readouterr().err


def test_the_cores_are_left_to_the_thread_of_the_policy(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With helpers for the main thread too, which loads the policy, each answer took up to twice as long."""
    used: list[int] = []

    async def started(*_: Any) -> int:
        with ThreadPoolExecutor(1) as policy:
            used.extend([torch.get_num_threads(), policy.submit(torch.get_num_threads).result()])
        return 0

    monkeypatch.setattr("anyvla.cli.serve._serve", started)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert main(["serve", str(checkpoint), "--port", "0"]) == 0
    finally:
        torch.set_num_threads(before)
    assert used == [1, 2]


def test_a_port_in_use(checkpoint: Path, refuses: Callable[..., bool], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert refuses(checkpoint, "--port", port)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"port {port} is in use: stop the program that has it, or give another --port" in line


@pytest.mark.parametrize("protocol", ["vla-eval", "opentau"])
def test_a_port_that_is_taken_while_the_policy_loads(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], protocol: str
) -> None:
    """Two sockets can be bound to one port, and only one of them can listen."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    assert main(["serve", str(checkpoint), "--protocol", protocol, "--port", port, "--status-port", port]) == 1
    assert f"port {port} is in use" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid: there is no such host"),
        (["--host", ""], "--host is empty"),
        (["--host", "192.0.2.1", "--no-auth"], "--host 192.0.2.1 is no address of this machine"),
        (["--host", "x" * 300], "there is no such host"),
        (["--port", "70000"], "--port 70000: ports are 0 to 65535"),
        (["--port", "-1"], "--port -1: ports are 0 to 65535"),
        (
            ["--host", "0.0.0.0"],
            "without a key. Put a key into a file and give --api-key-file FILE (or set ANYVLA_API_KEY)",
        ),
        (["--host", "::"], "or allow everyone with --no-auth"),
        (["--host", "0"], "other machines could use a server at 0.0.0.0 without a key"),
        (["--api-key-file", "no/file"], "cannot read the API key no/file"),
        (["--api-key-file", os.devnull], "has no API key: it must be one word"),
        (["--limits.connections", "1000000000"], "need 1000000192 open files, and this process may have"),
        (["--host", "a b"], "there is no such host"),
        (["--limits.idle_second", "3"], "unknown key 'idle_second': did you mean 'idle_seconds'"),
        (["--limits.connections", "0"], "'connections': Input should be greater than or equal to 1"),
        (["--limits.idle_seconds", "soon"], "'idle_seconds'"),
        (["--limit", "3"], "there is no option --limit"),
        (["--limits", "no.yaml"], "no.yaml is missing"),
        (["--protocol", "vla-evil"], "protocols has no 'vla-evil': did you mean"),
        (["--tls-cert", "a.pem"], "--tls-cert and --tls-key belong together"),
        (["--tls-cert", "no.pem", "--tls-key", "no.pem"], "cannot read no.pem of --tls-cert and --tls-key"),
        (["--status-port", "70000"], "--status-port 70000: ports are 0 to 65535"),
        (["--mapping", "no.yaml"], "no.yaml is missing"),
        (["--no-auth"], "--no-auth lets other machines use the server, and they can't reach it"),
        (["--protocol", "opentau", "--execute", "2"], "--execute has no effect with --protocol opentau"),
        (["--protocol", "anyvla", "--instruction", "go"], "--instruction has no effect with --protocol anyvla"),
        (["--protocol", "anyvla", "--mapping", "plain"], "--mapping has no effect with --protocol anyvla"),
    ],
)
def test_invalid_options(
    checkpoint: Path,
    refuses: Callable[..., bool],
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    port = [] if "--port" in options else ["--port", "0"]
    assert refuses(checkpoint, *port, *options)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_key_and_no_auth_contradict(
    checkpoint: Path,
    refuses: Callable[..., bool],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ANYVLA_API_KEY", "k3y")
    assert refuses(checkpoint, "--port", "0", "--no-auth")
    assert "--no-auth contradicts the API key" in capsys.readouterr().err


Script = Callable[[str], Awaitable[Any]]
OBSERVATION = {
    "images": {
        name: {"__ndarray__": True, "dtype": "|u1", "shape": [32, 32, 3], "data": bytes(3072)}
        for name in ("corner", "wrist")
    },
    "states": [0.0, 0.0, 0.0],
    "task_description": "go",
}


def serve(monkeypatch: pytest.MonkeyPatch, script: Script, *options: str) -> Any:
    """Run the command in this process with a client. Return the result of the client's script."""
    found = []

    async def served(service: Any, sockets: list[socket.socket], host: str, ready: Callable[[], None]) -> int:
        listening = asyncio.Event()
        running = asyncio.create_task(service.run(sockets, listening.set))
        try:
            await asyncio.wait_for(listening.wait(), 20)
            url = f"ws://{host}:{sockets[0].getsockname()[1]}"
            found.append(await asyncio.wait_for(script(url), 60))
        finally:
            service.stop()
        return await running  # type: ignore[no-any-return]

    monkeypatch.setattr("anyvla.cli.serve._serve", served)
    assert main(["serve", *options, "--port", "0"]) == 0
    return found[0]


def conversation(*messages: tuple[str, dict[str, Any]]) -> Script:
    """Return a client that sends these messages and returns the type and the payload of each answer."""
    from websockets.asyncio.client import connect

    async def script(url: str) -> list[tuple[str, dict[str, Any]]]:
        answers = []
        async with connect(url, compression=None) as client:
            for kind, payload in messages:
                await client.send(msgpack.packb({"type": kind, "payload": payload, "seq": 0, "timestamp": 0.0}))
                answer = msgpack.unpackb(await client.recv())
                answers.append((answer["type"], answer["payload"]))
        return answers

    return script


HELLO = ("hello", {"protocol_version": 1})


def test_the_options_reach_the_server(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks --execute, --mapping, and limits from a file, which options override."""
    limits, mapping = tmp_path / "limits.yaml", tmp_path / "mapping.yaml"
    limits.write_text("instruction_characters: 1\nentries: 4\n")  # the instruction has 2 characters
    mapping.write_text("proprio: joints\ncameras: {corner: wrist, wrist: corner}\n")
    known = OBSERVATION | {"joints": OBSERVATION["states"]}
    script = conversation(
        HELLO, ("observation", OBSERVATION), ("observation", known | {"more": 1}), ("observation", known)
    )
    options = [
        "--limits",
        str(limits),
        "--limits.instruction_characters",
        "2",
        "--mapping",
        str(mapping),
        "--execute",
        "4",
    ]
    hello, unknown, many, acted = serve(monkeypatch, script, str(checkpoint), *options)
    assert hello[1]["capabilities"]["execute"] == 4  # the policy predicts 4
    assert "the observation has no 'joints'" in unknown[1]["error"]
    assert "'payload' has 5 keys; at most 4" in many[1]["error"]
    assert acted[0] == "action"
    options = ["--limits.instruction_characters", "1"]
    hello, long = serve(monkeypatch, conversation(HELLO, ("observation", OBSERVATION)), str(checkpoint), *options)
    assert hello[1]["capabilities"]["execute"] == 2  # as trained
    assert "'task_description' has 2 characters; at most 1" in long[1]["error"]


def test_the_limit_of_connections_and_the_key_reach_the_server(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from websockets.asyncio.client import connect
    from websockets.exceptions import InvalidStatus

    key = tmp_path / "key"
    key.write_text("k3y\n")

    async def script(url: str) -> list[int]:
        codes = []
        with_key = {"additional_headers": {"Authorization": "Bearer k3y"}}
        async with connect(url, **with_key):
            for headers in ({}, with_key):
                with pytest.raises(InvalidStatus) as refused:
                    await connect(url, **headers)
                codes.append(refused.value.response.status_code)
        return codes

    options = ["--api-key-file", str(key), "--limits.connections", "1"]
    assert serve(monkeypatch, script, str(checkpoint), *options) == [401, 503]


@pytest.mark.parametrize(("option", "kind"), [([], "error"), (["--implausible", "warn"], "action")])
def test_implausible_proprio_is_an_error_unless_the_option_says_warn(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, option: list[str], kind: str
) -> None:
    script = conversation(("observation", OBSERVATION | {"states": [0.0, 1e6, 0.0]}))
    ((answered, _),) = serve(monkeypatch, script, str(checkpoint), *option)
    assert answered == kind


def test_the_requested_robot_is_served_with_its_own_mapping(
    tmp_path: Path,
    refuses: Callable[..., bool],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    *motion, gripper = small.embodiment().action.groups
    declared = ActionSpace(groups=(*motion, dataclasses.replace(gripper, open=-1.0)))
    robots = [
        Robot(
            dataclasses.replace(small.embodiment(), name=name, cameras=("agentview", "eye_in_hand"), action=declared),
            small.statistics(),
        )
        for name in ("other", "libero_panda")
    ]
    torch.manual_seed(0)
    VLA(small.model(), robots).eval().save(tmp_path, {"name": "two"})
    assert refuses(tmp_path, "--port", "0")
    assert "which robot? --robot one of other, libero_panda" in capsys.readouterr().err
    pictures = dict(zip(("agentview", "wrist"), OBSERVATION["images"].values(), strict=True))
    script = conversation(HELLO, ("observation", OBSERVATION | {"images": pictures}))
    for name, kind in (("libero_panda", "action"), ("other", "error")):  # as vla-eval names LIBERO's cameras
        hello, acted = serve(monkeypatch, script, str(tmp_path), "--robot", name)
        assert hello[1]["model_server"] == f"anyvla/{name}"
        assert acted[0] == kind


def test_the_default_address_is_port_8000_of_this_machine(
    checkpoint: Path, refuses: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def bind(host: str, port: int) -> list[socket.socket]:
        asked.append((host, port))
        raise ConfigError("seen")

    monkeypatch.setattr("anyvla.serving.listening.bind", bind)
    assert refuses(checkpoint)
    assert asked == [("127.0.0.1", 8000)]


def test_a_device_that_cannot_be_used_is_refused(
    checkpoint: Path, refuses: Callable[..., bool], capsys: pytest.CaptureFixture[str]
) -> None:
    assert refuses(checkpoint, "--port", "0", "--device", "meta")
    assert "the device 'meta' cannot be used here" in capsys.readouterr().err


def test_ctrl_c_stops_the_server(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal is sent when the server prints that it listens."""
    said = []

    def say(text: str, **options: Any) -> None:
        said.append(text)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("anyvla.cli.serve.console.print", say)
    assert main(["serve", str(checkpoint), "--port", "0"]) == 0
    assert len(said) == 1
    assert said[0].startswith("vla-eval: small at ws://127.0.0.1:")
