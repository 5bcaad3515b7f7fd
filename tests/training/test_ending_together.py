"""Processes that train together stop, fail and die together, and any number of them resumes."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from typing import Any

import numpy as np
import psutil
import pytest

from anyvla.interrupted import STOPPED, Interrupted
from tests.training.shared_runs import FLOW, Runs, assert_same

STEPS = 40
LONG: dict[str, Any] = {"decoder": FLOW, "steps": STEPS, "ema": {"decay": 0.9}}


@pytest.mark.parametrize(
    ("asked", "number"),
    [((1,), signal.SIGTERM), pytest.param((0, 1), signal.SIGINT, marks=pytest.mark.slow)],
)
def test_all_processes_stop_after_the_same_step_and_one_resumes(
    runs: Runs, asked: tuple[int, ...], number: signal.Signals
) -> None:
    recipe = runs.recipe(**LONG)
    running = runs.start(recipe, "stopped", 2)
    running.wait_until(lambda: runs.count_logged("stopped") >= 5)
    for rank in asked:
        os.kill(running.processes[rank], number)
    main, other = running.wait()
    assert (main.status, other.status) == (STOPPED, STOPPED)
    steps = runs.count_logged("stopped")
    assert 5 <= steps < STEPS
    assert f"train: stopped after {steps} of {STEPS} steps; run the same command to resume" in main.err
    assert "stop" not in other.err
    [saved] = (runs.folder / "stopped/train").glob("step-*")
    assert saved.name == f"step-{steps:08d}"
    runs.finish(recipe, "stopped", 1)
    runs.finish(recipe, "straight", 1)
    assert_same(runs, "straight", "stopped", steps=STEPS)


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_four_resume_from_its_last_checkpoint(runs: Runs) -> None:
    recipe = runs.recipe(**LONG, checkpoint_every=4)
    running = runs.start(recipe, "killed", 2)
    running.wait_until(lambda: runs.count_logged("killed") >= 6)
    os.kill(running.processes[1], signal.SIGKILL)
    begin = time.monotonic()
    main, killed = running.wait()
    assert time.monotonic() - begin < 15
    assert (main.status, killed.status) == (1, -signal.SIGKILL)
    assert "train: another process of this training died" in main.err
    [saved] = [path for path in (runs.folder / "killed/train").glob("step-*") if path.suffix != ".tmp"]
    assert json.loads((saved / "training/state.json").read_text())["step"] % 4 == 0
    runs.finish(recipe, "killed", 4)
    runs.finish(recipe, "straight", 1)
    assert_same(runs, "straight", "killed", steps=STEPS)


def test_a_dead_data_worker_ends_all_after_process_0_has_saved(runs: Runs) -> None:
    running = runs.start(runs.recipe(**LONG | {"steps": 2000}), "worker", 2, "--data.workers", 1)
    running.wait_until(lambda: runs.count_logged("worker") >= 5)
    for child in psutil.Process(running.processes[1]).children():
        if "spawn_main" in " ".join(child.cmdline()):
            child.kill()
    main, other = running.wait()
    assert (main.status, other.status) == (1, 1)
    assert f"train: process 1 of 2 (host {socket.gethostname()}): a worker process died (exit status -9)" in main.err
    assert other.err == ""
    steps = runs.count_logged("worker")
    assert (runs.folder / f"worker/train/step-{steps:08d}").is_dir()


def spoil_and_train(row: str, *arguments: str) -> int:
    """Train, with a number that is not finite in one row of the global batch of step 4."""
    from anyvla.cli.main import main
    from anyvla.training.batches import _Steps

    original = _Steps.make

    def make(self: Any, step: int) -> dict[str, Any]:
        made = original(self, step)
        if step == 3 and int(row) in self.rows:
            made["proprio"] = np.array(made["proprio"])
            made["proprio"][int(row) - self.rows.start, 0, 1] = np.nan
        return made

    _Steps.make = make  # type: ignore[method-assign]
    return main(["train", *arguments])


@pytest.mark.parametrize("row", [pytest.param(1, marks=pytest.mark.slow), 6])
def test_a_number_that_is_not_finite_is_named_on_whichever_process_it_is(runs: Runs, row: int) -> None:
    recipe = runs.recipe(**LONG, accumulate=2)
    main, other = runs.launch(spoil_and_train, 2, row, recipe, "--out", runs.folder / "spoiled")
    assert other.err == ""
    assert "step 4: loss nan" in main.err
    where = f"In process {row // 4} of 2 (host {socket.gethostname()}): "
    assert where in main.err
    assert "1 of 2 samples cause it: " in main.err
    assert "proprio group 'position', dim 1 is nan" in main.err


def measure_and_stop(*arguments: str) -> int:
    """Train; process 0 measures for longer than the others need for a step, and is then asked to stop."""
    import anyvla.cli.train as command
    from anyvla.cli.main import main

    class Slow:
        every, names, saves_first = 3, {"slow": True}, True

        def __init__(self, *_: Any) -> None: ...

        def report_to(self, *_: Any) -> None: ...

        def start(self, vla: Any) -> Slow:
            return self

        def describe(self) -> str:
            return "slow"

        def measure(self, step: int) -> dict[str, float]:
            time.sleep(1.0)
            if step == 6:
                raise Interrupted("stopped in the evaluation")
            return {"slow": 0.5}

    command.InTrainingEvaluation = Slow  # type: ignore[assignment, misc]
    return main(["train", *arguments, "--training.evaluate.benchmark", "metaworld/mt10"])


def test_the_others_wait_for_a_measurement_and_stop_with_it(runs: Runs) -> None:
    given = [runs.recipe(**LONG), "--out", runs.folder / "measured"]
    main, other = runs.launch(measure_and_stop, 2, *given)
    assert (main.status, other.status, other.err) == (STOPPED, STOPPED, "")
    assert "train: stopped in the evaluation" in main.err
    assert [line["step"] for line in runs.lines("measured") if "slow" in line] == [3]
    assert runs.count_logged("measured") == 6 + 1
    assert (runs.folder / "measured/train/step-00000006").is_dir()
