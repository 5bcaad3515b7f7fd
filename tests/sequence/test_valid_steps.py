"""Valid steps by counts select and place the same values as the mask does."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from anyvla.sequence.valid_steps import ValidSteps

COUNTS = st.lists(st.integers(0, 4), min_size=1, max_size=5)


@given(COUNTS)
def test_they_select_and_scatter_as_the_mask_does(counts: list[int]) -> None:
    mask = torch.arange(4) < torch.tensor(counts)[:, None]
    valid = ValidSteps(counts, 4, mask.device)
    values = torch.randn(*mask.shape, 2, 3)
    assert torch.equal(valid.select(values), values[mask])
    placed = torch.zeros(*mask.shape, 3)
    placed[mask] = values[mask][:, 0]
    assert torch.equal(valid.scatter(values[mask][:, 0]), placed)
    assert ValidSteps.of_mask(mask).counts == tuple(counts)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_first_and_last_steps_are_numbered_among_the_valid_ones(counts: list[int]) -> None:
    valid = ValidSteps(counts, 4, torch.device("cpu"))
    numbers = valid.scatter(torch.arange(sum(counts)))
    assert valid.first_steps().tolist() == numbers[:, 0].tolist()
    assert valid.last_steps().tolist() == [int(numbers[row, count - 1]) for row, count in enumerate(counts)]
