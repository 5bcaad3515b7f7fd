"""Positions in time, height and width (M-RoPE) of Qwen-VL and GLM-4V."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.base import Cache
from anyvla.sequence.layout import lay_out
from anyvla.sequence.tokens import StepTokens, TokenSequence
from tests.backbones.families import FAMILIES
from tests.backbones.families.common import write_family

NAMES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v"]
TEXTS = ["open", "close the drawer slowly", "push it"]
ROWS = COLUMNS = 2  # tokens of an image: 28 pixels are 4 patches, merged in twos


@pytest.fixture(scope="module", params=NAMES)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AutoBackbone:
    family = FAMILIES[request.param]
    folder: Path = write_family(family, tmp_path_factory.mktemp(request.param))
    config = AutoBackbone.Config(path=str(folder), prompt="do {instruction}", **family.options)
    return AutoBackbone(config).eval()


def frames(steps: int, views: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (steps, views, 28, 28, 3), dtype=torch.uint8, generator=generator)


def sequence(backbone: Any, block: StepTokens, groups: list[int], readouts: int, length: int = 0) -> TokenSequence:
    return lay_out(block, groups, readouts, pad_id=backbone.pad_id, query_id=backbone.query_id, length=length)


def positions(backbone: Any, laid_out: TokenSequence, cache: Cache | None = None) -> torch.Tensor:
    """Return the position ids that the language model gets, (3, S, L)."""
    seen: list[torch.Tensor] = []

    def see(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        seen.append(given["position_ids"])

    handle = backbone.model.register_forward_pre_hook(see, with_kwargs=True)
    try:
        with torch.no_grad():
            queries = torch.zeros(int(laid_out.query_mask.sum()) // len(laid_out.images), 32)
            backbone(laid_out, queries, cache)
    finally:
        handle.remove()
    length = laid_out.input_ids.shape[1]
    return seen[0].expand(3, len(laid_out.input_ids), length)


def counted(backbone: Any, ids: list[int]) -> torch.Tensor:
    """Count positions (3, L) as in the papers: an image's tokens share a time and advance it by their side."""
    now, out, i = 0, [], 0
    while i < len(ids):
        if ids[i] == backbone.image_id:
            out += [(now, now + row, now + column) for row in range(ROWS) for column in range(COLUMNS)]
            i, now = i + ROWS * COLUMNS, now + max(ROWS, COLUMNS)
        else:
            out.append((now, now, now))
            i, now = i + 1, now + 1
    return torch.tensor(out).T


def test_positions_are_as_in_the_paper_with_any_padding(backbone: AutoBackbone) -> None:
    block = backbone.tokenize(frames(3), TEXTS)
    laid_out = sequence(backbone, block, [1, 2], 2, length=80)
    given = positions(backbone, laid_out)
    for row, valid, got in zip(laid_out.input_ids, laid_out.attention_mask, given.unbind(1), strict=True):
        assert torch.equal(got[:, valid], counted(backbone, row[valid].tolist()))


def test_positions_after_a_cache_equal_the_positions_without(backbone: AutoBackbone) -> None:
    if "cache" not in backbone.capabilities:
        pytest.skip("has no cache")
    images = frames(4)
    block = backbone.tokenize(images, [TEXTS[0], TEXTS[1], TEXTS[1], TEXTS[2]])
    whole = sequence(backbone, block, [2, 2], 1)
    expected = positions(backbone, whole)
    cache, parts, valid = Cache(), [], []
    for step in range(2):
        prefix = block.prefix if step == 0 else ()
        now = StepTokens(prefix, [block.tokens[step], block.tokens[2 + step]], images[[step, 2 + step]])
        laid_out = sequence(backbone, now, [1, 1], 1)
        parts.append(positions(backbone, laid_out, cache))
        valid.append(laid_out.attention_mask)
    got, kept = torch.cat(parts, 2), torch.cat(valid, 1)
    for i in range(2):
        assert torch.equal(got[:, i, kept[i]], expected[:, i, whole.attention_mask[i]])


def test_an_earlier_sequence_of_another_shape_has_no_effect(backbone: AutoBackbone) -> None:
    query = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    block = backbone.tokenize(frames(2), TEXTS[:2])
    laid_out = sequence(backbone, block, [1, 1], 1)
    with torch.no_grad():
        before = backbone(laid_out, query)
        backbone(sequence(backbone, backbone.tokenize(frames(3, 1), TEXTS), [3], 1), query)
        backbone.generate(sequence(backbone, backbone.tokenize(frames(1, 1), TEXTS[:1]), [1], 0), 3)
        assert torch.equal(backbone(laid_out, query), before)


def test_images_of_two_cameras_are_never_adjacent(backbone: AutoBackbone) -> None:
    """Two images without a token between them would be taken for one image."""
    ids = backbone.tokenize(frames(1, 3), TEXTS[:1]).tokens[0]
    runs = [len(run) for run in "".join("i" if i == backbone.image_id else " " for i in ids).split()]
    assert runs == [ROWS * COLUMNS] * 3
