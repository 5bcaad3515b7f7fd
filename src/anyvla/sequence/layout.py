"""Lays steps out in token sequences: the prefix, then each step's tokens and query positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anyvla.sequence.tokens import StepTokens, TokenSequence


def lay_out(
    block: StepTokens,
    steps_per_sequence: Sequence[int],
    queries: int,
    *,
    pad_id: int,
    query_id: int,
    length: int = 0,
    before: int = 0,
) -> TokenSequence:
    """Lay consecutive steps of `block` out in sequences, right-padded to the longest or to `length` positions.

    Each step has `queries` query positions: `before` of them precede its tokens, the others follow.
    """
    rows: list[list[int]] = []
    query: list[list[bool]] = []
    numbers: list[list[int]] = []
    steps = iter(block.tokens)
    after = queries - before
    for count in steps_per_sequence:
        row, is_query, number = list(block.prefix), [False] * len(block.prefix), [-1] * len(block.prefix)
        for step in range(count):
            tokens = next(steps)
            row += [*[query_id] * before, *tokens, *[query_id] * after]
            is_query += [True] * before + [False] * len(tokens) + [True] * after
            number += [step] * (len(tokens) + queries)
        rows.append(row)
        query.append(is_query)
        numbers.append(number)
    length = max(length, *map(len, rows))
    device = block.images.device

    def pad(lists: Sequence[Sequence[int]], value: int, dtype: torch.dtype) -> Tensor:
        return torch.tensor([[*x, *[value] * (length - len(x))] for x in lists], dtype=dtype, device=device)

    return TokenSequence(
        input_ids=pad(rows, pad_id, torch.int64),
        attention_mask=pad([[True] * len(r) for r in rows], False, torch.bool),
        query_mask=pad(query, False, torch.bool),
        step_ids=pad(numbers, -1, torch.int64),
        images=block.images,
    )
