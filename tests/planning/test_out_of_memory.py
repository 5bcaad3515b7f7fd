from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from anyvla.config import build
from anyvla.planning import out_of_memory
from anyvla.planning.out_of_memory import is_out_of_memory
from anyvla.recipe import Recipe
from anyvla.training.config import TrainingConfig
from tests.small import model, recipe

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the address space")


def test_a_real_failure_to_allocate_becomes_the_plan_and_three_changes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.planning.exhausted", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1
    assert "train: training ran out of memory" in done.stderr
    assert "Traceback" not in done.stderr
    for part in ("weights", "gradients", "optimizer", "activations", "together"):
        assert f"  {part} " in done.stderr
    assert "  1. --training.accumulate " in done.stderr
    assert "  2. --training.gradient_checkpointing true" in done.stderr
    assert "  3. " in done.stderr


def test_the_plan_is_that_of_one_of_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = []

    def plan(planned_recipe: Recipe, *_: Any, **__: Any) -> None:
        planned.append(planned_recipe.training.batch_size)
        raise ValueError("none here")

    monkeypatch.setattr(out_of_memory, "make_plan", plan)
    given = recipe(model(), build(TrainingConfig, {"batch_size": 32}))
    text = out_of_memory.explain_out_of_memory(MemoryError("full"), given, tmp_path, processes=4)
    assert planned == [8]
    assert "in one of 4 processes. Below, batch_size is the 8 windows of one process" in text


def test_other_errors_are_not_taken_for_it() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"))
    assert not is_out_of_memory(RuntimeError("shape '[3]' is invalid for input of size 4"))
    assert not is_out_of_memory(ValueError("out of memory"))
