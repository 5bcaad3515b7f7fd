"""Read from the environment how many processes a launcher started, and which of them this one is.

torchrun and `accelerate launch` set RANK, WORLD_SIZE, LOCAL_RANK and the address of the first process. `srun` with one
task for each process sets SLURM_* variables, from which the same follows. Nothing here imports PyTorch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from anyvla.config import ConfigError

# The number of processes that other launchers started, by the variables they set in each of them.
_NOT_READ = {
    "OMPI_COMM_WORLD_SIZE": "mpirun (Open MPI)",
    "PMI_SIZE": "mpirun (MPICH, Intel MPI)",
    "MV2_COMM_WORLD_SIZE": "mpirun (MVAPICH)",
    "JSM_NAMESPACE_SIZE": "jsrun",
    "FLUX_JOB_SIZE": "flux",
}
_SHELLS = ("bash", "sh", "zsh", "interactive")  # names that salloc gives to jobs
_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_FIRST_PORT, _PORTS = 20_000, 12_000  # below the ports that Linux gives to outgoing connections


@dataclass(frozen=True)
class Launch:
    """The position of this process among those that a launcher started."""

    launcher: str
    rank: int
    count: int
    local_rank: int  # on its machine
    address: str  # of the machine of process 0
    port: int


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """Return the position of this process; None if it is the only one.

    Raises ConfigError for a launcher that is not read, and for variables that are incomplete or contradict each other.
    """
    if _count(environment.get("WORLD_SIZE")) > 1:
        return _read_torchrun(environment)
    step = environment.get("SLURM_STEP_NUM_TASKS")
    for variable, launcher in _NOT_READ.items():
        if variable == "PMI_SIZE" and environment.get(variable) == step:  # srun sets it too, where pmi2 is its default
            continue
        if _count(environment.get(variable)) > 1:
            raise ConfigError(
                f"{launcher} started {environment[variable]} processes ({variable}), each of them a training of its "
                "own: start them with torchrun, accelerate launch or srun"
            )
    tasks = step or environment.get("SLURM_NTASKS")  # a step may have fewer
    if "SLURM_PROCID" not in environment or _count(tasks) <= 1:
        return None
    if "SLURM_STEP_ID" in environment:
        return _read_srun(environment)
    if environment.get("SLURM_JOB_NAME") in _SHELLS:  # of salloc, which is one process
        return None
    raise ConfigError(
        f"the SLURM job has {tasks} tasks, and this is its script, which runs once: start the command with srun, or "
        "ask for one task (--ntasks 1)"
    )


def check_one_process(command: str, environment: Mapping[str, str] = os.environ) -> None:
    """Raise ConfigError in one of several processes of a launcher, for a command that is one process."""
    script = "SLURM_PROCID" in environment and "SLURM_STEP_ID" not in environment  # of a job; it runs once
    found = None if script and "WORLD_SIZE" not in environment else read_launch(environment)
    if found is not None:
        raise ConfigError(
            f"{found.launcher} started {found.count} processes, each of them an anyvla {command} of its own: start "
            "it once, without the launcher. Only anyvla train runs in several processes"
        )


def _read_torchrun(environment: Mapping[str, str]) -> Launch:
    lacking = [name for name in _OF_TORCHRUN if not environment.get(name)]
    if lacking:
        raise ConfigError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']}, but {', '.join(lacking)} "
            f"{'is' if len(lacking) == 1 else 'are'} not set: start the processes with torchrun or accelerate launch, "
            "or unset WORLD_SIZE to train in one process"
        )
    rank, count, local_rank = (_read_number(environment, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    accelerate = any(name.startswith("ACCELERATE_") for name in environment)
    launch = Launch(
        "accelerate" if accelerate else "torchrun",
        *(rank, count, local_rank, environment["MASTER_ADDR"], _read_number(environment, "MASTER_PORT")),
    )
    return _check(launch)


def _read_srun(environment: Mapping[str, str]) -> Launch:
    count = environment.get("SLURM_STEP_NUM_TASKS") or environment["SLURM_NTASKS"]
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    job = _count(environment.get("SLURM_JOB_ID")) + _count(environment.get("SLURM_STEP_ID"))
    port = environment.get("MASTER_PORT")
    launch = Launch(
        "srun",
        _read_number(environment, "SLURM_PROCID"),
        int(count),
        _read_number(environment, "SLURM_LOCALID"),
        environment.get("MASTER_ADDR") or find_first_node(nodes),
        int(port) if port is not None and port.isdecimal() else _FIRST_PORT + job % _PORTS,
    )
    return _check(launch)


def find_first_node(nodes: str) -> str:
    """Return the first name of SLURM's list of nodes: "gpu07" of "gpu[07-09,12],cpu1"."""
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first)


def _check(launch: Launch) -> Launch:
    if not 0 <= launch.local_rank <= launch.rank < launch.count:
        raise ConfigError(
            f"{launch.launcher} set contradicting variables: process {launch.rank} of {launch.count}, number "
            f"{launch.local_rank} of its machine"
        )
    return launch


def _read_number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal():
        raise ConfigError(f"{name} is {text!r} in the environment, and a number is expected")
    return int(text)


def _count(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 1
