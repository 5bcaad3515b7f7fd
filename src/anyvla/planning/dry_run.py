"""Run a model on shapes: nothing is computed and no weight takes memory, but every operation is seen.

Floating-point tensors and images are fake (PyTorch's `FakeTensorMode`): they have a shape, a type and a device, but no
numbers. Small tensors that the run itself makes, such as token ids, masks and positions, stay real, because models
choose shapes by them (`images[mask]`, `lengths.tolist()`). An operation on real tensors alone is really computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor, FakeTensorMode
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anyvla.backbones.adapting.architecture_only import architecture_only
from anyvla.planning.recorder import Recorder

T = TypeVar("T")

# A new floating-point tensor of more numbers is fake. The limit is low while a model is built, since the tensor may be
# a weight, and high in a run, where batches of different sizes must agree on it.
REAL_IN_BUILDING, REAL_IN_RUNNING = 1 << 12, 1 << 20
_aten = torch.ops.aten
_INDEXING = (
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor,
)
_IMAGES = 4  # axes of a batch of images


class UnplannedOperation(ValueError):
    """The model asks for numbers that a dry run does not have."""


class DryRun(TorchDispatchMode):
    """Within `with`, operations on fake tensors give fake tensors, and a `recorder` sees each of them."""

    def __init__(self) -> None:
        super().__init__()
        self._fakes = FakeTensorMode(allow_non_fake_inputs=True)
        self._recorder: Recorder | None = None
        self._real = REAL_IN_RUNNING

    def as_fake(self, tensor: Tensor) -> Tensor:
        """Return a fake tensor like this one."""
        return tensor if isinstance(tensor, FakeTensor) else self._fakes.from_tensor(tensor)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a new fake tensor."""
        with self._fakes:
            return torch.empty(*shape, dtype=dtype)

    def build(self, make: Callable[[], T]) -> T:
        """Return the module that `make` builds, with fake parameters and without reading weights."""
        self._real = REAL_IN_BUILDING
        try:
            with architecture_only(), self._fake_parameters(), _replacing_conversions(), self:
                return make()
        finally:
            self._real = REAL_IN_RUNNING

    @contextmanager
    def recorded(self, recorder: Recorder) -> Iterator[None]:
        """Within the context, show each operation to `recorder`."""
        self._recorder = recorder
        try:
            yield
        finally:
            self._recorder = None

    @contextmanager
    def _fake_parameters(self) -> Iterator[None]:
        """Replace every parameter by a fake one when a module registers it."""

        def replace(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
            if parameter is None or isinstance(parameter, FakeTensor):
                return None
            return nn.Parameter(self.as_fake(parameter.detach()), requires_grad=parameter.requires_grad)

        handle = register_module_parameter_registration_hook(replace)  # type: ignore[arg-type]
        try:
            yield
        finally:
            handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(isinstance(x, FakeTensor) for x in tensors):
            made = self._run_on_shapes(func, args, kwargs)
        elif tensors:
            made = func(*args, **kwargs)
        else:
            made = self._create(func, args, kwargs)
        if self._recorder is not None:
            self._recorder.note(func, args, kwargs, made)
        return made

    def _run_on_shapes(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is _aten._local_scalar_dense.default:  # a number that is only logged or divided by
            return args[0].dtype.is_floating_point or 1
        if func in _INDEXING:
            args = (args[0], _as_positions(args[1], keeps_all=args[0].ndim == _IMAGES), *args[2:])
        try:
            with self._fakes:
                return func(*args, **kwargs)
        except DynamicOutputShapeException as error:
            raise UnplannedOperation(
                f"the shapes in this model depend on the numbers it computes ({func}), so it cannot be planned without "
                "running it"
            ) from error

    def _create(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Make a new tensor: a fake one if it is a large one of floating-point numbers."""
        with self._fakes:
            made = func(*args, **kwargs)
        if isinstance(made, Tensor) and made.is_floating_point() and made.numel() > self._real:
            return made
        return func(*args, **kwargs)


@contextmanager
def _replacing_conversions() -> Iterator[None]:
    """Let modules change type by new parameters. PyTorch would swap fake ones in place, and cannot."""
    replaced: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # tied weights stay tied

    def convert(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        for child in module.children() if recurse else ():
            child._apply(fn)
        for tensors in (module._parameters, module._buffers):
            for name, old in list(tensors.items()):
                if old is None or id(old) in replaced:
                    tensors[name] = None if old is None else replaced[id(old)][1]
                    continue
                with torch.no_grad():
                    new: Any = fn(old)
                if new is not old and isinstance(old, nn.Parameter):
                    new = nn.Parameter(new, requires_grad=old.requires_grad)
                    replaced[id(old)] = old, new
                tensors[name] = new
        return module

    original = nn.Module._apply
    nn.Module._apply = convert  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._apply = original  # type: ignore[method-assign]


def _as_positions(indices: Any, *, keeps_all: bool) -> list[Tensor | None]:
    """Return indices in which positions replace real masks, so that the shape of the result is known.

    `keeps_all`: a fake mask selects everything. SmolVLM and Idefics drop black images by such a mask.
    """
    out: list[Tensor | None] = []
    for index in indices:
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            out.append(index)
        elif not isinstance(index, FakeTensor):
            out += index.nonzero().unbind(1)
        elif keeps_all and index.ndim == 1:
            out.append(torch.arange(len(index), device=index.device))
        else:
            out.append(index)
    return out
