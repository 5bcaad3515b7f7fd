"""A model that was never trained is examined with random weights that make outputs depend on all inputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.checks.conformance import CHECKS, examine
from anyvla.backbones.checks.examined import CheckFailed, ExaminedBackbone
from anyvla.backbones.checks.untrained_weights import find_untrained_weights, randomize_untrained_weights
from anyvla.cli.main import main
from tests.backbones.families import FAMILIES
from tests.backbones.families.common import tiny_tokenizer, write_family

# Families that initialize parts to zero, close gates, or use weights so small that little depends on an image.
FAILING = ["gemma3", "mllama", "t5gemma2", "idefics", "kosmos-2", "kosmos-2.5", "molmo2", "instructblip", "florence2"]
MEANINGLESS = {name: CHECKS[name] for name in ("every input", "steps", "gradients", "block mask")}


def write_untrained(name: str, folder: Path) -> Path:
    """Write a model as transformers initializes it."""
    family = FAMILIES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(family.build()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    if family.second_tokenizer is not None:
        tiny_tokenizer().save_pretrained(folder / family.second_tokenizer)
    (folder / "preprocessor_config.json").write_text(json.dumps(family.preprocessor), encoding="utf-8")
    return folder


def build_backbone(name: str, folder: Path) -> AutoBackbone:
    return AutoBackbone(AutoBackbone.Config(path=str(folder), prompt="do {instruction}", **FAMILIES[name].options))


@pytest.mark.parametrize("name", FAILING)
def test_an_untrained_model_passes_the_checks(name: str, tmp_path: Path) -> None:
    backbone = build_backbone(name, write_untrained(name, tmp_path))
    before = {n: w.clone() for n, w in backbone.named_parameters()}
    with pytest.raises(CheckFailed, match="move by only"):
        CHECKS["every input"](ExaminedBackbone(backbone.eval(), None))
    failed = [r for r in examine(backbone, None, MEANINGLESS) if r.state == "failed"]
    assert not failed
    assert any(not torch.equal(before[n], w) for n, w in backbone.named_parameters())


def test_trained_weights_are_left_alone(tmp_path: Path) -> None:
    backbone = build_backbone("gemma3", write_untrained("gemma3", tmp_path))
    with torch.no_grad():
        for weight in backbone.parameters():
            weight.add_(torch.randn_like(weight) * 0.01)
    assert not find_untrained_weights(backbone)
    before = {n: w.clone() for n, w in backbone.named_parameters()}
    projector = "model.model.multi_modal_projector.mm_input_projection_weight"
    backbone.get_parameter(projector).data.zero_()  # like a new projector between trained towers
    assert list(find_untrained_weights(backbone)) == [projector]
    randomize_untrained_weights(backbone)
    assert backbone.get_parameter(projector).std() > 0.05
    assert all(torch.equal(before[n], w) for n, w in backbone.named_parameters() if n != projector)


def test_redrawn_weights_have_a_usual_size(tmp_path: Path) -> None:
    """A matrix of n inputs gets a spread of 0.8 / sqrt(n), from the seed alone; closed gates are opened."""
    backbone = build_backbone("mllama", write_untrained("mllama", tmp_path))
    assert "model.model.language_model.layers.1.cross_attn_attn_gate" in find_untrained_weights(backbone)
    state = torch.get_rng_state()
    randomize_untrained_weights(backbone, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    language = backbone.model.model.language_model
    assert language.layers[1].cross_attn_attn_gate == 1
    for weight, inputs in ((language.layers[0].mlp.down_proj.weight, 64), (language.layers[0].mlp.up_proj.weight, 32)):
        assert 0.9 < weight.std() * inputs**0.5 / 0.8 < 1.1
    before = language.layers[0].mlp.up_proj.weight.clone()
    again = build_backbone("mllama", tmp_path)
    randomize_untrained_weights(again, seed=3)
    assert torch.equal(again.model.model.language_model.layers[0].mlp.up_proj.weight, before)


def test_the_doctor_reports_untrained_weights_and_conflicting_token_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_untrained("gemma3", tmp_path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["pad_token_id"] = 7
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    status = main(["doctor", "backbone", str(folder), "--json", "--option", "prompt=do {instruction}"])
    document = json.loads(capsys.readouterr().out)
    assert status == 0, document["failed"]
    assert "freshly initialized, so the checks use random weights" in document["card"]["untrained"]
    wrong = "the tokenizer's pad token is <pad> (id 0), the model's configuration says id 7"
    assert wrong in document["card"]["warnings"]


def test_a_padding_token_that_the_model_does_not_embed_is_not_used(tmp_path: Path) -> None:
    folder = write_family(FAMILIES["llava"], tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<another pad>"})
    tokenizer.save_pretrained(folder)
    backbone = build_backbone("llava", folder)
    assert backbone.pad_id == tokenizer.eos_token_id
