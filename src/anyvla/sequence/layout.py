"""Lays steps out in token sequences: the prefix, then each step's tokens and query positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from anyvla.sequence.tokens import HostTokens, StepTokens, TokenSequence
from anyvla.transfer import send

_IDS, _STEPS, _VALID, _QUERIES = range(4)


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
    ends = np.cumsum(steps_per_sequence).tolist()
    rows = [block.tokens[end - count : end] for end, count in zip(ends, steps_per_sequence, strict=True)]
    # Rows of the same texts are equal. Tokenizers keep the tokens of a text, so that their identity tells.
    equal: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(rows):
        equal.setdefault(tuple(map(id, row)), []).append(number)
    written = [_write(block.prefix, rows[numbers[0]], queries, before, query_id) for numbers in equal.values()]
    length = max(length, *(of.shape[1] for of in written))
    out = np.zeros((4, len(rows), length), np.int64)
    out[_IDS], out[_STEPS] = pad_id, -1
    for numbers, of in zip(equal.values(), written, strict=True):
        out[:, numbers, : of.shape[1]] = of[:, None]
    host = HostTokens(out[_IDS], out[_VALID].astype(bool), out[_QUERIES].astype(bool))
    sent = send(np.concatenate([out.ravel(), host.query_places]), block.images.device)  # one copy
    laid = sent[: out.size].view(torch.Size(out.shape))
    return TokenSequence(
        input_ids=laid[_IDS],
        attention_mask=laid[_VALID].bool(),
        query_mask=laid[_QUERIES].bool(),
        step_ids=laid[_STEPS],
        images=block.images,
        query_places=sent[out.size :],
        on_host=host,
    )


def _write(
    prefix: Sequence[int], steps: Sequence[Sequence[int]], queries: int, before: int, query_id: int
) -> np.ndarray:
    """Return the ids, steps, valid and query positions of one sequence, as rows."""
    ids, numbers, query = list(prefix), [-1] * len(prefix), [0] * len(prefix)
    after = queries - before
    for step, tokens in enumerate(steps):
        ids += [*[query_id] * before, *tokens, *[query_id] * after]
        numbers += [step] * (len(tokens) + queries)
        query += [*[1] * before, *[0] * len(tokens), *[1] * after]
    return np.array([ids, numbers, [1] * len(ids), query], np.int64)
