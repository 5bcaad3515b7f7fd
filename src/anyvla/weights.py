"""Weights on disk: one safetensors file, written and read tensor by tensor, so that no second copy lies in memory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_model
from torch import Tensor, nn


def save(module: nn.Module, path: Path) -> None:
    """Write all parameters and buffers of `module`; tied ones once."""
    save_model(module, str(path))


@torch.no_grad()
def load(module: nn.Module, path: Path) -> None:
    """Fill `module` with what `save` wrote of one built alike.

    Raises ValueError if the file is damaged, or lacks a tensor, has one too many or one of another shape.
    """
    tensors = module.state_dict(keep_vars=True)
    try:
        with safe_open(path, "pt", backend="pread") as file:  # a memory map would hold the file as well
            _compare(tensors, file, path)
            for name in file.keys():  # noqa: SIM118  (it is no mapping)
                tensors[name].copy_(file.get_tensor(name))
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{path} cannot be read ({error}): copy the checkpoint again, whole") from error


def _compare(tensors: dict[str, Tensor], file: safe_open, path: Path) -> None:
    stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    given = {_place(tensors[name]) for name in stored.keys() & tensors.keys()}
    missing = [n for n, tensor in tensors.items() if n not in stored and _place(tensor) not in given]
    extra = stored.keys() - tensors.keys()
    unlike = [
        f"{n} is {stored[n]}, not {tuple(t.shape)}" for n, t in tensors.items() if n in stored and stored[n] != t.shape
    ]
    if missing or extra or unlike:
        faults = {"missing": missing, "not of this model": extra, "of another shape": unlike}
        raise ValueError(
            f"{path} holds a checkpoint whose classes don't match the model that its configuration describes: "
            + "; ".join(f"{what}: {some(names)}" for what, names in faults.items() if names)
            + ". Load it with the configuration and the version of anyvla that wrote it"
        )


def _place(tensor: Tensor) -> tuple[int, torch.Size]:
    """The same for tied tensors, which are saved once. An empty tensor has no place of its own."""
    return (tensor.data_ptr() if tensor.numel() else id(tensor)), tensor.shape


def some(names: Iterable[str], most: int = 4) -> str:
    """The first names of many, for a message."""
    listed = sorted(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
