"""Hooks for the duration of one forward pass: overwrite embeddings, capture hidden states.

They leave the model unchanged, so it still generates text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


@contextmanager
def overwrite_embeddings(
    embedding: nn.Module, shape: torch.Size, positions: Int64[Tensor, "n"], values: Float[Tensor, "n D"]
) -> Iterator[None]:
    """Overwrite the output of `embedding` with `values` at `positions`, counted over the flattened `shape` (S, L)."""

    def overwrite(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
        if embedded.shape[:-1] != shape:  # some families also embed single ids
            return embedded
        return embedded.flatten(0, 1).index_copy(0, positions, values.to(embedded.dtype)).view_as(embedded)

    with embedding.register_forward_hook(overwrite):
        yield


@contextmanager
def cast_output(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Convert the output of a module to a type."""
    with module.register_forward_hook(lambda _module, _inputs, output: output.to(dtype)):
        yield


@contextmanager
def capture_lm_head_input(head: nn.Module) -> Iterator[list[Float[Tensor, "S L D"]]]:
    """Capture the input of the LM head. The head itself gets no tokens, so it costs nothing."""
    hidden: list[Tensor] = []

    def capture(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden.append(inputs[0])
        return (inputs[0][:, :0], *inputs[1:])

    with head.register_forward_pre_hook(capture):
        yield hidden


class _Captured(Exception):
    """The wanted output has been captured; the rest of the model need not run."""


@contextmanager
def capture_encoder_output(module: nn.Module) -> Iterator[list[Float[Tensor, "S L D"]]]:
    """Capture the last hidden state of `module` (an encoder) and end the model's forward pass there."""
    hidden: list[Tensor] = []

    def capture(_module: nn.Module, _inputs: Any, output: Any) -> None:
        hidden.append(output.last_hidden_state)
        raise _Captured

    with suppress(_Captured), module.register_forward_hook(capture):
        yield hidden


@contextmanager
def run_only_at(modules: tuple[nn.Module, ...], positions: Int64[Tensor, "n"], shape: torch.Size) -> Iterator[None]:
    """Run `modules`, which process each token by itself, at `positions` only; elsewhere they return zeros."""

    def gather(_module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        return inputs[0].flatten(0, 1).index_select(0, positions)

    def scatter(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
        return out.new_zeros(shape.numel(), out.shape[-1]).index_copy_(0, positions, out).view(*shape, -1)

    with ExitStack() as handles:
        for module in modules:
            handles.enter_context(module.register_forward_pre_hook(gather))
            handles.enter_context(module.register_forward_hook(scatter))
        yield


@contextmanager
def set_attribute(modules: Iterable[nn.Module], name: str, value: Any) -> Iterator[None]:
    """Set an attribute of all `modules`; afterwards it is None."""
    chosen = list(modules)
    for module in chosen:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module in chosen:
            setattr(module, name, None)
