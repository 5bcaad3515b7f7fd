"""The KV cache of the sequences that a backbone has read, and functions that copy, select and concatenate its rows.

A cache is plain data: a model's own cache object (keys and values of each layer), or a dataclass with such an object
and tensors with one entry per row. No function here changes its arguments.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


@dataclass
class Cache:
    """The cache of S sequences with K positions, so that the next call reads only new positions. Begin with `Cache()`.

    A call of a backbone with a cache changes the cache, but none of its tensors. Only the backbone uses `model_cache`.
    """

    model_cache: Any = None  # keys and values, in the model's own form
    valid: Bool[Tensor, "S K"] | None = None  # False at padding
    positions: Int64[Tensor, "S K"] | None = None  # position id of each
    next_position: Int64[Tensor, "S"] | None = None  # position id after the last token
    hidden_by_history: Bool[Tensor, "S K"] | None = None  # backbones ignore it

    def fork(self) -> Cache:
        """Return a copy; using one leaves the other unchanged."""
        return _mapped(self, lambda x, _: x)

    def detach(self) -> Cache:
        """Return a copy without gradients."""
        return _mapped(self, lambda x, _: x.detach())

    def select(self, rows: Int64[Tensor, "s"]) -> Cache:
        """Return the cache of these sequences only."""
        return _mapped(self, lambda x, _: x[rows])

    def extract_row(self, row: int) -> Cache:
        """Return the cache of one sequence, without its padding."""
        if self.valid is None:
            raise ValueError("an empty cache has no sequences")
        kept = self.valid[row].nonzero().squeeze(1)

        def one(x: Tensor, along: int | None) -> Tensor:
            return x[row : row + 1] if along is None else x[row : row + 1].index_select(along, kept)

        return _mapped(self, one)


def concat_caches(caches: Sequence[Cache]) -> Cache:
    """Concatenate the sequences of several non-empty caches; shorter ones are padded at their end."""
    if len(caches) == 1:
        return caches[0].fork()
    longest = max(c.valid.shape[1] for c in caches if c.valid is not None)
    return _joined(caches, longest)


def _joined(values: Sequence[Any], longest: int, along: int | None = None) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        if along is not None:
            missing = [longest - v.shape[along] for v in values]
            after = first.ndim - 1 - along
            values = [torch.nn.functional.pad(v, [0, 0] * after + [0, m]) for v, m in zip(values, missing, strict=True)]
        return torch.cat(list(values))
    if hasattr(first, "layers"):
        out = copy.copy(first)
        out.layers = [copy.copy(layer) for layer in first.layers]
        for number, layer in enumerate(out.layers):
            layer.keys = _joined([v.layers[number].keys for v in values], longest, 2)
            layer.values = _joined([v.layers[number].values for v in values], longest, 2)
        return out
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        fields = {
            f.name: _joined([getattr(v, f.name) for v in values], longest, _along(f.name))
            for f in dataclasses.fields(first)
        }
        return dataclasses.replace(first, **fields)
    return first


def _mapped(value: Any, change: Callable[[Tensor, int | None], Tensor], along: int | None = None) -> Any:
    """Return a copy with `change(tensor, dim of positions)` applied to each tensor; their first dim is S."""
    if isinstance(value, Tensor):
        return change(value, along)
    if hasattr(value, "layers"):  # a cache of transformers
        out = copy.copy(value)
        out.layers = [copy.copy(layer) for layer in value.layers]
        for layer in out.layers:
            layer.keys, layer.values = change(layer.keys, 2), change(layer.values, 2)
        return out
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _mapped(getattr(value, f.name), change, _along(f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


def _along(field: str) -> int | None:
    return 1 if field in ("valid", "positions", "hidden_by_history") else None
