"""Decoding further by reading a sequence again: for backbones without a KV cache (no capability "cache").

Their `Cache` holds the sequences themselves. Each call lays every suffix out in a row of its own: the positions visible
to it, then the suffix. Hidden positions are left out, so the model needs no mask, only causal attention. The price is
the whole sequence, images included, at every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from anyvla.sequence.cache import Cache
from anyvla.sequence.tokens import TokenSequence


@dataclass(frozen=True)
class PastSequences:
    """The contents of S rows so far, suffixes included: K positions, T steps. The `model_cache` of a `Cache`."""

    ids: Int64[Tensor, "S K"]
    steps: Int64[Tensor, "S K"]  # as in `TokenSequence`; -1 in suffixes
    queries: Bool[Tensor, "S K"]
    embeddings: Float[Tensor, "S Q D"]  # at the queries of each row, in order
    images: UInt8[Tensor, "S T V H W 3"]  # of the steps of each row


@dataclass(frozen=True)
class RepeatedSequence:
    """M suffixes of R tokens, each after the N positions visible to it, as one input of the model."""

    sequence: TokenSequence  # (M, N)
    positions: Int64[Tensor, "n"]  # of all queries, counted over the flattened (M, N)
    values: Float[Tensor, "n D"]  # the embeddings at these positions
    suffixes: Int64[Tensor, "M R"]  # the positions of each suffix in its row


def begin(cache: Cache, sequence: TokenSequence, queries: Float[Tensor, "*M R D"]) -> None:
    """Store whole steps in an empty cache."""
    images = sequence.images.split((sequence.step_ids.amax(1) + 1).tolist())
    cache.model_cache = PastSequences(
        ids=sequence.input_ids,
        steps=sequence.step_ids,
        queries=sequence.query_mask,
        embeddings=pad_sequence(list(_split_by_row(sequence, queries)), batch_first=True),
        images=pad_sequence(list(images), batch_first=True),
    )
    _append_valid(cache, sequence)


def extend(cache: Cache, sequence: TokenSequence, queries: Float[Tensor, "*M R D"], pad_id: int) -> RepeatedSequence:
    """Append suffixes of queries to a cache and return the sequences to read for them.

    Raises ValueError for a suffix with other tokens than queries, or with positions that see later ones.
    """
    old = cache.model_cache
    counts = old.queries.sum(1).tolist()
    new = _split_by_row(sequence, queries)
    rows = [torch.cat([row[:count], added]) for row, count, added in zip(old.embeddings, counts, new, strict=True)]
    cache.model_cache = PastSequences(
        ids=torch.cat([old.ids, sequence.input_ids], 1),
        steps=torch.cat([old.steps, torch.full_like(sequence.step_ids, -1)], 1),
        queries=torch.cat([old.queries, sequence.query_mask], 1),
        embeddings=pad_sequence(rows, batch_first=True),
        images=old.images,
    )
    _append_valid(cache, sequence)
    assert cache.valid is not None
    return _repeat(cache.model_cache, cache.valid, sequence, queries.shape[-2], pad_id)


def _split_by_row(sequence: TokenSequence, queries: Float[Tensor, "*M R D"]) -> Sequence[Float[Tensor, "_ D"]]:
    rows = sequence.query_mask.sum(1).tolist()
    return queries.expand(sum(rows) // queries.shape[-2], -1, -1).flatten(0, 1).split(rows)


def _append_valid(cache: Cache, sequence: TokenSequence) -> None:
    new = sequence.attention_mask
    cache.valid = new if cache.valid is None else torch.cat([cache.valid, new], 1)
    cache.positions = torch.arange(cache.valid.shape[1], device=new.device).expand(cache.valid.shape)


def _repeat(
    past: PastSequences, valid: Bool[Tensor, "S K"], suffixes: TokenSequence, each: int, pad_id: int
) -> RepeatedSequence:
    """Lay out each suffix, `each` of the newest positions, after the positions visible to it."""
    if not torch.equal(suffixes.query_mask, suffixes.attention_mask):
        raise ValueError("without a cache a backbone can decode further queries only, not further tokens or images")
    new = suffixes.query_mask.nonzero().view(-1, each, 2)  # (M, R, 2): row and position
    row = new[:, 0, 0]  # (M,)
    cached = valid.shape[1] - suffixes.input_ids.shape[1]
    visible = _visible_positions(suffixes, valid, row, cached + new[:, :, 1], new[:, :, 1])  # (M, K)

    lengths = visible.sum(1)
    longest = int(lengths.max())
    order = (~visible).int().argsort(dim=1, stable=True)[:, :longest]  # (M, N): visible positions, then padding
    inside = torch.arange(longest, device=row.device) < lengths[:, None]

    def take(x: Tensor, padding: int) -> Tensor:
        return x[row].gather(1, order).masked_fill(~inside, padding)

    steps = take(past.steps, -1).cummax(1).values  # a suffix belongs to the last step before it
    has_image = torch.arange(past.images.shape[1], device=row.device) <= steps.amax(1)[:, None]  # (M, T)
    query = take(past.queries, False)
    sequence = TokenSequence(
        input_ids=take(past.ids, pad_id),
        attention_mask=inside,
        query_mask=query,
        step_ids=steps.masked_fill(~inside, -1),
        images=past.images[row][has_image],
    )
    at, position = query.nonzero(as_tuple=True)
    values = past.embeddings[row[at], take(past.queries.cumsum(1) - 1, 0)[at, position]]
    last = lengths[:, None] - each + torch.arange(each, device=row.device)  # (M, R): a suffix ends its row
    return RepeatedSequence(sequence, at * longest + position, values, last)


def _visible_positions(
    suffixes: TokenSequence,
    valid: Bool[Tensor, "S K"],
    row: Int64[Tensor, "M"],
    own: Int64[Tensor, "M R"],
    position: Int64[Tensor, "M R"],
) -> Bool[Tensor, "M K"]:
    """Return the positions visible to the last token of each suffix."""
    number = torch.arange(valid.shape[1], device=row.device)
    earlier = (number <= own[..., None]) & valid[row][:, None]  # (M, R, K)
    if suffixes.block_mask is None:
        return earlier[:, -1]
    each = suffixes.block_mask[row[:, None], position] & valid[row][:, None]  # (M, R, K)
    if not torch.equal(each, each[:, -1:] & earlier):
        raise ValueError(
            "attention to later positions needs a backbone with a cache and a block mask; with this one, decode the "
            "tokens one after another (decoding: autoregressive)"
        )
    return each[:, -1]
