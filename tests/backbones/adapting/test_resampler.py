from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anyvla.backbones.adapting.options import Resampler
from anyvla.backbones.adapting.parts import parameters_by_part
from anyvla.backbones.adapting.resampler import PerceiverResampler
from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.checks.conformance import CHECKS
from anyvla.backbones.checks.examined import ExaminedBackbone, NotApplicable
from anyvla.config import build
from tests.backbones.families import FAMILIES
from tests.backbones.families.common import write_family

SMALL = {"tokens": 5, "depth": 2, "heads": 2, "head_width": 8}
NONE = {"kosmos-2", "kosmos-2.5", "idefics", "mllama", "git"}  # no image features of their own to resample
SOME = [
    f for f in ("llava", "paligemma", "qwen2_5_vl", "qwen3_vl", "gemma3", "idefics2", "llava_next") if f in FAMILIES
]
Build = Callable[..., Any]


@pytest.fixture(scope="module")
def build_one(tmp_path_factory: pytest.TempPathFactory) -> Build:
    folders: dict[str, Path] = {}

    def build_one(family: str, **options: Any) -> AutoBackbone:
        if family not in folders:
            folders[family] = write_family(FAMILIES[family], tmp_path_factory.mktemp(family))
        keys = {"path": str(folders[family]), "prompt": "do {instruction}", **FAMILIES[family].options, **options}
        return AutoBackbone(build(AutoBackbone.Config, keys)).eval()

    return build_one


def compute_by_equations(model: PerceiverResampler, features: Tensor) -> Tensor:
    """Compute Flamingo's Perceiver (arXiv 2204.14198, listing 1), one image and one head at a time."""
    images = []
    for image in features:
        latents = model.latents
        for layer in model.layers:
            attention, feed_forward = layer
            x, z = attention.norm_media(image), attention.norm_latents(latents)
            both = torch.cat([x, z])
            q, (k, v) = attention.to_q(z), attention.to_kv(both).chunk(2, dim=-1)
            width = q.shape[-1] // attention.heads
            heads = []
            for h in range(attention.heads):
                part = slice(h * width, (h + 1) * width)
                scores = q[:, part] @ k[:, part].T / width**0.5
                heads.append(scores.softmax(-1) @ v[:, part])
            latents = latents + attention.to_out(torch.cat(heads, -1))
            latents = latents + feed_forward(latents)
        images.append(model.norm(latents))
    return torch.stack(images)


def test_it_computes_the_equations_of_flamingo() -> None:
    torch.manual_seed(0)
    model = PerceiverResampler(12, Resampler(tokens=3, depth=2, heads=2, head_width=4))
    features = torch.randn(2, 7, 12)
    torch.testing.assert_close(model(features), compute_by_equations(model, features), atol=1e-5, rtol=1e-5)
    inner = model.layers[0][1][1].out_features  # type: ignore[index]
    assert inner == 48


def test_features_may_come_in_any_order_and_number() -> None:
    torch.manual_seed(0)
    model = PerceiverResampler(12, Resampler(tokens=3, depth=1))
    features = torch.randn(1, 9, 12)
    torch.testing.assert_close(model(features), model(features.flip(1)), atol=1e-5, rtol=1e-5)
    assert model(features[:, :2]).shape == (1, 3, 12)


@pytest.mark.parametrize("family", SOME)
@pytest.mark.parametrize("check", ["cameras", "every input", "plain model", "neighbors", "steps", "gradients", "cache"])
def test_a_family_passes_the_checks_with_it(build_one: Build, family: str, check: str) -> None:
    backbone = build_one(family, resampler=SMALL)
    assert backbone.image_tokens == 5
    try:
        CHECKS[check](ExaminedBackbone(backbone, None))
    except NotApplicable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("family", sorted(NONE & set(FAMILIES)))
def test_a_family_without_image_features_is_refused(build_one: Build, family: str) -> None:
    with pytest.raises(ValueError, match=r"resampler: a '.*' model gives no image features.*leave resampler out"):
        build_one(family, resampler=SMALL)


def test_each_image_takes_as_many_tokens_and_positions_are_consecutive(build_one: Build) -> None:
    """Without a resampler, the tokens of a Qwen image have positions in rows and columns."""
    backbone = build_one("qwen2_5_vl", resampler=SMALL)
    s = ExaminedBackbone(backbone, None)
    sequence = s.lay_out(backbone.tokenize(s.make_images(2), ["open", "close it"]), [2], 1)
    assert (sequence.input_ids == backbone.image_id).sum() == 2 * 2 * 5
    positions = backbone._rope_positions(sequence, {})
    assert positions.shape[0] == 3
    assert (positions == torch.arange(sequence.input_ids.shape[1])).all()


def test_it_belongs_to_the_projector_and_depends_on_the_seed(build_one: Build) -> None:
    state = torch.get_rng_state()
    one, again, other = (build_one("llava", resampler=SMALL, seed=s).resampler.latents for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    frozen = build_one("llava", resampler=SMALL, train={"projector": False})
    assert set(frozen.resampler.parameters()) <= set(parameters_by_part(frozen)["projector"])
    assert not any(p.requires_grad for p in frozen.resampler.parameters())


def test_its_initial_tokens_have_the_spread_of_the_embeddings(build_one: Build) -> None:
    for family in ("llava", "paligemma"):
        backbone = build_one(family, resampler=SMALL)
        features = torch.randn(4, 16, backbone.width)
        words = backbone.embedding(torch.arange(100)[None])
        assert 0.5 < backbone.resampler(features).std() / words.std() < 2


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_backbone_learns_by_training_it_alone(build_one: Build, family: str) -> None:
    others = {"vision": False, "language": False, "embeddings": False}
    backbone = build_one(family, resampler=SMALL, train=others).train()
    s = ExaminedBackbone(backbone, None)
    images, query = s.make_images(4), s.make_queries(1)
    goal = torch.tensor([1.0, -1.0, -1.0, 1.0])[:, None]
    optimizer = torch.optim.Adam([p for p in backbone.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (s.read(images, ("open",) * 4, query)[:, 0, :4].mean(-1, keepdim=True) - goal).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]  # the four images are distinguished


def test_its_options_are_applied(build_one: Build) -> None:
    made = build_one("llava", resampler={"tokens": 5, "depth": 3, "heads": 2, "head_width": 7, "mlp": 6}).resampler
    attention, feed_forward = made.layers[0].children()
    assert made.latents.shape == (5, 32)
    assert (len(made.layers), attention.heads, attention.to_q.out_features) == (3, 2, 14)
    assert feed_forward[1].out_features == 6 * 32
