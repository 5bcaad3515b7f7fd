"""A sharded training gives the losses and the weights of one process, and any number of processes resumes from it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from anyvla.files import tensor_files
from tests.small import NANO, SMALLEST
from tests.training.shared_runs import FLOW, HEAD, Runs, assert_same

SHARD = ("--training.shard", "true")
MEASURED = ("--data.validation.episodes", 1, "--training.validate_every", 5)
COMBINED: dict[str, Any] = {
    "decoder": SMALLEST["decoder"],
    **HEAD,
    "backbone": NANO | {"layers": 3, "lora": {"rank": 4}},
    "ema": {"decay": 0.9},
    "gradient_checkpointing": True,
    "checkpoint_every": 7,
    "keep": {"last": 3},
}


def measurements(runs: Runs, run: str) -> list[float]:
    lines = (runs.folder / run / "train/log.jsonl").read_text().splitlines()
    return [of["validation.loss"] for of in map(json.loads, lines) if "validation.loss" in of]


def go_back(runs: Runs, run: str, to: str, step: int) -> None:
    """Copy a finished run as it was when it had a checkpoint after `step` steps."""
    shutil.copytree(runs.folder / run, runs.folder / to)
    shutil.rmtree(runs.folder / to / "checkpoint")
    for later in (runs.folder / to / "train").glob("step-*"):
        if int(later.name.removeprefix("step-")) > step:
            shutil.rmtree(later)


def is_sharded(folder: Path) -> bool:
    return len(tensor_files.list_files(folder / "training" / "state.safetensors")) > 2


def test_lora_average_and_checkpointing_are_sharded_together_and_resumed_in_one_process(runs: Runs) -> None:
    recipe = runs.recipe(**COMBINED)
    runs.finish(recipe, "one", 1, *MEASURED)
    assert runs.curve("one")["loss"].std() > 1e-2
    runs.finish(recipe, "sharded", 2, *MEASURED, *SHARD, "--training.accumulate", 2)
    assert_same(runs, "one", "sharded")
    assert measurements(runs, "sharded") == pytest.approx(measurements(runs, "one"), rel=1e-6)
    assert len(measurements(runs, "one")) == 4
    assert is_sharded(runs.folder / "sharded" / "checkpoint")
    go_back(runs, "sharded", "resumed", 14)
    runs.finish(recipe, "resumed", 1, *MEASURED, *SHARD)  # one process shards nothing
    assert not is_sharded(runs.folder / "resumed" / "checkpoint")
    assert_same(runs, "one", "resumed")


MUON: dict[str, Any] = {"decoder": FLOW, "optim": {"name": "muon", "lr": 1e-4, "warmup_steps": 5}}
UNFROZEN: dict[str, Any] = {
    "decoder": FLOW,
    "optim": {
        "lr": 1e-4,
        "warmup_steps": 5,
        "parts": {"language": {"unfreeze_at": 6}, "vision": {"train": False}, "decoder": {"lr": 1e-3}},
    },
}
EXPERT: dict[str, Any] = {"decoder": {"name": "expert", "width": 32, "mlp": 64}}


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("keys", [{"decoder": FLOW}, MUON, UNFROZEN, EXPERT, COMBINED], ids=str)
def test_losses_and_weights_are_those_of_one_process(runs: Runs, keys: dict[str, Any], count: int) -> None:
    recipe = runs.recipe(**keys)
    runs.finish(recipe, "one", 1)
    runs.finish(recipe, "sharded", count, *SHARD)
    tolerance = 2e-5 if keys is MUON else 1e-6  # Muon multiplies in bfloat16, which makes last bits larger
    assert_same(runs, "one", "sharded", tolerance=tolerance)


@pytest.mark.slow
def test_any_number_of_processes_sharded_or_not_resumes_from_either_form(runs: Runs) -> None:
    recipe = runs.recipe(**COMBINED)
    runs.finish(recipe, "whole", 1, *MEASURED)
    runs.finish(recipe, "sharded", 4, *MEASURED, *SHARD)
    for origin in ("whole", "sharded"):
        for count, options in ((1, ()), (2, ()), (2, SHARD), (4, SHARD)):
            run = f"{origin}-{count}-{len(options)}"
            go_back(runs, origin, run, 7)
            runs.finish(recipe, run, count, *MEASURED, *options)
            assert is_sharded(runs.folder / run / "checkpoint") == bool(options)
            assert_same(runs, "whole", run)


@pytest.mark.slow
def test_a_sharded_training_that_is_stopped_resumes(runs: Runs) -> None:
    recipe = runs.recipe(**COMBINED)
    runs.finish(recipe, "one", 1)
    running = runs.start(recipe, "stopped", 2, *SHARD)
    running.wait_until(lambda: runs.count_logged("stopped") >= 3)
    os.kill(running.processes[1], signal.SIGTERM)
    assert all(ended.status != 0 for ended in running.wait())
    saved = list((runs.folder / "stopped" / "train").glob("step-*"))
    assert len(saved) >= 1
    assert is_sharded(saved[-1])
    runs.finish(recipe, "stopped", 2)
    assert_same(runs, "one", "stopped")
