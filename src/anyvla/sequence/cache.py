"""What a backbone remembers of the sequences it has read, and how rows of it are copied, picked and put together.

All of it is data: a model's own cache object (keys and values of each layer), or a dataclass that holds one beside
tensors of a row each. None of these functions changes what it is given.
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
    """What a backbone remembers of S sequences, so that its next call reads new places only. Begin with `Cache()`.

    Calling a backbone with a cache changes it, but no tensor of it. `state` is the backbone's business.
    """

    model_cache: Any = None  # keys and values, of the model's own kind
    valid: Bool[Tensor, "S K"] | None = None  # which remembered places are no padding
    positions: Int64[Tensor, "S K"] | None = None  # the position of each
    next_position: Int64[Tensor, "S"] | None = None  # of the next place
    hidden: Bool[Tensor, "S K"] | None = None  # which remembered places its owner hides; a backbone leaves it alone

    def fork(self) -> Cache:
        """The same; reading on with one leaves the other as it is."""
        return _mapped(self, lambda x, _: x)

    def detach(self) -> Cache:
        """The same, through which no gradient flows."""
        return _mapped(self, lambda x, _: x.detach())

    def select(self, rows: Int64[Tensor, "s"]) -> Cache:
        """Only these sequences."""
        return _mapped(self, lambda x, _: x[rows])

    def extract_row(self, row: int) -> Cache:
        """Only this sequence, without its padding."""
        if self.valid is None:
            raise ValueError("an empty cache has no sequences")
        kept = self.valid[row].nonzero().squeeze(1)

        def one(x: Tensor, along: int | None) -> Tensor:
            return x[row : row + 1] if along is None else x[row : row + 1].index_select(along, kept)

        return _mapped(self, one)


def concat_caches(caches: Sequence[Cache]) -> Cache:
    """The sequences of several caches, none of them empty, as one; shorter ones padded at their end."""
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
    """The same with `change(tensor, the dim of remembered places)` of each tensor, all of whose first dim is S."""
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
    return 1 if field in ("valid", "positions", "hidden") else None
