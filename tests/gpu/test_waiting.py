"""Training and acting on a GPU: no operation mixes devices, and the host rarely waits for the device.

A pretend GPU counts the waits, see `tests/gpu/pretend.py`. It has no cuDNN, so an LSTM cannot run on it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.pretend import build_library

TRAINING, ACTING = 5, 4  # waits, at most. Policies that write tokens may wait once more for each 8 of them
STRUCTURES = {  # waits of an optimizer step and of acting
    "none-regression": (1, 1),
    "policy_head-gpt-regression": (1, 1),
    "recurrent-mingru-regression": (1, 1),
    "interleaved-regression": (1, 2),
    "none-flow": (1, 1),
    "policy_head-gpt-diffusion": (1, 1),
    "none-tokens-bins": (1, 4),  # 16 tokens
    "none-tokens-fast": (1, 4),  # 14 tokens at most
    "none-tokens-vq": (1, 3),
    "none-lm_tokens-bins": (1, 4),
    "none-expert": (2, 2),
    "interleaved-expert": (2, 4),
}
FAMILIES = {  # most waits are in the code of transformers
    "paligemma": (3, 3),
    "kosmos-2": (4, 2),
    "mllama": (3, 3),
    "gemma3": (6, 6),
    "smolvlm": (7, 7),
    "qwen2_5_vl": (30, 30),
}


@pytest.fixture(scope="module")
def waits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The waits of all policies, found in one process, for all workers, that believes that it has a GPU."""
    if shutil.which("g++") is None or sys.platform != "linux" or torch.version.cuda is not None:
        pytest.skip("the pretend GPU needs g++, Linux and a PyTorch without CUDA")
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    found = shared / "waits.json"
    with (shared / "waits.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.is_file():
            found.write_text(examine(shared))
    return json.loads(found.read_text())


def examine(folder: Path) -> str:
    """Return the waits of all policies as JSON."""
    command = [sys.executable, "-m", "tests.gpu.examine", *STRUCTURES, *FAMILIES]
    env, root = os.environ | {"LD_PRELOAD": str(build_library(folder))}, Path(__file__).parents[2]
    done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("name", [*STRUCTURES, *FAMILIES])
def test_the_host_waits_as_seldom_as_stated_and_results_are_those_of_a_cpu(waits: dict[str, Any], name: str) -> None:
    found = waits[name]
    assert "error" not in found, found["error"]
    step, act = (STRUCTURES | FAMILIES)[name]
    assert sum(found["step"].values()) <= step, found["step"]
    assert sum(found["act"].values()) <= act, found["act"]
    assert found["far"]["loss"] < 1e-4
    assert found["far"]["actions"] < 1e-2  # after two updates; Adam makes rounding larger


def test_what_is_stated_of_structures_is_within_the_limits() -> None:
    assert all(step <= TRAINING and act <= ACTING for step, act in STRUCTURES.values())


def test_it_notices_mixed_devices_and_waits(waits: dict[str, Any]) -> None:
    """The pretend GPU itself."""
    assert waits["pretend"] == {
        "mixed": "mm mixes devices: [(2, 2)] are on the CPU",
        "item": 1,
        "copies": {"free": 0, "pageable": 1, "blocking": 1, "back": 1},
        "indices": {"boolean": 1, "of the CPU": 1, "of the GPU": 0},
    }
