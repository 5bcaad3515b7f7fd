import torch

from anyvla.histories.base import stack_windows
from anyvla.sequence.layout import lay_out
from anyvla.sequence.tokens import StepTokens

IDS = {"pad_id": 0, "query_id": 9}
BLOCK = StepTokens([1], [[5, 6], [7], [5, 6, 7]], torch.zeros(3, 1, 2, 2, 3, dtype=torch.uint8))


def test_each_step_may_be_a_separate_sequence():
    sequence = lay_out(BLOCK, [1, 1, 1], 2, **IDS)
    assert sequence.input_ids.tolist() == [[1, 5, 6, 9, 9, 0], [1, 7, 9, 9, 0, 0], [1, 5, 6, 7, 9, 9]]
    assert sequence.attention_mask.sum(1).tolist() == [5, 4, 6]
    assert (sequence.input_ids[sequence.query_mask] == 9).all()
    assert sequence.query_mask.sum() == 6


def test_rows_of_equal_texts_are_equal_and_rows_of_others_are_not():
    first, second = [5, 6], [7, 8]
    block = StepTokens([1], [first, second, first], torch.zeros(3, 1, 2, 2, 3, dtype=torch.uint8))
    sequence = lay_out(block, [1, 1, 1], 1, **IDS)
    assert sequence.input_ids.tolist() == [[1, 5, 6, 9], [1, 7, 8, 9], [1, 5, 6, 9]]


def test_places_found_on_the_host_are_those_of_the_tensors():
    sequence = lay_out(BLOCK, [2, 1], 3, before=2, **IDS)
    assert torch.equal(sequence.find_queries(), sequence.query_mask.flatten().nonzero().squeeze(1))
    assert torch.equal(sequence.find_tokens(5), (sequence.input_ids == 5).flatten().nonzero().squeeze(1))
    assert sequence.on_host.attention_mask.tolist() == sequence.attention_mask.tolist()


def test_steps_of_one_sequence_share_its_prefix():
    sequence = lay_out(BLOCK, [2, 1], 1, **IDS)
    assert sequence.input_ids.tolist() == [[1, 5, 6, 9, 7, 9], [1, 5, 6, 7, 9, 0]]
    assert sequence.query_mask.tolist() == [
        [False, False, False, True, False, True],
        [False, False, False, False, True, False],
    ]


def test_queries_may_precede_the_tokens_of_a_step():
    sequence = lay_out(BLOCK, [2, 1], 3, before=2, **IDS)
    assert sequence.input_ids.tolist() == [[1, 9, 9, 5, 6, 9, 9, 9, 7, 9], [1, 9, 9, 5, 6, 7, 9, 0, 0, 0]]
    assert sequence.step_ids.tolist() == [[-1, 0, 0, 0, 0, 0, 1, 1, 1, 1], [-1, 0, 0, 0, 0, 0, 0, -1, -1, -1]]


def test_windows_of_different_lengths_are_stacked():
    out, counts = stack_windows([torch.ones(1, 2), torch.tensor([[0.0, 0], [1, 1], [2, 2]])])
    assert counts == [1, 3]
    assert out[:, :, 0].tolist() == [[1, 0, 0], [0, 1, 2]]
