from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

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
    assert main(["serve", str(checkpoint), *given]) == 1
    assert message in capsys.readouterr().err


def test_it_listens_until_it_is_stopped(checkpoint: Path) -> None:
    command = [sys.executable, "-m", "anyvla.cli.main", "serve", str(checkpoint.parent), "--port", "0"]
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell has commands in the background ignore it
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    signal.signal(signal.SIGINT, before)
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        port = said.split(":")[-1].split(",")[0]
        assert said.startswith("vla-eval: small at ws://127.0.0.1:")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=20) as answer:
            assert answer.status == 200
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.wait()
