"""The presets: recipes with a paper's structure, each with a command for a laptop in its opening comment."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
import torch
import yaml

from anyvla.config import to_dict
from anyvla.policy import VLA
from anyvla.recipe import Recipe, bundled, find, presets, read
from anyvla.report.explanation import count_parameters, dummy_chunks
from anyvla.robot.shared_layout import Robot
from anyvla.types import Batch, Observation
from tests.backbones.families import FAMILIES
from tests.backbones.families.common import write_family
from tests.backbones.families.flamingo import write_flamingo
from tests.small import NANO, SIZE, embodiment, generators, statistics

PRESETS = presets()
OPENING = ["command", "machine", "time", "score"]
STRUCTURES = {  # history, fuser, decoder, representation
    "robovlms-policy-head": ("policy_head", "lstm", "regression", "continuous"),
    "robovlms-interleaved": ("interleaved", "mlp", "regression", "continuous"),
    "robovlms-one-step-continuous": ("none", "mlp", "regression", "continuous"),
    "robovlms-one-step-discrete": ("none", "identity", "lm_tokens", "bins"),
    "openvla": ("none", "identity", "lm_tokens", "bins"),
    "openvla-oft": ("none", "identity", "regression", "continuous"),
    "pi0": ("none", "identity", "expert", "continuous"),
    "pi0-fast": ("none", "identity", "lm_tokens", "fast"),
    "groot-like": ("none", "identity", "flow", "continuous"),
    "smolvla-like": ("none", "identity", "expert", "continuous"),
    "roboflamingo": ("policy_head", "lstm", "regression", "continuous"),
}


SHRUNK = {"groot-like": ["--model.decoder.layers", "2"]}  # parts that take seconds to initialize


def opening_comment(name: str) -> list[str]:
    lines = find(name).read_text().splitlines()
    return [line.lstrip("# ") for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]]


def laptop(name: str) -> list[str]:
    """Return the command for a laptop in the opening comment of a preset, as words."""
    lines = opening_comment(name)
    first = next(i for i, line in enumerate(lines) if line.startswith("laptop:"))
    command = lines[first].removeprefix("laptop:")
    while command.endswith("\\"):
        first += 1
        command = command[:-1] + " " + lines[first]
    return shlex.split(command)


def policy(recipe: Recipe, tmp_path) -> VLA:
    codec = tmp_path / "codec"
    config, robot = recipe.model, embodiment()
    if config.representation.target.kind == "tokens":
        made = config.representation.build(config.chunk, robot.action)
        if not made.fitted:
            made.fit(dummy_chunks(64, config.chunk, robot.action.size))
        made.save(codec)
    torch.manual_seed(0)
    return VLA(config, [Robot(robot, statistics())], codec=codec)


def window(vla: VLA) -> Batch:
    g = torch.Generator().manual_seed(0)
    steps, chunk = vla.history.window, vla.config.chunk
    return Batch(
        images=torch.randint(0, 256, (2, steps, 2, SIZE, SIZE, 3), dtype=torch.uint8, generator=g),
        proprio=torch.randn(2, steps, 3, generator=g),
        instructions=["open the drawer", "close it now, please"],
        actions=torch.rand(2, steps, chunk, 4, generator=g) * 2 - 1,
        action_mask=torch.ones(2, steps, chunk, dtype=torch.bool),
        step_mask=torch.ones(2, steps, dtype=torch.bool),
        robots=torch.zeros(2, dtype=torch.int64),
    )


def assert_learns_and_acts(vla: VLA) -> None:
    """Check that the policy gives a finite loss, gradients and a chunk."""
    loss = vla.loss(window(vla), generators(2)).value
    assert torch.isfinite(loss)
    loss.backward()
    assert any(w.grad is not None and w.grad.abs().sum() > 0 for w in vla.decoder.parameters())
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    seen = Observation({"corner": image, "wrist": image}, np.zeros(3, np.float32))
    [chunk] = vla.eval().act([seen], [vla.start("open the drawer")])
    assert chunk.actions.shape == (vla.config.chunk, 4)
    assert np.isfinite(chunk.actions).all()


def test_every_paper_has_its_preset() -> None:
    assert set(PRESETS) == set(STRUCTURES)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_structure_of_its_paper_around_a_real_model(name: str) -> None:
    model = read(name).model
    assert (model.history.name, model.fuser.name, model.decoder.name, model.representation.name) == STRUCTURES[name]
    assert model.backbone.name != "nano"


@pytest.mark.parametrize("name", bundled())
def test_every_recipe_opens_with_command_machine_time_and_score(name: str) -> None:
    lines = opening_comment(name)
    assert [key for line in lines if (key := line.partition(":")[0]) in OPENING] == OPENING
    assert lines[1].startswith(("command: anyvla quickstart", f"command: anyvla train {name}"))


@pytest.mark.parametrize("name", PRESETS)
def test_its_opening_comment_names_its_source_and_its_commands(name: str) -> None:
    lines = opening_comment(name)
    assert "arXiv " in lines[0]
    keys = [line.partition(":")[0] for line in lines]
    assert {"takes", "differs", "laptop", "command", "data", "model"} <= set(keys)
    assert f"command: anyvla quickstart --recipe {name}" in [" ".join(line.split()) for line in lines]


@pytest.mark.parametrize("name", PRESETS)
def test_the_laptop_command_makes_a_policy_that_learns_and_acts(name: str, tmp_path) -> None:
    words = laptop(name)
    assert words[:6] == ["anyvla", "quickstart", "--recipe", name, "--model.backbone", "nano"]
    recipe = read(name, words[4:])
    assert recipe.model.backbone.name == "nano"
    assert recipe.training.steps <= 1000
    vla = policy(recipe, tmp_path)
    assert_learns_and_acts(vla)
    if recipe.model.fuser.target.fuses_time:
        assert sum(w.numel() for w in vla.fuser.parameters()) < 5e6  # for two cores
    assert sum(w.numel() for w in vla.parameters()) < 30e6


@pytest.mark.parametrize("name", PRESETS)
def test_the_sizes_of_the_paper_run_around_a_small_model(name: str, tmp_path) -> None:
    small = [f"--model.backbone={ {**NANO, 'context': 4096} }"]
    vla = policy(read(name, [*small, *SHRUNK.get(name, [])]), tmp_path)
    assert_learns_and_acts(vla)


def test_a_name_on_the_command_line_replaces_a_mapping() -> None:
    model = read("pi0", ["--model.backbone", "nano", "--model.decoder", "flow"]).model
    assert (model.backbone.name, model.decoder.name) == ("nano", "flow")
    assert to_dict(model)["decoder"]["width"] == 256


FAMILY = {  # of the models that the presets name, as tiny ones
    "microsoft/kosmos-2-patch14-224": "kosmos-2",
    "google/paligemma-3b-pt-224": "paligemma",
    "llava-hf/llava-1.5-7b-hf": "llava",
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": "smolvlm",
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": "smolvlm",
}
TINY = {  # to fit to models of two layers and 256 regular tokens, and into seconds
    "bins": ["--model.representation.bins", "16"],
    "fast": ["--model.representation.vocabulary", "128"],
    "lstm": ["--model.fuser.hidden", "32", "--model.history.window", "3"],
    "interleaved": ["--model.history.window", "3"],
    "expert": ["--model.decoder.width", "32", "--model.decoder.mlp", "64"],
    "flow": ["--model.decoder.width", "32", "--model.decoder.heads", "4", "--model.decoder.layers", "1"],
}


@pytest.mark.parametrize("name", [n for n in PRESETS if n != "roboflamingo"])
def test_the_family_of_its_backbone_has_the_capabilities_it_needs(name: str, tmp_path) -> None:
    asked = read(name).model.backbone.config
    if asked.lora is not None:
        pytest.importorskip("peft")
    folder = write_family(FAMILIES[FAMILY[asked.path]], tmp_path / "model")
    small = ["--model.backbone.path", str(folder)]
    if asked.layers is not None:
        small += ["--model.backbone.layers", "1"]
    vla = policy(read(name, [*small, *tiny(name)]), tmp_path)
    assert_learns_and_acts(vla)
    frozen = {p.name for p in count_parameters(vla) if not p.trainable} - {"LM head"}
    assert frozen == {
        part
        for part, trained in vars(asked.train).items()
        if not trained or (asked.lora is not None and part == "embeddings")
    }


def test_roboflamingo_trains_the_cross_attention_alone(tmp_path) -> None:
    options = to_dict(read("roboflamingo").model.backbone.config) | write_flamingo(tmp_path / "model")
    del options["preset"]
    document = {"name": "flamingo", **options, "cross_attention_every": 2}
    vla = policy(read("roboflamingo", ["--model.backbone", yaml.safe_dump(document), *tiny("roboflamingo")]), tmp_path)
    assert_learns_and_acts(vla)
    trained = {p.name for p in count_parameters(vla) if p.trainable}
    assert trained == {"projector", "readout queries", "fuser", "decoder"}


def tiny(name: str) -> list[str]:
    model = read(name).model
    chosen = (model.history, model.fuser, model.decoder, model.representation)
    return [word for part in chosen for word in TINY.get(part.name, [])]
