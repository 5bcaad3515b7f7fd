"""Going on after what was read by reading it again: for backbones that remember nothing (no capability "cache").

Their `Cache` holds the sequences themselves. At each call with it every suffix gets a row of its own, in which stand
the places that it sees and, right after them, the suffix; places hidden from it are left out. So the model needs no
mask, only that no place sees later ones; the price is the whole sequence, images included, at each call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from anyvla.backbones.hooks import written
from anyvla.sequence.cache import Cache
from anyvla.sequence.tokens import TokenSequence

if TYPE_CHECKING:
    from anyvla.backbones.tokens import TokenBackbone


@dataclass(frozen=True)
class Sequences:
    """What stands in S rows so far: K places, of suffixes too. The state of a `Cache`."""

    ids: Int64[Tensor, "S K"]
    steps: Int64[Tensor, "S K"]  # as in `TokenSequence`; -1 in suffixes
    queries: Bool[Tensor, "S K"]
    written: Float[Tensor, "S Q D"]  # what stands at the queries of a row, in order
    images: UInt8[Tensor, "S W V H w 3"]  # of the steps of a row


def read(
    backbone: TokenBackbone, sequence: TokenSequence, queries: Float[Tensor, "*M R D"], cache: Cache
) -> Float[Tensor, "M R D"]:
    """As `Backbone.forward` with a cache: first whole steps, then suffixes of queries that follow them.

    Raises ValueError for a suffix that sees later places of its own, which is not to be had without a block mask.
    """
    each, rows = queries.shape[-2], sequence.query_mask.sum(1).tolist()
    values = queries.expand(sum(rows) // each, -1, -1).flatten(0, 1).split(rows)  # of each row
    if cache.valid is None:
        cache.model_cache, cache.valid = _begun(sequence, values), sequence.attention_mask
        # Without queries there is nothing to give: the steps are read when they are gone on from.
        hidden = backbone(sequence, queries) if any(rows) else queries.new_zeros(0, each, backbone.width)
    else:
        cache.model_cache = _extended(cache.model_cache, sequence, values)
        cache.valid = torch.cat([cache.valid, sequence.attention_mask], 1)
        hidden = _read_again(backbone, sequence, cache.model_cache, cache.valid, each).to(queries.dtype)
    cache.positions = torch.arange(cache.valid.shape[1], device=cache.valid.device).expand(cache.valid.shape)
    return hidden


def _begun(sequence: TokenSequence, values: Sequence[Float[Tensor, "q D"]]) -> Sequences:
    images = sequence.images.split((sequence.step_ids.amax(1) + 1).tolist())
    return Sequences(
        ids=sequence.input_ids,
        steps=sequence.step_ids,
        queries=sequence.query_mask,
        written=pad_sequence(list(values), batch_first=True),
        images=pad_sequence(list(images), batch_first=True),
    )


def _extended(old: Sequences, sequence: TokenSequence, values: Sequence[Float[Tensor, "q D"]]) -> Sequences:
    counts = old.queries.sum(1).tolist()
    rows = [torch.cat([row[:count], new]) for row, count, new in zip(old.written, counts, values, strict=True)]
    return Sequences(
        ids=torch.cat([old.ids, sequence.input_ids], 1),
        steps=torch.cat([old.steps, torch.full_like(sequence.step_ids, -1)], 1),
        queries=torch.cat([old.queries, sequence.query_mask], 1),
        written=pad_sequence(rows, batch_first=True),
        images=old.images,
    )


def _read_again(
    backbone: TokenBackbone, suffixes: TokenSequence, now: Sequences, valid: Bool[Tensor, "S K"], each: int
) -> Float[Tensor, "M R D"]:
    """The hidden states at the newest places, `each` a suffix, which are the last of K."""
    if not torch.equal(suffixes.query_mask, suffixes.attention_mask):
        raise ValueError("without a cache a backbone goes on with queries only, not with further tokens or images")
    new = suffixes.query_mask.nonzero().view(-1, each, 2)  # (M, R, 2): row and place
    row = new[:, 0, 0]  # (M,)
    remembered = valid.shape[1] - suffixes.input_ids.shape[1]
    own = remembered + new[:, :, 1]  # (M, R)
    seen = _seen(suffixes, valid, row, own, new[:, :, 1])  # (M, K)

    lengths = seen.sum(1)
    longest = int(lengths.max())
    if backbone.context is not None and longest > backbone.context:
        raise ValueError(
            f"a sequence of {longest} tokens exceeds the model's context of {backbone.context}: "
            "use a shorter window, fewer cameras or shorter instructions"
        )
    order = (~seen).int().argsort(dim=1, stable=True)[:, :longest]  # (M, N): the places seen, then padding
    here = torch.arange(longest, device=row.device) < lengths[:, None]

    def taken(x: Tensor, padding: int) -> Tensor:
        return x[row].gather(1, order).masked_fill(~here, padding)

    steps = taken(now.steps, -1).cummax(1).values  # a suffix belongs to the last step before it
    has = torch.arange(now.images.shape[1], device=row.device) <= steps.amax(1)[:, None]  # (M, W)
    query = taken(now.queries, False)
    again = TokenSequence(
        input_ids=taken(now.ids, backbone.pad_id),
        attention_mask=here,
        query_mask=query,
        step_ids=steps.masked_fill(~here, -1),
        images=now.images[row][has],
    )
    at, place = query.nonzero(as_tuple=True)
    values = now.written[row[at], taken(now.queries.cumsum(1) - 1, 0)[at, place]]
    shape = again.input_ids.shape
    with written(backbone.embedding, shape, at * longest + place, values), backbone.capture_hidden_states() as hidden:
        backbone.run_model(again, None)
    last = lengths[:, None] - each + torch.arange(each, device=row.device)  # (M, R): a suffix ends its row
    return hidden[0].take_along_dim(last[..., None], 1)


def _seen(
    suffixes: TokenSequence,
    valid: Bool[Tensor, "S K"],
    row: Int64[Tensor, "M"],
    own: Int64[Tensor, "M R"],
    place: Int64[Tensor, "M R"],
) -> Bool[Tensor, "M K"]:
    """The places that the last place of each suffix sees."""
    number = torch.arange(valid.shape[1], device=row.device)
    earlier = (number <= own[..., None]) & valid[row][:, None]  # (M, R, K)
    if suffixes.block_mask is None:
        return earlier[:, -1]
    each = suffixes.block_mask[row[:, None], place] & valid[row][:, None]  # (M, R, K)
    if not torch.equal(each, each[:, -1:] & earlier):
        raise ValueError(
            "places that see later ones need a backbone with a cache and a block mask: with this one, let tokens "
            "be written one after another (decoding: autoregressive)"
        )
    return each[:, -1]
