from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anyvla.backbones.adapting.adapt import add_lora, find_linear_layers, merge_lora, quantize
from anyvla.backbones.adapting.options import Lora, Options, Quantize, Resampler
from anyvla.backbones.adapting.parts import parameters_by_part
from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.base import MODEL_PARTS
from anyvla.backbones.checks.examined import ExaminedBackbone
from anyvla.config import build
from anyvla.files import weights
from tests.backbones.families import FAMILIES
from tests.backbones.families.common import write_family

TEXTS = ("open", "close it")
MIXERS = {"llava", "paligemma", "qwen2_5_vl", "kosmos-2"} & set(FAMILIES)  # of different structure
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
    s = ExaminedBackbone(backbone, None)
    return s.read(s.make_images(2), TEXTS, s.make_queries(2))


def reached(backbone: AutoBackbone) -> set[torch.nn.Parameter]:
    """Return the parameters that get a gradient."""
    backbone.zero_grad()
    out = read(backbone)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    return {p for p in backbone.parameters() if p.grad is not None and p.grad.abs().sum() > 0}


@pytest.mark.parametrize("family", sorted(MIXERS))
@pytest.mark.parametrize("frozen", MODEL_PARTS)
def test_a_frozen_part_gets_no_gradient_and_the_others_do(build_one: Build, family: str, frozen: str) -> None:
    backbone = build_one(family, train={frozen: False})
    got, parts = reached(backbone), parameters_by_part(backbone)
    for part in MODEL_PARTS:
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


def test_lora_trains_its_matrices_and_the_parts_that_train_names(build_one: Build) -> None:
    backbone = build_one("llava", lora={"rank": 2}, train={"vision": False})
    parts = parameters_by_part(backbone)
    lora = {p for n, p in backbone.named_parameters() if "lora_" in n}
    assert lora <= set(parts["language"])
    assert {p for p in backbone.parameters() if p.requires_grad} == lora | set(parts["projector"])


def test_lora_can_adapt_the_vision_tower_too(build_one: Build) -> None:
    backbone = build_one("llava", lora={"rank": 2, "vision": True, "targets": ["q_proj"]})
    adapted = {n for n, _ in backbone.named_parameters() if "lora_A" in n}
    assert len(adapted) == 4
    assert all(".q_proj.lora_A" in n for n in adapted)
    assert sum("vision_tower" in n for n in adapted) == 2
    vision = parameters_by_part(backbone)["vision"]
    assert sum(p.requires_grad for p in vision) == 4  # two layers of two matrices; the base is frozen


def linear_layers_of_llama(layers: int = 2) -> set[str]:
    """Return the names of the linear layers of the small LLaVA's language model, written out."""
    attention = [f"self_attn.{name}_proj" for name in "qkvo"]
    mlp = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    return {f"model.model.language_model.layers.{i}.{name}" for i in range(layers) for name in (*attention, *mlp)}


@pytest.mark.parametrize(("rank", "alpha"), [(3, 12.0), (5, 2.5)])
def test_lora_adds_b_times_a_scaled_by_alpha_over_rank(build_one: Build, rank: int, alpha: float) -> None:
    """W x + alpha / rank * B A x, the equation of arXiv 2106.09685, section 4.1."""
    backbone = build_one("llava", lora={"rank": rank, "alpha": alpha})
    before = {
        name: layer.weight.clone() for name, layer in find_linear_layers(build_one("llava"), ("language",)).items()
    }
    generator = torch.Generator().manual_seed(0)
    weights_of = dict(backbone.named_parameters())
    assert {n.removesuffix(".lora_A.default.weight") for n in weights_of if "lora_A" in n} == linear_layers_of_llama()
    for name, w in before.items():
        a, b = (weights_of[f"{name}.lora_{which}.default.weight"] for which in "AB")
        assert (a.shape, b.shape) == ((rank, w.shape[1]), (w.shape[0], rank))
        assert a.any()
        assert not b.any()
        b.data.normal_(generator=generator)
        x = torch.randn(4, w.shape[1], generator=generator)
        expected = x @ w.T + alpha / rank * (x @ a.T) @ b.T
        torch.testing.assert_close(backbone.get_submodule(name)(x), expected, atol=1e-4, rtol=1e-4)
    expected_weights = {
        n: w + alpha / rank * weights_of[f"{n}.lora_B.default.weight"] @ weights_of[f"{n}.lora_A.default.weight"]
        for n, w in before.items()
    }
    merge_lora(backbone)
    for name, weight in expected_weights.items():
        torch.testing.assert_close(backbone.get_submodule(name).weight, weight, atol=1e-4, rtol=1e-4)


