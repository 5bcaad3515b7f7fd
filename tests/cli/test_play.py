from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("websockets")

from anyvla.cli.main import main


def test_a_folder_that_is_missing_is_named_before_pytorch_is_imported() -> None:
    script = (
        "import sys; from anyvla.cli.main import main; main(['play', 'no/such', '--port', '0']); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "there is no folder no/such: give a run folder" in " ".join(done.stderr.split())
    assert done.stdout.strip() == "False"


def test_letting_nobody_in_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play", "--port", "0", "--no-auth"]) == 1
    assert "--no-auth lets other machines open the page, and they can't reach it" in capsys.readouterr().err
