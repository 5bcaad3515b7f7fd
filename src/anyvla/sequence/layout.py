"""Steps laid out into token sequences: prefix, then each step's tokens and the places of its queries."""

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
    """Put consecutive steps of `block` into sequences, right-padded to the longest (at least to `length` places).

    Of the `queries` places of each step, `before` stand before its tokens, the others after them.
    """
    rows: list[list[int]] = []
    places: list[list[bool]] = []
    numbers: list[list[int]] = []
    steps = iter(block.tokens)
    after = queries - before
    for count in steps_per_sequence:
        row, place, number = list(block.prefix), [False] * len(block.prefix), [-1] * len(block.prefix)
        for step in range(count):
            tokens = next(steps)
            row += [*[query_id] * before, *tokens, *[query_id] * after]
            place += [True] * before + [False] * len(tokens) + [True] * after
            number += [step] * (len(tokens) + queries)
        rows.append(row)
        places.append(place)
        numbers.append(number)
    length = max(length, *map(len, rows))
    device = block.images.device

    def pad(lists: Sequence[Sequence[int]], value: int, dtype: torch.dtype) -> Tensor:
        return torch.tensor([[*x, *[value] * (length - len(x))] for x in lists], dtype=dtype, device=device)

    return TokenSequence(
        input_ids=pad(rows, pad_id, torch.int64),
        attention_mask=pad([[True] * len(r) for r in rows], False, torch.bool),
        query_mask=pad(places, False, torch.bool),
        step_ids=pad(numbers, -1, torch.int64),
        images=block.images,
    )