def test_lora_drops_out_of_its_input_in_training_only(build_one: Build) -> None:
    """Each of 32 ones is kept with probability 0.75 and divided by it: the sum has mean 32 and variance 32 / 3."""
    backbone = build_one("llava", lora={"rank": 1, "alpha": 1, "dropout": 0.25})
    layer = backbone.model.model.language_model.layers[0].self_attn.q_proj
    layer.get_base_layer().weight.data.zero_()
    for name, weight in layer.named_parameters():
        if "lora_" in name:
            weight.data.fill_(1.0)
    ones = torch.ones(4000, 32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sums = layer.train()(ones)[:, 0]
    assert abs(sums.mean().item() - 32) < 0.3
    assert abs(sums.var().item() - 32 / 3) < 1.5
    assert (layer.eval()(ones) == 32).all()


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({}, True),
        ({"train": {"language": False}}, False),
        ({"lora": {"rank": 2}}, False),
        ({"train": {"vision": False, "projector": False, "embeddings": False}}, True),
    ],
    ids=["all", "language frozen", "lora", "language alone"],
)
def test_an_lm_head_is_trained_only_with_the_language_model(
    build_one: Build, options: dict[str, Any], trained: bool
) -> None:
    backbone = build_one("llava", **options)
    assert not backbone.lm_head.weight.requires_grad
    backbone.unfreeze_lm_head()
    assert backbone.lm_head.weight.requires_grad == trained


def test_options_left_out_have_the_documented_values() -> None:
    options = Options()
    assert options.prompt == "What action should the robot take to {instruction}?"  # RoboVLMs' (arXiv 2412.14058)
    assert (options.dtype, options.pretrained, options.layers, options.seed) == ("float32", "full", None, 0)
    assert (options.lora, options.quantize, options.resampler) == (None, None, None)
    assert dataclasses.asdict(options.train) == {
        "vision": True,
        "projector": True,
        "language": True,
        "embeddings": True,
    }
    expected: dict[str, Any] = {"rank": 32, "alpha": 16, "dropout": 0, "vision": False, "targets": None}
    assert dataclasses.asdict(Lora()) == expected
    expected = {"tokens": 64, "depth": 6, "heads": 8, "head_width": 64, "mlp": 4}  # Flamingo's
    assert dataclasses.asdict(Resampler()) == expected


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
    names = find_linear_layers(backbone, ("language",))
    assert not any(n.endswith(("mlp.gate", "lm_head")) for n in names)
    assert any(n.endswith("mlp.gate_proj") for n in names)


def test_a_frozen_tower_that_lora_adapts_trains(build_one: Build) -> None:
    """Dropout of its LoRA matrices is active in training."""
    lora = {"rank": 2, "dropout": 0.5}
    for vision in (False, True):
        backbone = build_one("llava", lora={**lora, "vision": vision}, train={"vision": False}).train()
        assert backbone.model.model.vision_tower.training == vision


