"""Save and restore the state of an optimizer in safetensors, strictly: every tensor must be one that it would make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyvla.files import tensor_files, weights
from anyvla.files.sharded_tensors import shard_like

_QUANTILES = {"qmap1": "dynamic", "qmap2": "udynamic"}  # constants of bitsandbytes, which are not saved


@dataclass(frozen=True)
class _Entry:
    """One tensor of the state of a parameter."""

    shape: torch.Size
    dtype: torch.dtype = torch.float32
    signed: bool = True  # else a number below 0 is a fault


def list_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of each parameter that has had a gradient, by its number over all groups."""
    return {
        f"{number}.{key}": torch.as_tensor(value)
        for number, (_, parameter) in enumerate(_parameters(optimizer))
        for key, value in optimizer.state.get(parameter, {}).items()
        if key not in _QUANTILES
    }


def read(path: Path, optimizer: torch.optim.Optimizer, *, may_be_empty: bool = False) -> dict[int, dict[str, Any]]:
    """Return the state of each parameter by its number, on the device of the parameter and sharded as that is.

    `may_be_empty`: all steps so far may have been skipped, as steps whose float16 gradients overflow are.
    Raises ValueError, with the name of the file, if a tensor is missing, damaged, or none of this optimizer.
    """
    parameters = _parameters(optimizer)
    layouts = [_layout(optimizer, group, parameter) for group, parameter in parameters]
    state: dict[int, dict[str, Any]] = {}
    with tensor_files.opened(path) as file:
        weights.check_finite(file, path)
        for name in file.keys():  # noqa: SIM118  (it is no mapping)
            if name == "rng":  # of older checkpoints; randomness follows from the step
                continue
            number, _, key = name.partition(".")
            known = layouts[int(number)] if number.isdecimal() and int(number) < len(layouts) else {}
            tensor = file.get_tensor(name)
            _check(path, name, tensor, known.get(key))
            parameter = parameters[int(number)][1]
            sharded = tensor.shape == parameter.shape  # not a count of steps
            own = shard_like(parameter, tensor) if sharded else tensor.to(parameter.device)
            state.setdefault(int(number), {})[key] = own
    if not (state or may_be_empty) or any(of.keys() != layouts[number].keys() for number, of in state.items()):
        raise ValueError(f"{path} lacks part of the optimizer's state: copy the checkpoint again, whole")
    return state


def put(state: Mapping[int, dict[str, Any]], optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer a state that `read` returned."""
    for number, (_, parameter) in enumerate(_parameters(optimizer)):
        if number in state:
            own = dict(state[number])
            if _is_8bit(optimizer):
                own["step"] = int(own["step"])
            if "absmax1" in own:
                maps = {key: optimizer.name2qmap[kind] for key, kind in _QUANTILES.items()}  # type: ignore[attr-defined]
                own |= {key: of.to(parameter.device) for key, of in maps.items()}
            optimizer.state[parameter] = own


def _parameters(optimizer: torch.optim.Optimizer) -> list[tuple[dict[str, Any], torch.nn.Parameter]]:
    return [(group, parameter) for group in optimizer.param_groups for parameter in group["params"]]


def _layout(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], parameter: Tensor) -> dict[str, _Entry]:
    """Return the tensors that the optimizer keeps for a parameter."""
    shape, scalar = parameter.shape, torch.Size()
    if "momentum" in group:  # Muon's
        return {"momentum_buffer": _Entry(shape)}
    if not _is_8bit(optimizer):
        return {
            "step": _Entry(scalar, signed=False),
            "exp_avg": _Entry(shape),
            "exp_avg_sq": _Entry(shape, signed=False),
        }
    step = {"step": _Entry(scalar, torch.int64, signed=False)}
    if parameter.numel() < optimizer.args.min_8bit_size:  # type: ignore[attr-defined]
        return step | {"state1": _Entry(shape), "state2": _Entry(shape, signed=False)}
    blocks = _Entry(torch.Size([-(-parameter.numel() // 256)]), signed=False)
    small = _Entry(shape, torch.uint8)
    return step | {"state1": small, "state2": small, "absmax1": blocks, "absmax2": blocks}


def _is_8bit(optimizer: torch.optim.Optimizer) -> bool:
    return hasattr(optimizer, "name2qmap")  # of bitsandbytes


def _check(path: Path, name: str, tensor: Tensor, wanted: _Entry | None) -> None:
    if wanted is None or tensor.dtype != wanted.dtype:
        raise ValueError(f"{path} holds {name} ({tensor.dtype}), which is no state of this model's optimizer")
    if tensor.shape != wanted.shape:
        raise ValueError(f"{path}: {name} is {tuple(tensor.shape)}, not {tuple(wanted.shape)}: it is of another model")
    if not wanted.signed and float(tensor.min() if tensor.numel() else 0) < 0:
        raise ValueError(f"{path}: {name} is below 0, which it never is: the file is damaged")
