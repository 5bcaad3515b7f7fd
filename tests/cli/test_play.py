from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("websockets")


def test_a_folder_that_is_missing_is_named_before_pytorch_is_imported() -> None:
    script = (
        "import sys; from anyvla.cli.main import main; main(['play', 'no/such', '--port', '0']); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "there is no folder no/such: give a run folder" in " ".join(done.stderr.split())
    assert done.stdout.strip() == "False"
