"""Check before the first step that the machine gives the processes enough file descriptors and shared memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from anyvla.config import ConfigError
from anyvla.training.processes import Processes

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_OWN, _OF_WORKER, _OF_PROCESS = 128, 8, 8  # file descriptors: of a training, for each worker, for each other process
# Shared memory that NCCL maps for a process: two segments of the size in its issues 342 and 1518, where 64 MB were too
# little for four GPUs and enough for two.
_NCCL_BYTES = 2 * 9_637_888
SHARED_MEMORY = Path("/dev/shm")


def check_file_descriptors(workers: int, processes: Processes) -> None:
    """Allow this process as many open files as it needs. Raises ConfigError if the system does not."""
    if resource is None:
        return
    needed = _OWN + _OF_WORKER * workers + _OF_PROCESS * processes.count
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"a process may open {hard} files here, and training needs {needed} with {workers} data workers and "
            f"{processes.count} processes: raise the limit (ulimit -n {needed}; docker run --ulimit nofile={needed}), "
            "or use fewer --data.workers"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def check_shared_memory(
    device: torch.device, processes: Processes, environment: Mapping[str, str] = os.environ
) -> None:
    """Raise ConfigError if /dev/shm is too small for the messages of NCCL between the GPUs of this machine."""
    if device.type != "cuda" or processes.local_count == 1 or environment.get("NCCL_SHM_DISABLE") == "1":
        return
    if not SHARED_MEMORY.is_dir():
        return
    space = os.statvfs(SHARED_MEMORY)
    free, needed = space.f_bavail * space.f_frsize, _NCCL_BYTES * processes.local_count
    if free < needed:
        raise ConfigError(
            f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free, and the {processes.local_count} GPUs of this machine need "
            f"{needed / 1e6:.0f} MB there to exchange gradients: give the container more (docker run --shm-size 1g), "
            "or set NCCL_SHM_DISABLE=1, which is slower"
        )
