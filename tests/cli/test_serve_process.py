"""The command in a process of its own: signals, logs, TLS."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgpack
import numpy as np
import pytest

from tests import small
from tests.serving.certificate import make_certificate


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "checkpoint"
    small.policy().save(folder, {"name": "small"})
    return folder


@contextlib.contextmanager
def serving(*options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start a server in a process. Yield the process and its port."""
    command = [sys.executable, "-m", "anyvla.cli.main", "serve", *options, "--port", "0"]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | environment
    )
    try:
        assert server.stdout is not None
        first = server.stdout.readline()
        assert first.startswith("vla-eval: small at ws://127.0.0.1:"), first
        yield server, int(first.split(":")[-1].split(",")[0])
    finally:
        server.kill()
        server.wait()


def test_a_status_port_a_certificate_and_logs_in_json(checkpoint: Path, tmp_path: Path) -> None:
    """The address is announced when the server is ready. Every line is a JSON object, and none has the key."""
    files = make_certificate(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "anyvla.cli.main",
        "serve",
        str(checkpoint),
        "--port",
        "0",
        "--log-format",
        "json",
        "--log-level",
        "debug",
    ]
    command += ["--status-port", str(port), "--tls-cert", str(files.certificate), "--tls-key", str(files.key)]
    environment = os.environ | {"ANYVLA_API_KEY": "s3cret-k3y"}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        assert server.stdout is not None
        first = json.loads(server.stdout.readline())
        assert first["message"].startswith("vla-eval: small at wss://127.0.0.1:")
        trusts = ssl.create_default_context(cafile=str(files.certificate))
        with urllib.request.urlopen(f"https://127.0.0.1:{port}/readyz", timeout=20, context=trusts) as answer:
            assert answer.status == 200
        connect = pytest.importorskip("websockets.sync.client").connect
        url = first["message"].split(" at ")[1]
        with pytest.raises(Exception, match="401"):
            connect(url, ssl=trusts, additional_headers={"Authorization": "Bearer s3cret-k3"})
        with connect(url.replace("wss://", "wss://any:s3cret-k3y@"), ssl=trusts) as client:
            client.send("no msgpack")
            client.recv(timeout=20)
        fault = json.loads(server.stdout.readline())
        assert (fault["outcome"], fault["request"]) == ("error", "r1")
        assert "messages are binary msgpack" in fault["message"]
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
    assert "s3cret" not in server.stdout.read()


def test_requests_in_progress_are_answered_after_a_signal(checkpoint: Path) -> None:
    connect = pytest.importorskip("websockets.sync.client").connect
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (1000, 1000, 3), np.uint8)  # slow to send
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
            server.send_signal(signal.SIGTERM)
            assert msgpack.unpackb(busy.recv(timeout=20))["seq"] == 3
            with pytest.raises(Exception, match="the server stops"):
                idle.recv(timeout=20)
        assert server.wait(20) == 0
        assert server.stdout is not None
        assert server.stdout.read() == ""


def test_a_signal_ends_the_command_while_a_library_loads() -> None:
    """No handler in Python runs before a call of C code returns."""
    script = (
        "import anyvla.serving.protocols.registry as registry\n"
        "from anyvla.cli.main import main\n"
        "registry.load_protocol = lambda name: (print('loads', flush=True), sum(range(10**12)))\n"
        "main(['serve', 'a-run'])"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as command:
        try:
            assert command.stdout is not None
            assert command.stdout.readline() == b"loads\n"
            command.send_signal(signal.SIGTERM)
            assert command.wait(20) == -signal.SIGTERM
        finally:
            command.kill()


def test_the_process_ends_without_the_cleanup_of_the_interpreter() -> None:
    """With PyTorch, it takes seconds on a busy machine."""
    script = (
        "import atexit, sys\n"
        "from anyvla.cli.main import main\n"
        "atexit.register(print, 'cleaned up')\n"
        "sys.argv = ['anyvla', 'serve', 'a-run', '--protocol', 'none']\n"
        "print('begun', end='')\n"
        "main()"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONUTF8": "1"})
    assert (done.returncode, done.stdout) == (1, "begun")
    assert "protocols has no 'none'" in done.stderr
