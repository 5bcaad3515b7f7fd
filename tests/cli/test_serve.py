from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgpack
import numpy as np
import pytest
import small

from anyvla.cli.main import main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "checkpoint"
    small.policy().save(folder, {"name": "small"})
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--execute", "5"], "--execute 5: the policy predicts 4 actions at once"),
        (["--robot", "smal"], "which robot? --robot one of small"),
        (["--mapping", "MAPPING"], "the mapping names the camera 'top'; the policy has corner, wrist"),
    ],
)
def test_bad_options(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text("cameras: {top: image}\n")
    given = [str(mapping) if option == "MAPPING" else option for option in options]
    assert main(["serve", str(checkpoint), "--port", "0", *given]) == 1
    assert message in capsys.readouterr().err


@contextlib.contextmanager
def serving(*options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server in a process, and its port."""
    command = [sys.executable, "-m", "anyvla.cli.main", "serve", *options, "--port", "0"]
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell has commands in the background ignore it
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | environment
    )
    signal.signal(signal.SIGINT, before)
    try:
        assert server.stdout is not None
        first = server.stdout.readline()
        assert first.startswith("vla-eval: small at ws://127.0.0.1:"), first
        yield server, int(first.split(":")[-1].split(",")[0])
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_answers_what_is_in_progress(checkpoint: Path, number: signal.Signals) -> None:
    connect = pytest.importorskip("websockets.sync.client").connect
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (1000, 1000, 3), np.uint8)  # takes a while
    array = {"__ndarray__": True, "dtype": "|u1", "shape": list(image.shape), "data": image.tobytes()}
    observation = {"images": {"corner": array, "wrist": array}, "states": [0.0, 0.0, 0.0], "task_description": "go"}
    message = {"type": "observation", "payload": observation, "seq": 3, "timestamp": 0.0}
    with serving(str(checkpoint.parent), ANYVLA_API_KEY="k3y\n") as (server, port):
        with pytest.raises(Exception, match="401"):
            connect(f"ws://127.0.0.1:{port}")
        url = f"ws://any:k3y@127.0.0.1:{port}"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=20) as answer:
            assert answer.status == 200
        with connect(url) as idle, connect(url) as busy:
            busy.send(msgpack.packb(message))
            time.sleep(0.1)  # some of it has arrived
            server.send_signal(number)
            assert msgpack.unpackb(busy.recv(timeout=20))["seq"] == 3
            with pytest.raises(Exception, match="the server stops"):
                idle.recv(timeout=20)
        assert server.wait(20) == 0
        assert server.stdout is not None
        assert server.stdout.read() == ""


def test_a_port_in_use(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", str(checkpoint), "--port", str(port)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"port {port} is in use: stop the program that has it, or give another --port" in line


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
        (["--mapping", "no.yaml"], "no.yaml is missing"),
    ],
)
def test_options_that_cannot_be(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    port = [] if "--port" in options else ["--port", "0"]
    assert main(["serve", str(checkpoint), *port, *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_key_and_no_auth_contradict(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYVLA_API_KEY", "k3y")
    assert main(["serve", str(checkpoint), "--port", "0", "--no-auth"]) == 1
    assert "--no-auth contradicts the API key" in capsys.readouterr().err
