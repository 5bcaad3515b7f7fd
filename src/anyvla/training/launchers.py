"""Training is one process. Launchers of several would start as many trainings of their own."""

from __future__ import annotations

import os
from collections.abc import Mapping

from anyvla.config import ConfigError

# The number of processes that a launcher started, by the variables it sets in each of them.
_SIZES = {
    "WORLD_SIZE": "torchrun, accelerate or deepspeed",
    "OMPI_COMM_WORLD_SIZE": "mpirun (Open MPI)",
    "PMI_SIZE": "mpirun (MPICH, Intel MPI)",
    "MV2_COMM_WORLD_SIZE": "mpirun (MVAPICH)",
    "JSM_NAMESPACE_SIZE": "jsrun",
    "FLUX_JOB_SIZE": "flux",
}

_SHELLS = ("bash", "sh", "zsh", "interactive")  # names that salloc gives to jobs


def check_one_process(environment: Mapping[str, str] = os.environ) -> None:
    """Raise ConfigError in one of several processes of a launcher."""
    for variable, launcher in _SIZES.items():
        if _count(environment.get(variable)) > 1:
            raise ConfigError(
                f"{launcher} started {environment[variable]} processes ({variable}), each of them a training of its "
                "own: anyvla trains in one process, on one device. Start it once, without the launcher"
            )
    # A shell of salloc has the variables of its job, but is one process. A step of a job may have fewer tasks than it.
    shell = environment.get("SLURM_JOB_NAME") in _SHELLS and "SLURM_STEP_ID" not in environment
    tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS")
    if "SLURM_PROCID" in environment and not shell and _count(tasks) > 1:
        raise ConfigError(
            f"SLURM runs this with {tasks} tasks, and each would be a training of its own: anyvla trains in one "
            "process, on one device. Ask for one task: --ntasks 1, of sbatch or of srun"
        )


def _count(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 1
