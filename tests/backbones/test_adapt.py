from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from families.common import write_family

from anyvla import weights
from anyvla.backbones.adapt import add_lora, linear_layers, merge_lora
from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.base import PARTS
from anyvla.backbones.options import Lora
from anyvla.backbones.parts import parameters_of
from anyvla.backbones.subject import Subject
from anyvla.config import build

TEXTS = ("open", "close it")
MIXERS = {"llava", "paligemma", "qwen2_5_vl", "kosmos-2"} & set(FAMILIES)  # of unlike structure
Build = Callable[..., Any]


@pytest.fixture(scope="module")
def build_one(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A backbone of a family, with options."""
    folders: dict[str, Path] = {}

    def build_one(family: str, assets: Path | None = None, **options: Any) -> AutoBackbone:
        if family not in folders:
            folders[family] = write_family(FAMILIES[family], tmp_path_factory.mktemp(family))
        keys = {"path": str(folders[family]), "prompt": "do {instruction}", **FAMILIES[family].options, **options}
        return AutoBackbone(build(AutoBackbone.Config, keys), assets=assets).eval()

    return build_one


def read(backbone: AutoBackbone) -> torch.Tensor:
    s = Subject(backbone, None)
    return s.read(s.frames(2), TEXTS, s.queries(2))


def reached(backbone: AutoBackbone) -> set[torch.nn.Parameter]:
    """What gets a gradient."""
    backbone.zero_grad()
    out = read(backbone)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    return {p for p in backbone.parameters() if p.grad is not None and p.grad.abs().sum() > 0}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_parameter_belongs_to_one_part(build_one: Build, family: str) -> None:
    backbone = build_one(family)
    parts = parameters_of(backbone)
    assert set(parts) == set(PARTS)
    of = [p for part in PARTS for p in parts[part]]
    assert len(of) == len(set(of))
    rest = set(backbone.parameters()) - set(of)
    assert rest <= {p for module in backbone.unread for p in module.parameters()}
    assert not any(p.requires_grad for p in rest)  # nothing reads an untied LM head, or the decoder behind an encoder
    assert backbone.embedding.weight in parts["embeddings"]
    names = {p: n for n, p in backbone.named_parameters()}
    assert parts["vision"]
    assert all(any(w in names[p] for w in ("vision", "visual", "image", "video", "vqmodel")) for p in parts["vision"])
    blocks = ("layers.", "blocks.", "encoder.")  # a language model's or a tower's, never what lies between
    language = [names[p] for p in parts["language"]]
    assert any(b in n for b in blocks for n in language)
    assert not any("vision_tower" in n or "vision_model" in n or "visual." in n for n in language)


@pytest.mark.parametrize("family", sorted(MIXERS))
@pytest.mark.parametrize("frozen", PARTS)
def test_a_frozen_part_gets_no_gradient_and_the_others_do(build_one: Build, family: str, frozen: str) -> None:
    backbone = build_one(family, train={frozen: False})
    got, parts = reached(backbone), parameters_of(backbone)
    for part in PARTS:
        assert bool(got & set(parts[part])) == (part != frozen), part


def test_a_frozen_vision_tower_stays_in_eval_mode_and_its_merger_does_not(build_one: Build) -> None:
    backbone = build_one("qwen2_5_vl", train={"vision": False}).train()
    visual = backbone.model.model.visual
    assert backbone.training
    assert backbone.model.model.language_model.training
    assert visual.merger.training
    assert not visual.training
    assert not visual.blocks[0].training
    assert not backbone.eval().model.model.visual.merger.training
    assert build_one("qwen2_5_vl").train().model.model.visual.training


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_lora_reaches_every_layer_that_is_read_and_merges_away(build_one: Build, family: str) -> None:
    """No family computes with a weight behind the back of its layer, where LoRA would be without effect."""
    backbone = build_one(family, lora={"rank": 2})
    paths = {n for n, _ in build_one(family).named_modules()}
    assert paths <= {n for n, _ in backbone.named_modules()}  # hooks and parts find their modules
    got = reached(backbone)
    second = {n: p for n, p in backbone.named_parameters() if "lora_B" in n}
    dead = [n for n, p in second.items() if p not in got]
    gated = "cross_attn" in " ".join(dead)  # their gates are closed at first
    assert not dead or gated or backbone.attention == "full", dead  # an encoder is read before its decoder
    with torch.no_grad():
        before = read(backbone)
        for number, weight in enumerate(second.values()):
            weight.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
        moved = read(backbone)
        assert (moved - before).abs().max() > 1e-2
        merge_lora(backbone)
        torch.testing.assert_close(read(backbone), moved, atol=1e-3, rtol=1e-3)
    assert {n for n, _ in backbone.named_modules()} == paths


def test_lora_trains_its_matrices_and_what_train_says_beside(build_one: Build) -> None:
    backbone = build_one("llava", lora={"rank": 2}, train={"vision": False})
    parts = parameters_of(backbone)
    lora = {p for n, p in backbone.named_parameters() if "lora_" in n}
    assert lora <= set(parts["language"])
    assert {p for p in backbone.parameters() if p.requires_grad} == lora | set(parts["projector"])


def test_lora_can_adapt_the_vision_tower_too(build_one: Build) -> None:
    backbone = build_one("llava", lora={"rank": 2, "vision": True, "targets": ["q_proj"]})
    adapted = {n for n, _ in backbone.named_parameters() if "lora_A" in n}
    assert len(adapted) == 4
    assert all(".q_proj.lora_A" in n for n in adapted)
    assert sum("vision_tower" in n for n in adapted) == 2
    vision = parameters_of(backbone)["vision"]
    assert sum(p.requires_grad for p in vision) == 4  # two layers of two matrices; the base is frozen


def test_lora_matrices_come_from_the_seed_and_stay_in_float32(build_one: Build) -> None:
    def matrices(seed: int) -> list[torch.Tensor]:
        backbone = build_one("llava", lora={"rank": 2}, dtype="bfloat16", seed=seed)
        return [p for n, p in backbone.named_parameters() if "lora_A" in n]

    state = torch.get_rng_state()
    one, again, other = matrices(1), matrices(1), matrices(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.dtype == torch.float32 for m in one)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_lora_learns(build_one: Build) -> None:
    backbone = build_one("llava", lora={"rank": 4}, train={"vision": False, "projector": False}).train()
    trained = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=2e-2)
    goal = torch.randn(2, 2, backbone.width, generator=torch.Generator().manual_seed(3))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (read(backbone) - goal).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_lora_is_rebuilt_from_assets(build_one: Build, tmp_path: Path) -> None:
    backbone = build_one("paligemma", lora={"rank": 2})
    for name, weight in backbone.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.1, generator=torch.Generator().manual_seed(4))
    backbone.save_assets(tmp_path)
    weights.save(backbone, tmp_path / "model.safetensors")
    again = build_one("paligemma", assets=tmp_path, lora={"rank": 2}, seed=9)
    weights.load(again, tmp_path / "model.safetensors")
    assert torch.equal(read(backbone), read(again))


def test_targets_that_no_layer_has_are_refused(build_one: Build) -> None:
    with pytest.raises(ValueError, match=r"is called q_prj; there are: down_proj, gate_proj, k_proj"):
        build_one("llava", lora={"targets": ["v_proj", "q_prj"]})


def test_routers_and_heads_are_no_targets(build_one: Build) -> None:
    backbone = build_one("llava")
    layer = backbone.model.model.language_model.layers[0]
    layer.mlp.gate = torch.nn.Linear(4, 4)
    names = linear_layers(backbone, ("language",))
    assert not any(n.endswith(("mlp.gate", "lm_head")) for n in names)
    assert any(n.endswith("mlp.gate_proj") for n in names)


@pytest.mark.parametrize("missing", ["peft", "bitsandbytes"])
def test_what_is_not_installed_is_named(build_one: Build, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    if missing == "peft":
        with pytest.raises(ImportError, match=r"pip install 'anyvla\[lora\]'"):
            add_lora(build_one("llava"), Lora())
    else:
        with pytest.raises(ImportError, match=r"quantize: int4 needs bitsandbytes: pip install 'anyvla\[quantize\]'"):
            build_one("llava", quantize="int4")


@pytest.mark.parametrize(("to", "far"), [("int8", 0.1), ("int4", 1.0)])
def test_quantised_weights_are_small_and_lora_trains_beside_them(
    build_one: Build, to: str, far: float, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    whole = build_one("llava")
    backbone = build_one("llava", quantize=to, lora={"rank": 2})
    layers = linear_layers(whole, ("language",))
    for name, layer in layers.items():
        small = backbone.get_submodule(name).get_base_layer().weight
        assert small.element_size() == 1
        assert small.numel() * (2 if to == "int4" else 1) == layer.weight.numel()
    got = reached(backbone)
    assert all(p in got for n, p in backbone.named_parameters() if "lora_B" in n)
    assert got & set(parameters_of(backbone)["vision"])  # through the quantised layers
    with torch.no_grad():
        exact, rounded = read(whole), read(backbone)
    assert 0 < (exact - rounded).norm() / exact.norm() < far
    backbone.save_assets(tmp_path)
    weights.save(backbone, tmp_path / "model.safetensors")
    again = build_one("llava", assets=tmp_path, quantize=to, lora={"rank": 2})
    weights.load(again, tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(read(again), rounded)


class Scales(torch.Tensor):
    """Numbers that note that they were moved."""

    moved = 0

    def to(self, *args: Any, **keys: Any) -> torch.Tensor:
        kept = torch.Tensor.to(self, *args, **keys).as_subclass(Scales)
        kept.moved = self.moved + 1
        return kept


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_all_of_an_8_bit_layer_moves_with_its_parent(build_one: Build, used: bool) -> None:
    pytest.importorskip("bitsandbytes")
    backbone = build_one("llava", quantize="int8")
    if used:
        with torch.no_grad():
            read(backbone)
    layer = next(m for m in backbone.modules() if type(m).__name__ == "Int8Linear")
    holder = layer.state if used else layer.weight
    holder.SCB = holder.SCB.as_subclass(Scales)
    before = holder.SCB.clone()
    backbone.to(torch.device("cpu"))
    holder = layer.state if used else layer.weight
    assert holder.SCB.moved
    assert holder.CB.data_ptr() == layer.weight.data_ptr()
    backbone.to(torch.bfloat16)
    assert holder.SCB.dtype == torch.float32
    assert torch.equal(holder.SCB.as_subclass(torch.Tensor), before.as_subclass(torch.Tensor))
    assert layer.weight.dtype == torch.int8
