from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from anyvla.cli.main import main
from anyvla.config import ConfigError
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.training.launchers import check_one_process
from tests.small import NANO, embodiment, episode

SRUN = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "train"}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, r"torchrun, .* started 2 processes \(WORLD_SIZE\)"),
        ({"WORLD_SIZE": "16"}, "started 16 processes"),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}, "Open MPI"),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, "Intel MPI"),
        (SRUN, "SLURM runs this with 2 tasks, .*--ntasks 1"),
        (SRUN | {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_ID": "0"}, "2 tasks"),
        (SRUN | {"SLURM_JOB_NAME": "interactive", "SLURM_STEP_ID": "3"}, "2 tasks"),  # srun in the shell of salloc
    ],
)
def test_one_of_several_processes_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_one_process(environment)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},  # torchrun --nproc-per-node 1
        {"OMPI_COMM_WORLD_SIZE": "1", "PMI_SIZE": "1"},
        {"WORLD_SIZE": "", "PMI_SIZE": "many"},
        SRUN | {"SLURM_NTASKS": "1"},  # sbatch --ntasks 1
        SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "0"},  # srun --ntasks 1 in a larger job
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash"},  # the shell of salloc
        {**SRUN, "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive"},  # the same, as a step of its own
    ],
)
def test_a_single_process_trains_whatever_started_it(environment: dict[str, str]) -> None:
    check_one_process(environment)


@pytest.mark.parametrize("command", [["train"], ["quickstart", "--recipe"]])
def test_the_command_stops_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    write_dataset(tmp_path / "dataset", embodiment(), [episode(12)])
    document = {
        "name": "small",
        "data": {"sources": [{"path": str(tmp_path / "dataset")}]},
        "model": {"backbone": NANO, "history": "none", "fuser": "identity", "decoder": "regression", "chunk": 4},
        "training": {"steps": 1, "batch_size": 1},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*command, str(tmp_path / "small.yaml"), "--out", str(tmp_path / "run")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "run").exists()
