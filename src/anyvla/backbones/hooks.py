"""Hooks that stand for the length of one forward pass: write embeddings in, read hidden states out.

They leave the model as it was: nothing of `transformers` is changed, and the same model still generates text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


@contextmanager
def written(
    embedding: nn.Module, shape: torch.Size, places: Int64[Tensor, "n"], values: Float[Tensor, "n D"]
) -> Iterator[None]:
    """Put `values` at `places` (counted over the flattened `shape`, (S, L)) of what `embedding` gives."""

    def write(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
        if embedded.shape[:-1] != shape:  # some families look single ids up beside the sequence
            return embedded
        return embedded.flatten(0, 1).index_copy(0, places, values.to(embedded.dtype)).view_as(embedded)

    handle = embedding.register_forward_hook(write)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def read_before_head(head: nn.Module) -> Iterator[list[Float[Tensor, "S L D"]]]:
    """Take what the LM head would read; the head itself gets no token, so that it costs nothing."""
    hidden: list[Tensor] = []

    def read(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden.append(inputs[0])
        return (inputs[0][:, :0], *inputs[1:])

    handle = head.register_forward_pre_hook(read)
    try:
        yield hidden
    finally:
        handle.remove()


class _Read(Exception):
    """What was wanted has been read: nothing further needs to run."""


@contextmanager
def read_after(module: nn.Module) -> Iterator[list[Float[Tensor, "S L D"]]]:
    """Take the last hidden state that `module` (an encoder) gives, and end the model's forward pass there."""
    hidden: list[Tensor] = []

    def read(_module: nn.Module, _inputs: Any, output: Any) -> None:
        hidden.append(output.last_hidden_state)
        raise _Read

    handle = module.register_forward_hook(read)
    try:
        yield hidden
    except _Read:
        pass
    finally:
        handle.remove()


@contextmanager
def only_at(modules: tuple[nn.Module, ...], places: Int64[Tensor, "n"], shape: torch.Size) -> Iterator[None]:
    """Run `modules`, which treat each token by itself, at `places` only; elsewhere they give zeros."""

    def gather(_module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        return inputs[0].flatten(0, 1).index_select(0, places)

    def scatter(_module: nn.Module, _inputs: Any, out: Tensor) -> Tensor:
        return out.new_zeros(shape.numel(), out.shape[-1]).index_copy_(0, places, out).view(*shape, -1)

    handles = [m.register_forward_pre_hook(gather) for m in modules]
    handles += [m.register_forward_hook(scatter) for m in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
