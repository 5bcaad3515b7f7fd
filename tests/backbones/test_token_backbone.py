"""Common parts of backbones over token ids: masks, positions, and embedding and scoring of single tokens."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.base import Cache
from anyvla.backbones.language_config import EVERYWHERE
from anyvla.backbones.masks import build_mask
from anyvla.sequence.tokens import TokenSequence
from tests.backbones.families import FAMILIES
from tests.backbones.families.common import SPECIAL, VOCABULARY, write_family

IMAGE, QUERY, WORD = SPECIAL.index("<image>"), 3, 100
# Two steps of two images (of two tokens and one token), a word and a query each; then padding.
IDS = [2, IMAGE, IMAGE, WORD, IMAGE, QUERY, IMAGE, IMAGE, WORD, IMAGE, QUERY, 0]
STEPS = [-1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, -1]
LENGTH = len(IDS)


@pytest.fixture(scope="module")
def backbone(llava_folder: Path) -> AutoBackbone:
    return AutoBackbone(AutoBackbone.Config(path=str(llava_folder), prompt="do {instruction}")).eval()


@pytest.fixture
def sequence() -> TokenSequence:
    ids = torch.tensor([IDS])
    query = ids == QUERY
    images = torch.zeros(2, 2, 8, 8, 3, dtype=torch.uint8)
    return TokenSequence(ids, ids != 0, query, torch.tensor([STEPS]), images)


def image_of(place: int) -> int:
    """Return the number of the image to which a position belongs; 0: none."""
    number = 0
    for i in range(place + 1):
        number += IDS[i] == IMAGE and (i == 0 or IDS[i - 1] != IMAGE)
    return number if IDS[place] == IMAGE else 0


def build_expected_mask(
    attention: str, valid: list[bool], window: int | None, hidden: Tensor | None = None, decides: bool = False
) -> Tensor:
    """Build the mask position by position from the definitions in `anyvla.backbones.masks`, cached positions first."""
    earlier = len(valid) - LENGTH
    out = torch.zeros(LENGTH, len(valid), dtype=torch.bool)
    for i in range(LENGTH):
        for k in range(len(valid)):
            j = k - earlier  # negative: cached
            between = sum(valid[k + 1 : i + earlier + 1])  # tokens after k, up to i
            near = window is None or between < window
            sees = j <= i and near
            if attention == "prefix":
                sees |= IDS[i] != QUERY and (j < 0 or IDS[j] != QUERY)
            elif attention in ("image", "image_in_windows") and j >= 0:
                wide = attention == "image" or window is not None
                sees |= wide and near and image_of(i) == image_of(j) > 0
            elif attention == "images" and j >= 0:
                sees |= IDS[i] == IDS[j] == IMAGE and STEPS[i] == STEPS[j]
            elif attention == "full":
                sees = near
            if hidden is not None:
                sees = bool(hidden[i, k]) and (near if decides else sees)
            out[i, k] = (sees and valid[k]) or i == j
    return out


@pytest.mark.parametrize("earlier", [0, 4])
@pytest.mark.parametrize("block_mask", ["none", "hides", "decides"])
@pytest.mark.parametrize(
    ("attention", "window"),
    [
        ("causal", None),
        ("causal", 4),
        ("image", None),
        ("image", 2),
        ("image_in_windows", None),
        ("image_in_windows", 2),
        ("images", None),
        ("prefix", None),
        ("full", None),
        ("full", 3),
    ],
)
def test_masks_follow_their_definitions(
    backbone: AutoBackbone,
    sequence: TokenSequence,
    attention: str,
    window: int | None,
    block_mask: str,
    earlier: int,
) -> None:
    valid = [True, False, True, True][:earlier] + [i != 0 for i in IDS]
    hidden = torch.rand(LENGTH, len(valid), generator=torch.Generator().manual_seed(0)) < 0.7
    if block_mask == "none":
        hidden = None
    mask = None if hidden is None else hidden[None]
    laid_out = dataclasses.replace(sequence, block_mask=mask, block_mask_only=block_mask == "decides")
    images = backbone.get_image_mask(sequence)
    given = build_mask(laid_out, torch.tensor([valid]), attention=attention, window=window, images=images)  # type: ignore[arg-type]
    assert torch.equal(given[0, 0], build_expected_mask(attention, valid, window, hidden, block_mask == "decides"))


def test_layers_of_each_kind_get_the_mask_of_their_window(
    backbone: AutoBackbone, sequence: TokenSequence, monkeypatch: pytest.MonkeyPatch
) -> None:
    valid = [i != 0 for i in IDS]
    monkeypatch.setattr(backbone, "windows", {"sliding_attention": 4, "full_attention": None})
    masks: Any = backbone.build_attention_masks(sequence, torch.tensor([valid]))
    assert set(masks) == {"sliding_attention", "full_attention"}
    for kind, window in (("sliding_attention", 4), ("full_attention", None)):
        assert torch.equal(masks[kind][0, 0], build_expected_mask("causal", valid, window))
    # If the window is as long as the sequence, all layers share one mask.
    for window, kinds in ((LENGTH, 1), (LENGTH - 1, 2)):
        monkeypatch.setattr(backbone, "windows", {"sliding_attention": window, "full_attention": None})
        given: Any = backbone.build_attention_masks(sequence, torch.tensor([valid]))
        assert len(given) == kinds
    monkeypatch.setattr(backbone, "additive_masks", True)
    monkeypatch.setattr(backbone, "windows", EVERYWHERE)
    numbers: Any = backbone.build_attention_masks(sequence, torch.tensor([valid]))
    numbers = numbers[0, 0]
    assert torch.equal(numbers == 0, build_expected_mask("causal", valid, None))
    assert set(numbers.unique().tolist()) == {0.0, torch.finfo(torch.float32).min}


def test_positions_continue_after_the_last_token_of_each_row(
    backbone: AutoBackbone, sequence: TokenSequence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding takes no position after a cache, and the first position is the family's."""
    monkeypatch.setattr(backbone, "first_position", 2)
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]])
    yes = ids != 0
    rows = TokenSequence(ids, yes, yes & False, ids * 0, sequence.images[:0])
    assert backbone.language_inputs(rows, None)["position_ids"].tolist() == [[2, 3, 4, 5]] * 2
    cache = Cache()
    assert backbone.language_inputs(rows, cache)["position_ids"].tolist() == [[2, 3, 4, 5]] * 2
    given = backbone.language_inputs(rows, cache)
    assert given["position_ids"].tolist() == [[6, 7, 8, 9], [4, 5, 6, 7]]
    assert given["attention_mask"].tolist() == [[1] * 8, [1, 1, 0, 0] * 2]
    assert cache.next_position is not None
    assert cache.next_position.tolist() == [10, 6]
    jump = dataclasses.replace(rows, positions=torch.tensor([[20, 21, 22, 23], [30, 31, 32, 33]]))
    assert backbone.language_inputs(jump, cache)["position_ids"].tolist() == jump.positions.tolist()  # type: ignore[union-attr]


