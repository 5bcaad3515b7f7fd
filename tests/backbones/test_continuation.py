"""A suffix decoded after a cached step gives the same hidden states as the same tokens in one pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anyvla.sequence.layout import lay_out
from tests.small import batch, fit_codec, policy

LENGTH = 4  # tokens of the suffix


@pytest.mark.parametrize("parts", [(4,), (1, 3), (1, 1, 1, 1)])  # numbers of tokens that are decoded at a time
@torch.no_grad()
def test_a_suffix_equals_the_same_tokens_in_one_pass(parts: tuple[int, ...], tmp_path: Path) -> None:
    """The one pass has no readouts: a suffix does not see the readouts of its step and replaces them."""
    vla = policy(decoder="lm_tokens", representation="bins", codec=fit_codec("bins", tmp_path / "codec"), readouts=2)
    data, backbone = batch(3, 1), vla.backbone
    suffix = torch.randn(LENGTH, backbone.width, generator=torch.Generator().manual_seed(0))
    block = backbone.tokenize(data.images[:, 0], data.instructions)
    assert len({len(tokens) for tokens in block.tokens}) > 1  # rows are padded
    sequence = lay_out(block, [1] * 3, LENGTH, pad_id=backbone.pad_id, query_id=backbone.query_id)
    expected = backbone(sequence, suffix)
    continuation = vla.read(data).continuation
    assert continuation is not None
    writing = continuation.start_suffix()
    written = [writing.extend(part.expand(3, -1, -1)) for part in suffix.split(parts)]
    torch.testing.assert_close(torch.cat(written, 1), expected, atol=1e-5, rtol=1e-5)
