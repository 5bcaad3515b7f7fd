"""Bundled shapes of published models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

from anyvla.cli.main import main
from anyvla.planning.known_models import known_models, planned_shapes, write_shapes
from anyvla.planning.plan import make_plan
from anyvla.recipe import presets, read


@pytest.mark.parametrize("name", known_models())
def test_the_number_of_weights_is_the_published_one(name: str, tmp_path: Path) -> None:
    write_shapes(known_models()[name], tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    kinds = {"mpt": AutoModelForCausalLM, "gpt_neox": AutoModelForCausalLM, "clip_vision_model": AutoModel}
    with torch.device("meta"):
        model = kinds.get(config.model_type, AutoModelForImageTextToText).from_config(config)
    counted = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    assert counted == pytest.approx(known_models()[name].parameters, rel=0.01)


def test_every_shape_names_the_file_that_it_was_compared_with() -> None:
    assert all(len(model.source) > 20 for model in known_models().values())
    unchecked = {name.partition("/")[2] for name, model in known_models().items() if model.unchecked}
    assert {name for name in unchecked if "SmolVLM" in name} == {
        "SmolVLM2-2.2B-Instruct",
        "SmolVLM2-256M-Video-Instruct",
    }


def test_every_preset_of_a_published_vlm_has_shapes() -> None:
    paths = {name: getattr(read(name).model.backbone.config, "path", None) for name in presets()}
    assert {path for path in paths.values() if path} <= known_models().keys()


def test_a_model_that_is_not_here_is_planned_and_a_note_says_so(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """SmolVLM drops black images by a mask; a plan keeps all of them."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    small = ["--model.backbone.layers", "1", "--training.batch_size", "2", "--model.decoder.width", "64"]
    assert main(["plan", "smolvla-like", *small, "--gpu", "h100", "--json", "--out", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert any("its shapes come with anyvla" in note for note in found["notes"])
    vision = next(part for part in found["parameters"] if part["name"] == "vision")
    assert vision["parameters"] == pytest.approx(86.4e6, rel=0.01)


def test_a_folder_of_the_same_name_is_read(tmp_path: Path, monkeypatch: Any) -> None:
    name = "google/paligemma-3b-pt-224"
    (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    recipe = read("pi0")
    with planned_shapes(recipe) as (same, notes):
        assert same is recipe
        assert not notes


def test_the_models_that_flamingo_joins_are_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenFlamingo 3B: CLIP, MPT-1b with all of its embeddings and the two tokens of Flamingo, a gate at each layer."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plan = make_plan(read("roboflamingo", ["--model.backbone.layers", "2"]), tmp_path, gpu="h100", remedies=0)
    parts = {part.name: part.parameters for part in plan.parameters}
    assert parts["vision"] == pytest.approx(303.2e6, rel=0.001)
    assert parts["language"] == pytest.approx(2 * 12 * 2048**2, rel=0.01)
    assert parts["embeddings"] == pytest.approx(50432 * 2048, rel=0.001)
    assert sum("its shapes come with anyvla" in note for note in plan.notes) == 2
