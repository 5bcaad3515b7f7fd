"""Tensors of which each process holds some rows, as FSDP shards weights (`torch.distributed.tensor.DTensor`).

Every function takes tensors that are not sharded as well, so that its callers need not know. None imports
`torch.distributed`: trainings of one process do without it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Any) -> bool:
    """Return whether each process holds some rows of a tensor only."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """Return the rows that this process holds, which may be none. Their storage is that of the tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def gather(tensor: Tensor) -> Tensor:
    """Return the whole tensor. All processes must call it, and in the same order of tensors."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def own_rows(tensor: Tensor) -> slice:
    """Return the rows of the whole tensor that this process holds."""
    if not is_sharded(tensor):
        return slice(None)
    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    [placement] = tensor.placements  # type: ignore[attr-defined]
    assert placement.dim == 0
    rows = len(tensor)
    most = -(-rows // mesh.size())  # in each process but the last ones
    begin = min(rows, mesh.get_local_rank() * most)
    return slice(begin, min(rows, begin + most))


@torch.no_grad()
def copy_rows(target: Tensor, whole: Tensor) -> None:
    """Copy the rows of a whole tensor that this process holds of `target`."""
    local(target).copy_(whole[own_rows(target)] if is_sharded(target) else whole)


@torch.no_grad()
def shard_like(tensor: Tensor, whole: Tensor) -> Tensor:
    """Return a whole tensor of the same shape on the device of `tensor`, sharded as that is."""
    if not is_sharded(tensor):
        return whole.to(tensor.device)
    out = torch.empty_like(tensor, dtype=whole.dtype)
    copy_rows(out, whole)
    return out
