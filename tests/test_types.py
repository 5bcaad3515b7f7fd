"""Parts of a batch have all that belongs to their windows."""

from __future__ import annotations

import dataclasses

import torch

from tests.small import batch

WHOLE = dataclasses.replace(batch(3, 2), counts=[1, 2, 2], tokens=torch.arange(12).view(3, 2, 2))


def test_chosen_windows_keep_their_counts_and_tokens() -> None:
    chosen = WHOLE.select([2, 0])
    assert chosen.counts == [2, 1]
    assert chosen.instructions == [WHOLE.instructions[2], WHOLE.instructions[0]]
    assert chosen.tokens.tolist() == WHOLE.tokens[[2, 0]].tolist()
    assert torch.equal(chosen.images, WHOLE.images[[2, 0]])


def test_a_part_of_a_batch_knows_its_first_row() -> None:
    part = WHOLE.cut(1, 3).cut(1, 2)
    assert part.first_row == 2
    assert part.counts == [2]
    assert torch.equal(part.proprio, WHOLE.proprio[2:])
