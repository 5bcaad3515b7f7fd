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

from anyvla.transfer import send


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
        return _map_tensors(lambda x, _: x[0], [self])

    def detach(self) -> Cache:
        """Return a copy without gradients."""
        return _map_tensors(lambda x, _: x[0].detach(), [self])

    def select(self, rows: Int64[Tensor, "s"]) -> Cache:
        """Return the cache of these sequences only."""
        return _map_tensors(lambda x, _: x[0][rows], [self])

    def extract_row(self, row: int) -> Cache:
        """Return the cache of one sequence, without its padding."""
        return extract_rows([(self, row)])[0]


def extract_rows(rows: Sequence[tuple[Cache, int]]) -> list[Cache]:
    """Return the caches of single sequences, each without its padding. The device is asked once."""
    masks = [cache.valid[row] for cache, row in rows if cache.valid is not None]
    if len(masks) < len(rows):
        raise ValueError("an empty cache has no sequences")
    found = torch.cat(masks).cpu().split([len(mask) for mask in masks])
    return [_extract(cache, row, mask) for (cache, row), mask in zip(rows, found, strict=True)]


def _extract(cache: Cache, row: int, valid: Bool[Tensor, "K"]) -> Cache:
    assert cache.valid is not None
    kept = send(valid.nonzero().squeeze(1), cache.valid.device)

    def extract(tensors: Sequence[Tensor], along: int | None) -> Tensor:
        own = tensors[0][row : row + 1]
        return own if along is None else own.index_select(along, kept)

    return _map_tensors(extract, [cache])


def concat_caches(caches: Sequence[Cache]) -> Cache:
    """Concatenate the sequences of several non-empty caches; shorter ones are padded at their end."""
    if len(caches) == 1:
        return caches[0].fork()
    longest = max(c.valid.shape[1] for c in caches if c.valid is not None)

    def concat(tensors: Sequence[Tensor], along: int | None) -> Tensor:
        if along is not None:
            after = [0, 0] * (tensors[0].ndim - 1 - along)
            tensors = [torch.nn.functional.pad(x, [*after, 0, longest - x.shape[along]]) for x in tensors]
        return torch.cat(list(tensors))

    return _map_tensors(concat, caches)


def _map_tensors(
    change: Callable[[Sequence[Tensor], int | None], Tensor], values: Sequence[Any], along: int | None = None
) -> Any:
    """Return a copy of the first value with `change(its tensor in each value, dim of positions)` for each tensor."""
    first = values[0]
    if isinstance(first, Tensor):
        return change(values, along)
    if hasattr(first, "layers"):  # a cache of transformers
        out = copy.copy(first)
        out.layers = [copy.copy(layer) for layer in first.layers]
        for number, layer in enumerate(out.layers):
            layer.keys = change([v.layers[number].keys for v in values], 2)
            layer.values = change([v.layers[number].values for v in values], 2)
        return out
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        fields = {}
        for field in dataclasses.fields(first):
            dim = 1 if field.name in ("valid", "positions", "hidden_by_history") else None
            fields[field.name] = _map_tensors(change, [getattr(v, field.name) for v in values], dim)
        return dataclasses.replace(first, **fields)
    return first
