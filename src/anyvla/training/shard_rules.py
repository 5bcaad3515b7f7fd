"""Refuse what cannot be sharded (`training.shard`), each with the reason, before any data or weights are read."""

from __future__ import annotations

import torch

from anyvla.config import ConfigError
from anyvla.training.config import TrainingRecipe
from anyvla.training.processes import Processes

_WITHOUT = "or use --training.shard false, with which each process has all weights"


def check_shardable(recipe: TrainingRecipe, device: torch.device, processes: Processes) -> None:
    """Raise ConfigError if several processes cannot shard the training of a recipe. One process shards nothing."""
    if not recipe.training.shard or processes.count == 1:
        return
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"training.shard works on GPUs of CUDA and on the CPU, not on {device}: {_WITHOUT}")
    if not _has_api():
        raise ConfigError(
            f"training.shard needs PyTorch 2.13 or newer, this is {torch.__version__}: update it, {_WITHOUT}"
        )
    if getattr(recipe.model.backbone.config, "quantize", None) is not None:
        raise ConfigError(
            "training.shard splits weights by rows, and model.backbone.quantize packs them in blocks whose scales are "
            f"kept beside them: leave out quantize, {_WITHOUT} (in 4 or 8 bits they are small)"
        )
    if recipe.training.optim.name == "adamw8bit":
        raise ConfigError(
            "training.shard splits the optimizer's state by rows, and adamw8bit rounds it in blocks of 256 numbers, "
            "which would be others for each number of processes: use --training.optim.name adamw (its state is "
            f"sharded), {_WITHOUT}"
        )
    if getattr(recipe.model.history.config, "at_once", None) is not None:
        raise ConfigError(
            "training.shard gathers each layer where all processes run it, and model.history.at_once runs the layers "
            "once for each piece of the longest episode of a process, whose number differs: use "
            f"--training.gradient_checkpointing true in its place, {_WITHOUT}"
        )


def _has_api() -> bool:
    from torch.distributed import fsdp

    module = getattr(fsdp, "FSDPModule", None)
    return hasattr(module, "set_force_sum_reduction_for_comms") and hasattr(module, "set_reduce_scatter_unused_params")
