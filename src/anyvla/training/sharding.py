"""Shard a policy over the processes of a training (`training.shard`), with FSDP2 of PyTorch.

Each process keeps a part of every weight, of its gradient and of its optimizer state. The weights of a repeated layer
are gathered where the layer runs, and freed after it. Weights stay float32 and autocast computes as in one process:
FSDP's own mixed precision would also round the parts that compute in float32.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from anyvla.backbones.repeated_layers import find_repeated_layers
from anyvla.config import ConfigError
from anyvla.files.sharded_tensors import is_sharded
from anyvla.policy import VLA
from anyvla.training.processes import Processes

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

_METHODS = ("loss", "read", "predict", "act")  # of the policy, which run its layers


def shard(vla: VLA, processes: Processes, device: torch.device) -> None:
    """Shard the weights of a policy and move it to `device`, layer by layer. One process only moves it.

    Raises ConfigError for a trained weight that is a single number, which cannot be split.
    """
    if processes.count == 1:
        vla.to(device)
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # FSDP warns of layers whose output is a view; none of ours is changed in place
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    mesh = init_device_mesh(device.type, (processes.count,))
    whole = _find_whole(vla)
    for weight in vla.parameters():
        weight.data = weight.data.contiguous()
    for layer in _find_units(vla):
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    fully_shard(vla, mesh=mesh, reshard_after_forward=False, ignored_params=whole)
    for module in _units(vla):
        # sums over the processes: losses are divided by the global count of elements
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        module.set_reduce_scatter_unused_params(True, recurse=False)  # processes may use other weights in a step
    for name in _METHODS:
        register_fsdp_forward_method(vla, name)
    vla.to(device)


@contextlib.contextmanager
def gathered(vla: VLA) -> Iterator[None]:
    """Give each process all weights of a policy for the duration of the context.

    Within it a process may run the policy alone, also backward: nothing is sent. All processes must enter and leave it.
    """
    units = list(_units(vla)) if is_sharded(vla.queries) else []
    for unit in units:
        unit.set_reshard_after_forward(False)
        unit.set_reshard_after_backward(False)
        unit.set_requires_gradient_sync(False)
        unit.unshard()
    try:
        yield
    finally:
        if units:
            vla.zero_grad(set_to_none=True)  # of the gathered weights, which the next step would add to its own
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(unit is not vla)
            unit.set_reshard_after_backward(True)
            unit.set_requires_gradient_sync(True)


def list_weights(vla: VLA) -> list[Any]:
    """Return the sharded weights of a policy.

    Each has `sharded_param`, and `_unsharded_param`, the weight that layers use, once it was gathered for the first
    time. PyTorch has no public way to the latter.
    """
    groups = [group for unit in _units(vla) for group in unit._get_fsdp_state()._fsdp_param_groups]
    return [of for group in groups for of in group.fsdp_params]


def _find_units(vla: VLA) -> list[nn.Module]:
    """Return the layers that are gathered one at a time. Layers that share weights with others are not among them."""
    at_queries = tuple(getattr(vla.backbone, "query_only_modules", ()))
    layers = [*find_repeated_layers(vla, at_queries), *at_queries]
    uses: dict[nn.Parameter, set[int]] = {}
    for module in vla.modules():
        for weight in module.parameters(recurse=False):
            uses.setdefault(weight, set()).add(id(module))
    return [
        layer
        for layer in layers
        if all(uses[weight] <= {id(module) for module in layer.modules()} for weight in layer.parameters())
    ]


def _find_whole(vla: VLA) -> set[nn.Parameter]:
    """Return the weights that each process keeps whole: of the codec, which is used on the CPU, and single numbers."""
    single = {name: weight for name, weight in vla.named_parameters() if weight.ndim == 0}
    if trained := [name for name, weight in single.items() if weight.requires_grad]:
        raise ConfigError(
            f"training.shard splits every trained weight by its first dim, and {trained[0]} is a single number: train "
            "with --training.shard false"
        )
    return set(single.values()) | set(() if vla.codec is None else vla.codec.parameters())


def _units(vla: VLA) -> Iterator[FSDPModule]:
    """Return the policy itself and the layers that `shard` chose."""
    from torch.distributed.fsdp import FSDPModule

    return (module for module in vla.modules() if isinstance(module, FSDPModule))
