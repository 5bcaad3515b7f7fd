"""A pretend GPU for machines without one: tensors that say they are on `cuda:0` and have real values.

It raises where a GPU would, when an operation mixes devices, and counts what would make the host wait for the device,
by line of code. It has no kernels and no streams, so it says nothing of times, of cuDNN, or of numbers in other types.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

GPU = torch.device("cuda", 0)
SOURCE = Path(__file__).with_name("pretend.cpp")
# Operations that take indices or values of the CPU for a tensor of a GPU, and copy them
_COPYING = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_INDEXING = _COPYING - {"copy_", "_to_copy"}
# Operations whose output has a size that only the device knows
_ASKING = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal", "_local_scalar_dense"}
# Operations that take no number of the CPU beside tensors of a GPU, though others do
_STRICT = {
    "mm",
    "bmm",
    "addmm",
    "embedding",
    "cat",
    "stack",
    "linear",
    "gather",
    "index_select",
    "index_copy",
    "scatter",
}


def build_library(folder: Path) -> Path:
    """Compile the device guard against the headers of torch. Raises CalledProcessError with the compiler's output."""
    from torch.utils.cpp_extension import include_paths, library_paths

    library = folder / "pretend.so"
    flags = ["-shared", "-fPIC", "-O0", "-std=c++20", *(f"-I{path}" for path in include_paths())]
    link = [*(f"{flag}{path}" for path in library_paths() for flag in ("-L", "-Wl,-rpath,")), "-lc10", "-ltorch_cpu"]
    subprocess.run(["g++", *flags, str(SOURCE), "-o", str(library), *link], check=True, capture_output=True, text=True)
    return library


def install() -> None:
    """Make this process, which was started with the library in LD_PRELOAD, believe that it has a GPU, for good."""
    replacements: dict[Any, dict[str, Callable[..., Any]]] = {
        torch.cuda: {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "is_bf16_supported": lambda *_, **__: True,
            "get_device_capability": lambda *_, **__: (9, 0),
            "manual_seed_all": lambda _seed: None,
            "get_rng_state": lambda *_: torch.zeros(0, dtype=torch.uint8),
            "set_rng_state": lambda *_: None,
        },
        torch.amp.autocast_mode: {"amp_definitely_not_available": lambda: False},
    }
    for module, functions in replacements.items():
        for name, function in functions.items():
            setattr(module, name, function)


class OnGpu(Tensor):
    """A tensor of the pretend GPU. Its values are in `values`, on the CPU."""

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, values: Tensor) -> OnGpu:
        made: OnGpu = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=GPU,
        )
        made.values = values
        return made

    def __init__(self, values: Tensor) -> None:
        pass

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if PretendGpu.now is None:
            raise RuntimeError(f"{function} outside of the pretend GPU")
        return PretendGpu.now.run(function, tuple(args), kwargs or {})

    def __deepcopy__(self, memo: object) -> OnGpu:
        return OnGpu(self.values.clone())

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({tuple(self.shape)}, {self.dtype})"

    def __format__(self, form: str) -> str:
        return format(self.item(), form) if self.dim() == 0 else repr(self)

    def tolist(self) -> Any:
        if PretendGpu.now is not None:
            PretendGpu.now.wait("tolist")
        return self.values.tolist()

    def data_ptr(self) -> int:
        return self.values.data_ptr()


