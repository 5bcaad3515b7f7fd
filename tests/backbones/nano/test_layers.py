"""The simplified layers and the direct calls of nano compute the same as the classes of `transformers`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel, LlamaRMSNorm

from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.base import Cache
from anyvla.backbones.nano.backbone import NanoBackbone
from anyvla.backbones.nano.layers import NanoLayer, NanoRMSNorm, simplify_layers

SMALL: dict[str, Any] = {"width": 24, "heads": 3, "mlp": 40, "image_size": 32, "channels": (8, 16)}
TEXTS = ["open the drawer", "close the window from the left", "reach"]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[NanoBackbone, AutoBackbone]:
    """A nano, and the same model as `transformers` builds it from a folder."""
    nano, folder = NanoBackbone(NanoBackbone.Config(**SMALL)).eval(), tmp_path_factory.mktemp("nano")
    with torch.no_grad():
        for name, weight in nano.named_parameters():
            if "norm" in name:  # else all are ones
                weight.copy_(1 + randn(*weight.shape, seed=len(name)) / 4)
    nano.model.save_pretrained(folder)
    nano.save_assets(folder)
    return nano, AutoBackbone(AutoBackbone.Config(path=str(folder), prompt="{instruction}")).eval()


def test_a_nano_is_simplified_however_it_is_built(pair: tuple[NanoBackbone, AutoBackbone], tmp_path: Path) -> None:
    nano, plain = pair
    nano.save_assets(tmp_path)
    for backbone in (nano, NanoBackbone(NanoBackbone.Config(**SMALL), assets=tmp_path)):
        language = backbone.model.model.language_model
        assert {type(layer) for layer in language.layers} == {NanoLayer}
        assert type(language.norm) is NanoRMSNorm
    assert {type(layer) for layer in plain.model.model.language_model.layers} == {LlamaDecoderLayer}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_has_the_output_and_gradients_of_llamas(dtype: torch.dtype) -> None:
    theirs = LlamaRMSNorm(24, eps=1e-3).to(dtype)
    torch.nn.init.normal_(theirs.weight)
    ours = copy.deepcopy(theirs)
    ours.__class__ = NanoRMSNorm
    x = randn(2, 5, 24).to(dtype) / 8
    results = []
    for norm in (ours, theirs):
        given = x.clone().requires_grad_()
        out = norm(given)
        out.backward(randn(2, 5, 24, seed=1).to(dtype))
        results.append((out.detach(), given.grad, norm.weight.grad))
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, atol=2e-6, rtol=2e-6)


@pytest.fixture
def layers() -> tuple[Any, Any]:
    """Layers of a simplified Llama and of the same Llama with its own classes."""
    config = LlamaConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=3, vocab_size=9, pad_token_id=0
    )
    torch.manual_seed(0)
    theirs = LlamaModel(config)
    ours = copy.deepcopy(theirs)
    simplify_layers(ours)
    return ours, theirs


def test_a_layer_returns_the_positions_it_is_asked_for(layers: tuple[Any, Any]) -> None:
    ours, theirs = layers
    rotation = theirs.rotary_emb(randn(1), torch.arange(7)[None])
    readouts = torch.tensor([[2, 6], [0, 5], [3, 4]])
    gradients = []
    for model, asked in ((ours, readouts), (ours, None), (theirs, None)):
        x = randn(3, 7, 24).requires_grad_()
        given = {"attention_mask": None, "position_embeddings": rotation}
        out = model.layers[0](x, **given, **({} if asked is None else {"readouts": asked}))
        rows = out if asked is not None else out[torch.arange(3)[:, None], readouts]
        rows.backward(randn(3, 2, 24, seed=1))
        gradients.append([rows.detach(), x.grad, *(w.grad for w in model.layers[0].parameters())])
        model.zero_grad()
    for mine, whole, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, reference, atol=2e-6, rtol=2e-5)
        torch.testing.assert_close(whole, reference, atol=2e-6, rtol=2e-5)


def test_a_layer_obeys_a_mask(layers: tuple[Any, Any]) -> None:
    x, mask = randn(2, 6, 24), torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    mask |= torch.eye(6, dtype=torch.bool)
    ours, theirs = (
        model.layers[0](x, attention_mask=mask, position_embeddings=model.rotary_emb(x, torch.arange(6)[None]))
        for model in layers
    )
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("cameras", [1, 3])
@pytest.mark.parametrize(
    ("groups", "padding", "cached"),
    [
        ([1, 1, 1], 0, False),  # of different lengths
        ([3], 4, False),  # one window
        ([2, 1], 0, False),  # windows with different numbers of queries
        ([1, 1, 1], 0, True),
    ],
)
def test_readouts_and_gradients_are_those_of_transformers(
    pair: tuple[NanoBackbone, AutoBackbone],
    pack: Callable[..., Any],
    groups: list[int],
    padding: int,
    cached: bool,
    cameras: int,
) -> None:
    images = torch.randint(0, 256, (3, cameras, 32, 32, 3), generator=torch.Generator().manual_seed(0)).byte()
    results = []
    for backbone in pair:
        queries = randn(3, 2, 24).requires_grad_()
        sequence = pack(backbone, backbone.tokenize(images, TEXTS), groups, 2, padding)
        out = backbone(sequence, queries, Cache() if cached else None)
        out.backward(randn(3, 2, 24, seed=1))
        gradients = {n: w.grad for n, w in backbone.named_parameters() if w.grad is not None}
        results.append({"out": out.detach(), "queries": queries.grad} | gradients)
        backbone.zero_grad()
    ours, theirs = results
    assert set(ours) == set(theirs)
    for name, mine in ours.items():
        torch.testing.assert_close(mine, theirs[name], atol=2e-5, rtol=5e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_autocast_changes_readouts_by_rounding_only(
    pair: tuple[NanoBackbone, AutoBackbone], pack: Callable[..., Any]
) -> None:
    nano, _ = pair
    images = torch.randint(0, 256, (2, 2, 32, 32, 3), generator=torch.Generator().manual_seed(0)).byte()
    sequence, queries = pack(nano, nano.tokenize(images, TEXTS[:2]), [1, 1], 2), randn(2, 24)
    with torch.no_grad():
        exact = nano(sequence, queries)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = nano(sequence, queries)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.05


def test_the_last_layer_computes_queries_and_feed_forward_at_the_readouts_only(
    pair: tuple[NanoBackbone, AutoBackbone], pack: Callable[..., Any]
) -> None:
    nano, _ = pair
    seen: list[int] = []
    last = nano.model.model.language_model.layers[-1]
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
        for module in (last.self_attn.q_proj, last.mlp)
    ]
    nano(pack(nano, nano.tokenize(torch.zeros(2, 1, 32, 32, 3).byte(), TEXTS[:2]), [2], 3), randn(3, 24))
    for hook in hooks:
        hook.remove()
    assert seen == [6, 6]