@pytest.mark.parametrize("missing", ["peft", "bitsandbytes"])
def test_a_missing_package_is_named(build_one: Build, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    if missing == "peft":
        with pytest.raises(ImportError, match=r"pip install 'anyvla\[lora\]'"):
            add_lora(build_one("llava"), Lora())
    else:
        with pytest.raises(ImportError, match=r"quantize: int4 needs bitsandbytes: pip install 'anyvla\[quantize\]'"):
            build_one("llava", quantize="int4")


@pytest.mark.parametrize(("to", "far"), [("int8", 0.1), ("int4", 1.0)])
def test_quantized_weights_are_small_and_lora_trains_beside_them(
    build_one: Build, to: str, far: float, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    whole = build_one("llava")
    backbone = build_one("llava", quantize=to, lora={"rank": 2})
    layers = find_linear_layers(whole, ("language",))
    for name, layer in layers.items():
        small = backbone.get_submodule(name).get_base_layer().weight
        assert small.element_size() == 1
        assert small.numel() * (2 if to == "int4" else 1) == layer.weight.numel()
    got = reached(backbone)
    assert all(p in got for n, p in backbone.named_parameters() if "lora_B" in n)
    assert got & set(parameters_by_part(backbone)["vision"])  # through the quantized layers
    with torch.no_grad():
        exact, rounded = read(whole), read(backbone)
    assert 0 < (exact - rounded).norm() / exact.norm() < far
    backbone.save_assets(tmp_path)
    weights.save(backbone, tmp_path / "model.safetensors")
    again = build_one("llava", assets=tmp_path, quantize=to, lora={"rank": 2})
    weights.load(again, tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(read(again), rounded)


# The sixteen levels of NF4 (QLoRA, arXiv 2305.14314, appendix E).
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635]
NF4 += [-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725]
NF4 += [0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]


def test_four_bits_are_nf4_in_blocks_of_64(build_one: Build) -> None:
    pytest.importorskip("bitsandbytes")
    whole, backbone = build_one("llava"), build_one("llava", quantize="int4")
    levels = torch.tensor(NF4)
    assert set(find_linear_layers(whole, ("language",))) == linear_layers_of_llama()
    # Narrower layers are left out: bitsandbytes 0.50 reads their scales wrongly on CPUs.
    for name in (n for n in linear_layers_of_llama() if n.endswith("down_proj")):
        weight = whole.get_submodule(name).weight.detach()
        blocks = weight.reshape(-1, 64)
        scale = blocks.abs().amax(1, keepdim=True)
        nearest = levels[((blocks / scale)[..., None] - levels).abs().argmin(-1)]
        read = backbone.get_submodule(name)(torch.eye(weight.shape[1])).T
        torch.testing.assert_close(read, (nearest * scale).view_as(weight), atol=1e-4, rtol=1e-4)


def test_large_activations_are_not_multiplied_in_8_bits(build_one: Build) -> None:
    """LLM.int8 (arXiv 2208.07339, section 3.2): rows are scaled by their largest entry; columns over 6 stay exact."""
    pytest.importorskip("bitsandbytes")
    whole, backbone = build_one("llava"), build_one("llava", quantize="int8")
    name = "model.model.language_model.layers.0.mlp.gate_proj"
    weight = whole.get_submodule(name).weight.detach()
    row = weight.abs().amax(1, keepdim=True)
    rounded = (weight * 127 / row).round() * row / 127
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    x[:, 7] = 60.0
    small = x.clone()
    small[:, 7] = 0
    largest = small.abs().amax(1, keepdim=True)
    expected = (small * 127 / largest).round() * largest / 127 @ rounded.T + 60.0 * rounded[:, 7]
    with torch.no_grad():
        torch.testing.assert_close(backbone.get_submodule(name)(x), expected, atol=0.05, rtol=0.01)
    plain = [m for m in backbone.modules() if type(m) is torch.nn.Linear]
    assert len(plain) == len([m for m in whole.modules() if type(m) is torch.nn.Linear]) - 14


@pytest.mark.parametrize("to", ["int8", "int4"])
def test_quantized_layers_keep_their_biases(build_one: Build, to: Quantize) -> None:
    pytest.importorskip("bitsandbytes")
    backbone = build_one("qwen2_5_vl")
    name = "model.model.language_model.layers.0.self_attn.q_proj"
    bias = torch.arange(32.0)
    backbone.get_submodule(name).bias.data.copy_(bias)
    quantize(backbone, to)
    with torch.no_grad():
        given = backbone.get_submodule(name)(torch.zeros(1, 32))
    torch.testing.assert_close(given[0], bias, atol=1e-2, rtol=1e-2)


class Scales(torch.Tensor):
    """A tensor that counts how often it is moved."""

    moved = 0

    def to(self, *args: Any, **keys: Any) -> torch.Tensor:
        kept = torch.Tensor.to(self, *args, **keys).as_subclass(Scales)
        kept.moved = self.moved + 1
        return kept


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_an_8_bit_layer_moves_completely_with_its_parent(build_one: Build, used: bool) -> None:
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
