"""The launchers of docs/scaling.md, run in the small: torchrun, two machines, accelerate, SLURM with preemption."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest

from anyvla.interrupted import STOPPED
from tests.training.launched import ROOT, environment, free_port, torchrun
from tests.training.shared_runs import FLOW, Runs, assert_same

pytestmark = pytest.mark.slow  # each start of a launcher costs seconds
STEPS = 40
MODEL: dict[str, Any] = {"decoder": FLOW, "steps": STEPS, "checkpoint_every": 5}


def wait_until_logged(runs: Runs, run: str, lines: int) -> None:
    end = time.monotonic() + 120
    while runs.count_logged(run) < lines:
        assert time.monotonic() < end
        time.sleep(0.02)


def workers_of(launcher: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes that a launcher started, by rank."""
    children = psutil.Process(launcher.pid).children(recursive=True)
    return sorted((c for c in children if "RANK" in c.environ()), key=lambda c: int(c.environ()["RANK"]))


def test_the_report_of_torchrun_has_the_traceback(runs: Runs) -> None:
    run = runs.folder / "refused"
    out, err = torchrun("train", runs.recipe(batch_size=7), "--out", run, count=2).communicate(timeout=120)
    assert err.count("train: training.batch_size is 7") == 1
    report = err.partition("Root Cause (first observed failure)")[2]
    assert "check_batch_divides" in report
    assert "anyvla.config.ConfigError: training.batch_size is 7" in report
    assert out == ""


def test_torchrun_passes_a_stop_on_and_the_same_command_resumes(runs: Runs) -> None:
    recipe = runs.recipe(**MODEL)
    command = ("train", recipe, "--out", runs.folder / "run")
    launcher = torchrun(*command, count=2)
    wait_until_logged(runs, "run", 6)
    launcher.send_signal(signal.SIGTERM)
    _, err = launcher.communicate(timeout=60)
    steps = runs.count_logged("run")
    assert f"train: stopped after {steps} of {STEPS} steps" in err
    assert (runs.folder / f"run/train/step-{steps:08d}").is_dir()
    assert torchrun(*command, count=2).wait(120) == 0
    runs.finish(recipe, "straight", 1)
    assert_same(runs, "straight", "run", steps=STEPS)


def test_two_machines_train_one_policy_and_both_end_if_a_process_of_one_is_killed(runs: Runs) -> None:
    recipe = runs.recipe(**MODEL)
    command = ("train", recipe, "--out", runs.folder / "run")

    def start() -> list[subprocess.Popen[str]]:
        port = str(free_port())
        places = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", port, "--node-rank"]
        return [torchrun(*command, count=1, options=[*places, str(node)]) for node in range(2)]

    first, second = start()
    wait_until_logged(runs, "run", 6)
    [worker] = workers_of(second)
    worker.kill()
    begin = time.monotonic()
    assert first.communicate(timeout=60)[0] == ""
    assert second.communicate(timeout=60)[0] == ""
    assert time.monotonic() - begin < 20
    assert first.returncode == second.returncode == 1
    for launcher in start():
        assert launcher.wait(120) == 0
    runs.finish(recipe, "straight", 1)
    assert_same(runs, "straight", "run", steps=STEPS)


def test_accelerate_launches_the_same_training_and_cannot_change_it(runs: Runs) -> None:
    pytest.importorskip("accelerate")
    recipe = runs.recipe(decoder=FLOW)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", str(free_port())]

    def start(*options: str) -> subprocess.CompletedProcess[str]:
        given = [*command, *options, "-m", "anyvla", "train", str(recipe), "--out", str(runs.folder / "run")]
        return subprocess.run(given, env=environment(), capture_output=True, text=True, timeout=200)

    refused = start("--mixed_precision", "bf16")
    assert refused.returncode == 1
    message = "train: accelerate's configuration asks for mixed_precision bf16, and the recipe, which decides, does not"
    assert refused.stderr.count(message) == 1
    assert start("--mixed_precision", "no").returncode == 0
    runs.finish(recipe, "one", 1)
    assert_same(runs, "one", "run")


_SRUN = """#!{python}
# Pretends to be srun: starts the tasks, passes SIGTERM on to them, and returns the largest exit status.
import os, signal, subprocess, sys

command = [word for word in sys.argv[1:] if not word.startswith("--kill-on-bad-exit")]
shared = os.environ | {{"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost"}}
tasks = [
    subprocess.Popen(command, env=shared | {{"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)}})
    for task in range(2)
]
signal.signal(signal.SIGTERM, lambda number, _: [task.send_signal(number) for task in tasks])
sys.exit(max(task.wait() for task in tasks))
"""
_SCONTROL = """#!/bin/bash
echo "$@" >> {folder}/requeued
"""


def test_a_preempted_slurm_job_is_requeued_and_ends_as_if_it_never_was(runs: Runs) -> None:
    page = (ROOT / "docs/scaling.md").read_text()
    [script] = [block for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if "#SBATCH" in block]
    tools = runs.folder / "tools"
    tools.mkdir()
    files = {"train.sbatch": script, "srun": _SRUN, "scontrol": _SCONTROL}
    files["anyvla"] = '#!/bin/bash\nexec {python} -m anyvla "$@"\n'
    for name, text in files.items():
        filled = text if name == "train.sbatch" else text.format(python=sys.executable, folder=runs.folder)
        (tools / name).write_text(filled)
        (tools / name).chmod(0o755)
    recipe = runs.recipe(**MODEL)

    def submit() -> subprocess.Popen[str]:
        job = {"SLURM_JOB_ID": "42", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "anyvla", "MASTER_PORT": str(free_port())}
        return subprocess.Popen(
            ["bash", str(tools / "train.sbatch"), str(recipe), "--out", str(runs.folder / "run")],
            env=environment(**job, PATH=f"{tools}:{os.environ['PATH']}"), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    starts = []
    for lines in (6, 15):
        job = submit()
        wait_until_logged(runs, "run", lines)
        [srun] = [c for c in psutil.Process(job.pid).children() if str(tools / "srun") in c.cmdline()]
        srun.send_signal(signal.SIGTERM)  # as SLURM signals a step
        _, err = job.communicate(timeout=60)
        assert job.returncode == STOPPED, err
        steps = runs.count_logged("run")
        assert err.count("train: stopped after") == 1
        assert f"stopped after {steps} of {STEPS} steps" in err
        starts.append(steps)
    assert (runs.folder / "requeued").read_text() == "requeue 42\n" * 2
    assert starts[0] < starts[1] < STEPS
    job = submit()
    _, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    runs.finish(recipe, "straight", 1)
    assert_same(runs, "straight", "run", steps=STEPS)
