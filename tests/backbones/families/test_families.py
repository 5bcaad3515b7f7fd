"""The test matrix: every family passes every check of a backbone, and can be adapted."""

from __future__ import annotations

import pytest
import torch

from anyvla.backbones.adapting.adapt import add_lora, merge_lora
from anyvla.backbones.adapting.options import Lora
from anyvla.backbones.adapting.parts import parameters_by_part
from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.base import MODEL_PARTS
from anyvla.backbones.checks.conformance import CHECKS
from anyvla.backbones.checks.examined import ExaminedBackbone, NotApplicable
from anyvla.backbones.families.results import load_results
from tests.backbones.families import FAMILIES
from tests.backbones.families.common import check_promise, copied, write_family
from tests.backbones.families.prompts import IMAGE, PROMPTS


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ExaminedBackbone:
    family = FAMILIES[request.param]
    folder = write_family(family, tmp_path_factory.mktemp(request.param))
    config = AutoBackbone.Config(path=str(folder), prompt="do {instruction}", **family.options)
    return ExaminedBackbone(AutoBackbone(config).eval(), config)


@pytest.mark.parametrize("check", CHECKS)
def test_it_passes_the_check(subject: ExaminedBackbone, check: str) -> None:
    try:
        check_promise(check, subject)
    except NotApplicable as reason:
        pytest.skip(str(reason))


def test_a_step_has_the_published_form(subject: ExaminedBackbone, request: pytest.FixtureRequest) -> None:
    backbone, name = subject.backbone, request.node.callspec.params["subject"]
    image = IMAGE.get(name, backbone.tokenizer.convert_ids_to_tokens(backbone.image_id) * backbone.image_tokens)
    block = backbone.tokenize(subject.make_images(1), ["it"])
    assert backbone.tokenizer.decode([*block.prefix, *block.tokens[0]]) == PROMPTS[name].replace("{image}", image)


SIDES = {"fast_vlm": 128, "deepseek_ocr2": 112, "molmo2": 35, "pixtral": 21, "florence2": 32, "emu3": 32}  # or 28
SIDES |= dict.fromkeys(
    ("deepseek_vl_hybrid", "got_ocr2", "pp_chart2table", "step3p7", "minicpmv4_6", "minicpmv4_7"), 56
)


def test_pixels_have_the_numbers_of_the_preprocessor(subject: ExaminedBackbone, request: pytest.FixtureRequest) -> None:
    """Check white, black and one color against image_mean and image_std of preprocessor_config.json."""
    name, pixels = request.node.callspec.params["subject"], subject.backbone.pixels
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.3])
    if name == "fuyu":
        mean, std = torch.full((3,), 0.5), torch.full((3,), 0.5)
    elif name in ("kosmos-2.5", "deepseek_vl_hybrid"):  # they normalize later
        mean, std = torch.zeros(3), torch.full((3,), 1 / 255)
    for color in ([255, 255, 255], [0, 0, 0], [255, 51, 0]):
        given = pixels(torch.tensor(color, dtype=torch.uint8).expand(1, 40, 30, 3))
        side = SIDES.get(name, 28)
        assert given.shape == (1, 3, side, side)
        expected = ((torch.tensor(color) / 255 - mean) / std).view(1, 3, 1, 1).expand_as(given)
        torch.testing.assert_close(given, expected, atol=1e-3, rtol=1e-3)
    assert pixels.filter == (2 if name == "kosmos-2.5" else 3)  # its file names no filter, so it is bilinear


def test_the_packaged_results_have_its_capabilities(subject: ExaminedBackbone, request: pytest.FixtureRequest) -> None:
    measured = load_results().families[request.node.callspec.params["subject"]]
    assert set(measured.capabilities or ()) == subject.backbone.capabilities
    assert subject.backbone.capabilities == AutoBackbone.find_capabilities(subject.config)
    assert measured.attention == subject.backbone.attention
    assert not measured.failed


def test_every_parameter_belongs_to_one_part(subject: ExaminedBackbone) -> None:
    backbone = subject.backbone
    parts = parameters_by_part(backbone)
    assert set(parts) == set(MODEL_PARTS)
    of = [p for part in MODEL_PARTS for p in parts[part]]
    assert len(of) == len(set(of))
    rest = set(backbone.parameters()) - set(of)
    assert rest <= {p for module in backbone.unused_modules for p in module.parameters()}
    assert not any(
        p.requires_grad for p in rest
    )  # no readout depends on an untied LM head or the decoder after an encoder
    assert backbone.embedding.weight in parts["embeddings"]
    names = {p: n for n, p in backbone.named_parameters()}
    assert parts["vision"]
    assert all(any(w in names[p] for w in ("vision", "visual", "image", "video", "vqmodel")) for p in parts["vision"])
    blocks = ("layers.", "blocks.", "encoder.")  # of a language model or a tower, not of a projector
    language = [names[p] for p in parts["language"]]
    assert any(b in n for b in blocks for n in language)
    assert not any("vision_tower" in n or "vision_model" in n or "visual." in n for n in language)


def test_lora_reaches_every_layer_and_can_be_merged(subject: ExaminedBackbone) -> None:
    """Every family calls its linear layers: LoRA has no effect where only the weight is used."""
    adapted = copied(subject)
    backbone = adapted.backbone
    paths = {n for n, _ in backbone.named_modules()}
    add_lora(backbone, Lora(rank=2))
    assert paths <= {n for n, _ in backbone.named_modules()}  # hooks and parts find their modules

    def read() -> torch.Tensor:
        return adapted.read(adapted.make_images(2), ("open", "close it"), adapted.make_queries(2))

    out = read()
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    second = {n: p for n, p in backbone.named_parameters() if "lora_B" in n}
    dead = [n for n, p in second.items() if p.grad is None or not p.grad.any()]
    gated = "cross_attn" in " ".join(dead)  # their gates are closed at first
    assert not dead or gated or backbone.attention == "full", dead  # an encoder is read before its decoder
    with torch.no_grad():
        for number, weight in enumerate(second.values()):
            weight.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
        changed = read()
        assert (changed - out).abs().max() > 1e-2
        merge_lora(backbone)
        torch.testing.assert_close(read(), changed, atol=1e-3, rtol=1e-3)
    assert {n for n, _ in backbone.named_modules()} == paths
