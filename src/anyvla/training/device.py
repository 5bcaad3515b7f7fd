"""Choose the device and the precision of training."""

from __future__ import annotations

import torch

from anyvla.config import ConfigError
from anyvla.registry import suggest
from anyvla.training.processes import Processes

_USUAL = ("auto", "cpu", "cuda", "mps")


def pick_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is a GPU if there is one.

    Raises ConfigError, with the devices of this machine, if it cannot be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        kind = name.partition(":")[0].replace("gpu", "cuda")
        raise ConfigError(
            f"there is no device {name!r}: {suggest(kind, _USUAL)} This machine has {_list_devices()}"
        ) from None
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # torch without CUDA raises AssertionError
        reason = "" if device.type in _USUAL else f" ({str(error).splitlines()[0].partition('. ')[0]})"
        raise ConfigError(
            f"the device {name!r} cannot be used here{reason}: this machine has {_list_devices()}, and auto picks one "
            "of them; anyvla doctor says more"
        ) from None
    return device


def pick_own_device(name: str, processes: Processes) -> torch.device:
    """Return the device of this process: `cuda:LOCAL_RANK` where there are GPUs, for one process that of `pick_device`.

    Raises ConfigError for a device that not every process can have.
    """
    if processes.count == 1:
        return pick_device(name)
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"training.device is {name}, but {processes.count} processes train: each takes a GPU of its own with "
            "--training.device auto, or cores with cpu"
        )
    device = pick_device(name)
    if device.type == "cuda":
        device = _own_gpu(processes)
        torch.cuda.set_device(device)
    _check_distinct(device, processes)
    return device


def _own_gpu(processes: Processes) -> torch.device:
    """Return the GPU of this process: the one of its number, or the only one that its launcher shows to it."""
    there, number = torch.cuda.device_count(), processes.local_rank
    if number >= there > 1:
        raise ConfigError(
            f"{processes.local_count} processes run on this machine, which has {there} GPUs: start one for each, as "
            f"with torchrun --nproc-per-node {there}"
        )
    return torch.device("cuda", number if number < there else 0)


def _check_distinct(device: torch.device, processes: Processes) -> None:
    """Raise ConfigError if two processes have the same GPU, or if some have a GPU and others have none."""
    gpu = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None
    gpus = processes.gather(gpu)
    first: dict[tuple[str, str], int] = {}
    for rank, own in enumerate(gpus):
        if (own is None) != (gpus[0] is None):
            on_gpu, on_cpu = (rank, 0) if gpus[0] is None else (0, rank)
            raise ConfigError(
                f"{processes.describe(on_gpu)} has a GPU and {processes.describe(on_cpu)} has none: train on machines "
                "with GPUs only, or with --training.device cpu"
            )
        if own is not None and first.setdefault((processes.hosts[rank], own), rank) != rank:
            raise ConfigError(
                f"{processes.describe(first[processes.hosts[rank], own])} and {processes.describe(rank)} have the same "
                "GPU: start one process for each GPU"
            )


def _list_devices() -> str:
    """Return the names of the devices that PyTorch can use here."""
    gpus = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    text = ", ".join(["cpu", *gpus, *mps])
    return text if gpus or torch.version.cuda else f"{text} (PyTorch is installed without CUDA)"


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the autocast type. On CPUs without bfloat16 instructions, bfloat16 is slower than float32."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32
