from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from anyvla.cli.main import main
from anyvla.config import ConfigError
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.training.launchers import Launch, check_one_process, find_first_node, read_launch
from tests.small import NANO, embodiment, episode

SRUN = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "train"}
STEP = SRUN | {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "gpu[3-4]",
}
TORCHRUN = {
    "WORLD_SIZE": "16",
    "RANK": "9",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "gpu07",
    "MASTER_PORT": "29501",
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (TORCHRUN, Launch("torchrun", 9, 16, 1, "gpu07", 29501)),
        (TORCHRUN | {"ACCELERATE_MIXED_PRECISION": "no"}, Launch("accelerate", 9, 16, 1, "gpu07", 29501)),
        (TORCHRUN | STEP, Launch("torchrun", 9, 16, 1, "gpu07", 29501)),  # srun starts one torchrun on each machine
        (STEP, Launch("srun", 0, 2, 0, "gpu3", 20007)),
        (STEP | {"SLURM_PROCID": "1", "SLURM_LOCALID": "1"}, Launch("srun", 1, 2, 1, "gpu3", 20007)),
        (STEP | {"SLURM_STEP_ID": "2", "SLURM_JOB_ID": "12000"}, Launch("srun", 0, 2, 0, "gpu3", 20002)),
        (STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}, Launch("srun", 0, 2, 0, "10.0.0.1", 29500)),
        (STEP | {"PMI_SIZE": "2", "PMI_RANK": "0"}, Launch("srun", 0, 2, 0, "gpu3", 20007)),  # srun --mpi=pmi2
        (STEP | {"SLURM_JOB_NAME": "interactive"}, Launch("srun", 0, 2, 0, "gpu3", 20007)),  # in the shell of salloc
    ],
)
def test_a_process_finds_its_position(environment: dict[str, str], expected: Launch) -> None:
    assert read_launch(environment) == expected


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu07", "gpu07"), ("gpu[07-09,12],cpu1", "gpu07"), ("a1,b[2-3]", "a1"), ("r[1-2]n[04,06]", "r1n04")],
)
def test_the_first_node_of_a_list_has_process_0(nodes: str, first: str) -> None:
    assert find_first_node(nodes) == first


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "WORLD_SIZE is 2, but MASTER_ADDR, MASTER_PORT are not"),
        (TORCHRUN | {"RANK": "sixteen"}, "RANK is 'sixteen'"),
        (TORCHRUN | {"RANK": "16"}, "process 16 of 16, number 1 of its machine"),
        (TORCHRUN | {"LOCAL_RANK": "10"}, "process 9 of 16, number 10 of its machine"),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}, "Open MPI.* with torchrun, accelerate"),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, "Intel MPI"),
        (STEP | {"PMI_SIZE": "8", "PMI_RANK": "1"}, "Intel MPI"),  # mpirun, whose helpers srun has started
        (SRUN, r"the SLURM job has 2 tasks, and this is its script.*--ntasks 1"),
    ],
)
def test_a_launch_that_cannot_be_read_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_launch(environment)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},  # torchrun --nproc-per-node 1
        {"OMPI_COMM_WORLD_SIZE": "1", "PMI_SIZE": "1"},
        {"WORLD_SIZE": "", "PMI_SIZE": "many"},
        SRUN | {"SLURM_NTASKS": "1"},  # sbatch --ntasks 1
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},  # srun --ntasks 1 in a larger job
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash"},  # the shell of salloc
        {**SRUN, "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive"},  # the same, as a step of its own
    ],
)
def test_a_single_process_trains_whatever_started_it(environment: dict[str, str]) -> None:
    assert read_launch(environment) is None


def test_other_commands_are_one_process() -> None:
    check_one_process("serve", {})
    check_one_process("serve", SRUN)  # in the script of a job
    with pytest.raises(ConfigError, match="torchrun started 16 processes, each of them an anyvla serve of its own"):
        check_one_process("serve", TORCHRUN)


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