class PretendGpu(TorchDispatchMode):
    """Runs operations while the context is entered. `waits` counts, by place, what made the host wait."""

    now: PretendGpu | None = None

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._pinned: list[Tensor] = []

    def __enter__(self) -> PretendGpu:
        self._before = torch._C._only_lift_cpu_tensors(), torch.tensor, Tensor.pin_memory
        torch._C._set_only_lift_cpu_tensors(True)
        torch.tensor = self._make  # type: ignore[assignment]
        Tensor.pin_memory = lambda tensor, *_: self._pin(tensor)  # type: ignore[assignment, method-assign]
        PretendGpu.now = self
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        PretendGpu.now = None
        lift, torch.tensor, Tensor.pin_memory = self._before  # type: ignore[assignment, method-assign]
        torch._C._set_only_lift_cpu_tensors(lift)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.run(function, tuple(args), kwargs or {})

    @contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """Yield the waits of the block, which are counted from zero."""
        self.waits = Counter()
        yield self.waits
        self._pinned.clear()

    def wait(self, why: str) -> None:
        """Count a wait of the host, at the innermost line of anyvla."""
        self.waits[f"{why} at {_where()}"] += 1

    def run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operation on the values."""
        name = function._schema.name.partition("::")[2]
        flat, form = tree_flatten((args, kwargs))
        tensors = [x for x in flat if isinstance(x, Tensor)]
        on_gpu = any(isinstance(x, OnGpu) for x in tensors)
        wanted = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        if on_gpu:
            _check_devices(name, tensors)
        self._count(name, args, kwargs, wanted, on_gpu)
        values = [x.values if isinstance(x, OnGpu) else x for x in flat]
        own_args, own_kwargs = tree_unflatten(values, form)
        if wanted is not None and wanted.type == "cuda":
            own_kwargs = own_kwargs | {"device": torch.device("cpu")}
        if own_kwargs.get("pin_memory"):
            own_kwargs = own_kwargs | {"pin_memory": False}
        if name == "histc" and not own_args[0].is_floating_point():  # which the CPU lacks
            own_args = (own_args[0].float(), *own_args[1:])
        out = function(*own_args, **own_kwargs)
        if not (on_gpu if wanted is None else wanted.type == "cuda"):
            return return_and_correct_aliasing(function, args, kwargs, out) if on_gpu and name.endswith("_") else out
        out = tree_map(lambda x: OnGpu(x) if isinstance(x, Tensor) and not isinstance(x, OnGpu) else x, out)
        return return_and_correct_aliasing(function, args, kwargs, out) if on_gpu else out

    def _count(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], wanted: torch.device | None, on_gpu: bool
    ) -> None:
        if not on_gpu and not (wanted is not None and wanted.type == "cuda"):
            return
        if name in _ASKING or (name == "repeat_interleave" and len(args) == 1 and not kwargs.get("output_size")):
            self.wait(name)
        elif name in _INDEXING:
            self._count_indices(args)
        elif name == "_to_copy" and wanted is not None:
            source, free = args[0], kwargs.get("non_blocking") is True
            if isinstance(source, OnGpu):
                if wanted.type == "cpu":
                    self.wait("copy to the CPU")
            elif source.numel() and not (free and self._is_pinned(source)):
                self.wait("copy from memory that is not pinned" if free else "copy from the CPU")
        elif name == "copy_" and isinstance(args[0], OnGpu) != isinstance(args[1], OnGpu):
            self.wait("copy_")

    def _count_indices(self, args: tuple[Any, ...]) -> None:
        for index in (index for index in args[1] if index is not None):
            if not isinstance(index, OnGpu):
                self.wait("indices of the CPU")
            elif index.dtype in (torch.bool, torch.uint8) and not (len(args) > 2 and args[2].numel() == 1):
                self.wait("boolean indices")

    def _is_pinned(self, tensor: Tensor) -> bool:
        return any(tensor.untyped_storage().data_ptr() == own.untyped_storage().data_ptr() for own in self._pinned)

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned.append(tensor.clone())
        return self._pinned[-1]

    def _make(self, data: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return `torch.tensor` of data that may have tensors of the GPU among them."""

        def read(x: Any) -> Any:
            if isinstance(x, OnGpu):
                self.wait("torch.tensor of tensors")
                return x.values.tolist()
            return [read(y) for y in x] if isinstance(x, list | tuple) else x

        return self._before[1](read(data), *args, **kwargs)


def move(module: nn.Module) -> nn.Module:
    """Move the weights and buffers of a module to the pretend GPU, in place. Shared ones stay shared."""
    moved: dict[int, tuple[Tensor, Tensor]] = {}  # the first one keeps its id from being used again
    for part in module.modules():
        for kept in (part._parameters, part._buffers):
            for name, tensor in kept.items():
                if tensor is None or isinstance(tensor, OnGpu):
                    continue
                if id(tensor) not in moved:
                    new: Tensor = tensor.detach().to(GPU)
                    if isinstance(tensor, nn.Parameter):
                        new = nn.Parameter(new, tensor.requires_grad)
                    moved[id(tensor)] = tensor, new
                kept[name] = moved[id(tensor)][1]  # type: ignore[assignment]
    return module


def _check_devices(name: str, tensors: Sequence[Tensor]) -> None:
    others = [x for x in tensors if not isinstance(x, OnGpu) and x.device.type == "cpu"]
    if name in _INDEXING:
        if not isinstance(tensors[0], OnGpu):
            raise RuntimeError(f"{name}: a tensor of the CPU is indexed by one of the GPU, at {_where()}")
        return
    if name in _COPYING:
        return
    if name not in _STRICT:
        others = [x for x in others if x.dim()]  # numbers of the CPU are allowed
    if others:
        raise RuntimeError(f"{name} mixes devices: {[tuple(x.shape) for x in others]} are on the CPU, at {_where()}")


def _where() -> str:
    """Return the innermost line of anyvla, or else of any library but torch."""
    frame, library = sys._getframe(2), ""
    while frame is not None:
        file = frame.f_code.co_filename
        if "/anyvla/" in file:
            return f"{file.rpartition('/anyvla/')[2]}:{frame.f_lineno}{library}"
        if not library and "/torch/" not in file and file != __file__ and "contextlib" not in file:
            library = f" ({'/'.join(Path(file).parts[-2:])}:{frame.f_lineno})"
        frame = frame.f_back  # type: ignore[assignment]
    return library or "an unknown place"
