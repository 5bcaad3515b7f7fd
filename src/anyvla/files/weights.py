"""Save and load weights in safetensors: read tensor by tensor, so that memory never holds a second copy."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from anyvla.files.sharded_tensors import copy_rows, is_sharded
from anyvla.files.tensor_files import Tensors, join_first, opened
from anyvla.migrations import migrate_weight

AT_ONCE = 1 << 24  # numbers that are looked at together
_KINDS = {  # names of safetensors
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save(module: nn.Module, path: Path) -> None:
    """Write all parameters and buffers of `module`; tied ones once."""
    save_model(module, str(path))


def list_once(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers of `module` by name, tied ones once, under their first name."""
    first: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        first.setdefault(_place(tensor), name)
    tensors = module.state_dict(keep_vars=True)
    return {name: tensors[name].detach() for name in first.values()}


@torch.no_grad()
def load(module: nn.Module, path: Path) -> None:
    """Load the weights that `save` wrote for a module built in the same way. If they are refused, nothing changes.

    Of sharded weights, each process loads its own rows. Floating-point weights may have another width (a bfloat16 file
    fills a float32 model). Raises ValueError if the file
    is damaged, lacks a tensor, has one too many or one of another shape or kind, or holds a number that is not finite.
    """
    tensors = module.state_dict(keep_vars=True)
    names = find_stored(module, path)
    with opened(path) as file:
        for stored, name in names.items():
            copy_rows(tensors[name], file.get_tensor(stored))


def find_stored(module: nn.Module, path: Path) -> dict[str, str]:
    """Return the name in the module of each stored tensor, and raise ValueError as `load` does."""
    tensors = module.state_dict(keep_vars=True)
    with opened(path) as file:
        names = _names_today(tensors, file.keys())
        _compare(tensors, file, path, names)
        masks = {n for n, buffer in module.named_buffers() if buffer.is_floating_point() and torch.isinf(buffer).any()}
        check_finite(file, path, {stored for stored, name in names.items() if name in masks})
    return names


def _names_today(tensors: Collection[str], stored: Collection[str]) -> dict[str, str]:
    """Return the name in the model of each stored tensor; a name that the model lacks may be of an earlier version."""
    found = {}
    for name in stored:
        new = migrate_weight(name)
        found[name] = new if name not in tensors and new not in stored else name
    return found


def check_finite(file: Tensors, path: Path, but: Collection[str] = ()) -> None:
    """Raise ValueError if tensors of an open file, except for masks of attention in `but`, hold NaN or infinity."""
    bad = [name for name in file.keys() if name not in but and not _finite(file.get_tensor(name))]  # noqa: SIM118
    if bad:
        raise ValueError(f"{path} holds NaN or infinity in {join_first(bad)}: it is damaged, or training diverged")


def _finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() and not tensor.is_complex():
        return True
    tensor = tensor if tensor.dtype.itemsize > 1 else tensor.float()  # float8 has no isfinite
    parts = tensor.flatten().split(AT_ONCE)
    wide = torch.promote_types(tensor.dtype, torch.float32)
    # A sum is several times faster than a look at each number, and is finite only if all of its numbers are.
    return all(bool(part.sum(dtype=wide).isfinite() or part.isfinite().all()) for part in parts)


def _compare(tensors: dict[str, Tensor], file: Tensors, path: Path, names: Mapping[str, str]) -> None:
    slices = {name: file.get_slice(stored) for stored, name in names.items()}
    stored = {name: tuple(of.get_shape()) for name, of in slices.items()}
    kinds = {name: of.get_dtype() for name, of in slices.items()}
    given = {_place(tensors[name]) for name in stored.keys() & tensors.keys()}
    missing = [n for n, tensor in tensors.items() if n not in stored and _place(tensor) not in given]
    extra = stored.keys() - tensors.keys()
    both = [(n, t) for n, t in tensors.items() if n in stored]
    unlike = [f"{n} is {stored[n]}, not {tuple(t.shape)}" for n, t in both if stored[n] != t.shape]
    other = [f"{n} is {kinds[n]}, not {_kind(t)}" for n, t in both if not _convertible(kinds[n], _kind(t))]
    faults = {
        "missing": missing,
        "not of this model": extra,
        "of another shape": unlike,
        "of another kind of number": other,
    }
    if any(faults.values()):
        raise ValueError(
            f"{path} holds a checkpoint whose classes don't match the model that its configuration describes: "
            + "; ".join(f"{what}: {join_first(names)}" for what, names in faults.items() if names)
            + ". Load it with the configuration and the version of anyvla that wrote it"
        )


def _convertible(stored: str, wanted: str) -> bool:
    """Return whether one kind of number may fill another: the same kind, or both floats that models are trained in."""
    return stored == wanted or {stored, wanted} <= {"F32", "BF16", "F16"}


def _kind(tensor: Tensor) -> str:
    return _KINDS.get(tensor.dtype, str(tensor.dtype))


def _place(tensor: Tensor) -> tuple[int, torch.Size]:
    """Return the memory and the shape of a tensor, which are equal for tied tensors."""
    one = is_sharded(tensor) or not tensor.numel()  # a process may hold no row of it
    return (id(tensor) if one else tensor.data_ptr()), tensor.shape


def count_elements(path: Path) -> int:
    """Return the number of elements of all tensors at a path, by the headers of the files."""
    with opened(path) as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in list(file.keys()))