@torch.no_grad()
def test_tokens_are_scored_by_the_whole_lm_head(backbone: AutoBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    head = torch.nn.Linear(32, VOCABULARY)  # with a bias
    monkeypatch.setattr(backbone.model, "get_output_embeddings", lambda: head)
    hidden = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([70, 4, 201])
    torch.testing.assert_close(backbone.compute_logits(hidden, ids), head(hidden)[..., ids])


@torch.no_grad()
def test_tokens_are_embedded_as_the_model_does(backbone: AutoBackbone, tmp_path: Path) -> None:
    ids = torch.tensor([[70, 4], [201, 5]])
    assert torch.equal(backbone.embed(ids), backbone.model.get_input_embeddings().weight[ids])
    path = str(write_family(FAMILIES["paligemma"], tmp_path))
    gemma = AutoBackbone(AutoBackbone.Config(path=path))
    table = gemma.model.get_input_embeddings().weight
    torch.testing.assert_close(gemma.embed(ids), table[ids] * 32**0.5)  # Gemma's table scales embeddings


def test_last_token_ids_are_the_last_regular_ids(backbone: AutoBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """The special tokens of this tokenizer come first, one of them not marked as special, then 256 bytes."""
    assert backbone.last_token_ids(3).tolist() == [VOCABULARY - 3, VOCABULARY - 2, VOCABULARY - 1]
    assert backbone.last_token_ids(256)[0] == len(SPECIAL)
    with pytest.raises(ValueError, match="257 ids are more than the vocabulary of 257 regular tokens"):
        backbone.last_token_ids(257)
    monkeypatch.setattr(backbone, "image_id", VOCABULARY - 2)
    assert backbone.last_token_ids(3).tolist() == [VOCABULARY - 4, VOCABULARY - 3, VOCABULARY - 1]
