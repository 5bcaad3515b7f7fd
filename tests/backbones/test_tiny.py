"""The tiny models are those of their families, at the sizes that the recipe names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    LlavaForConditionalGeneration,
    PaliGemmaForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    SmolVLMForConditionalGeneration,
)

from anyvla.backbones.adapting.parts import parameters_by_part
from anyvla.backbones.checks.conformance import examine
from anyvla.backbones.tiny import FAMILIES, TinyBackbone
from anyvla.config import build
from anyvla.sequence.tokens import TokenSequence

Pack = Callable[..., TokenSequence]
SMALL: dict[str, Any] = {"width": 32, "heads": 2, "image_size": 64}
CLASSES = {
    "llava": LlavaForConditionalGeneration,
    "paligemma": PaliGemmaForConditionalGeneration,
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "smolvlm": SmolVLMForConditionalGeneration,
}


def make(family: str, **options: Any) -> TinyBackbone:
    return TinyBackbone(build(TinyBackbone.Config, {"family": family, **SMALL, **options}))


def test_every_family_is_tested() -> None:
    assert set(CLASSES) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_passes_the_checks(family: str) -> None:
    backbone = make(family)
    config = build(TinyBackbone.Config, {"family": family, **SMALL})
    assert type(backbone.model) is CLASSES[family]
    assert backbone.image_tokens == 4  # 64 / 32 a side
    assert TinyBackbone.find_capabilities(config) == backbone.capabilities
    results = list(examine(backbone, config))
    assert [(r.check, r.detail) for r in results if r.state == "failed"] == []
    assert {r.check for r in results if r.state == "not applicable"} == ({"steps"} if family == "paligemma" else set())


@pytest.mark.parametrize("family", FAMILIES)
def test_all_sizes_reach_the_model(family: str) -> None:
    whole = parameters_by_part(make(family))
    for option, value, part in (("layers", 3, "language"), ("vision_layers", 3, "vision"), ("mlp", 5, "language")):
        other = parameters_by_part(make(family, **{option: value}))
        grown = {p for p in other if sum(map(torch.numel, other[p])) > sum(map(torch.numel, whole[p]))}
        assert part in grown, option
        assert option == "mlp" or grown == {part}, option
    assert make(family, width=48).width == 48
    assert make(family, image_size=96).image_tokens == 9


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_that_is_trained_gets_a_gradient(family: str, pack: Pack) -> None:
    backbone = make(family).train()
    images = torch.randint(0, 256, (2, 2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sequence = pack(backbone, backbone.tokenize(images, ["open it", "close it now"]), [1, 1], 2)
    query = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    (backbone(sequence, query) * torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(2))).sum().backward()
    without = {n for n, w in backbone.named_parameters() if w.requires_grad and w.grad is None}
    pooled = "model.model.vision_tower.post_layernorm"  # CLIP's norm of the pooled output, which LLaVA does not read
    assert without == ({f"{pooled}.weight", f"{pooled}.bias"} if family == "llava" else set())


def test_the_seed_fixes_the_weights() -> None:
    one, two, other = (make("smolvlm", seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "qwen2_vl", "width": 36, "heads": 6}, "width 36 must be a multiple of 4 x heads (24)"),
        ({"family": "llava", "image_size": 48}, "image_size 48 must be a multiple of 32"),
        ({"family": "gemma"}, "family"),
        ({}, "family"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        build(TinyBackbone.Config, options)
    assert message in str(caught.value)
