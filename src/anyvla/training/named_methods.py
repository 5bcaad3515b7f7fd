"""Make spans of methods, to measure the parts of a policy without a change to them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from anyvla.backbones.base import Backbone
from anyvla.training.spans import span

NamedMethod = tuple[object, str, str]  # the owner, its method, the name of the span


@contextlib.contextmanager
def named_methods(*methods: NamedMethod) -> Iterator[None]:
    """Make a span of each call of the methods within the context."""
    with contextlib.ExitStack() as stack:
        for owner, method, name in methods:
            stack.enter_context(_named_method(owner, method, name))
        yield


def methods_of_parts(backbone: Backbone) -> list[NamedMethod]:
    """Return the forward passes of the parts of a backbone, under the names of the parts."""
    part_of = {module: part for part, modules in backbone.part_modules().items() for module in modules}
    inside = {child: part for module, part in part_of.items() for child in _children(module)}
    return [(module, "forward", part) for module, part in (inside | part_of).items()]


def _children(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules directly inside, and those of lists: a backbone may call them without the module itself."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else (child,)


@contextlib.contextmanager
def _named_method(owner: object, method: str, name: str) -> Iterator[None]:
    original, own = getattr(owner, method), method in vars(owner)

    def named(*args: Any, **keys: Any) -> Any:
        with span(name):
            return original(*args, **keys)

    setattr(owner, method, named)
    try:
        yield
    finally:
        if own:
            setattr(owner, method, original)
        else:
            delattr(owner, method)
