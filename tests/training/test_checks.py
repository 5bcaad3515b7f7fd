from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from anyvla.config import ConfigError
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.interrupted import Interrupted
from anyvla.policy import VLA, NormalizationConfig
from anyvla.robot.shared_layout import Robot
from anyvla.training.checks import describe_robot_dims, train_in_float32
from anyvla.training.device import pick_precision
from anyvla.training.loop import train
from tests import small

FROZEN = {"vision": False, "projector": False, "language": False, "embeddings": False}


def with_spikes() -> Robot:
    """Return a robot whose first action and proprio dims have rare values of 50, far outside their percentiles."""
    usual = small.statistics()

    def of(values: dict[str, list[float]]) -> dict[str, list[float]]:
        size = len(values["mean"])
        core = {"q10": [-1.5] * size, "q90": [1.5] * size, "low": [-2.0] * size, "high": [2.0] * size}
        return {**values, **core, "max": [50.0] + [2.0] * (size - 1)}

    spiky = dataclasses.replace(usual, action=of(dict(usual.action)), proprio=of(dict(usual.proprio)))
    return Robot(small.embodiment(), spiky)


def test_notes_follow_the_scaling_of_their_own_vector() -> None:
    """Only quantiles cut off spikes."""
    of_action = describe_robot_dims([with_spikes()], NormalizationConfig(action="quantile", proprio="minmax"))
    of_proprio = describe_robot_dims([with_spikes()], NormalizationConfig(action="minmax", proprio="quantile"))
    assert [note.partition(" has spikes from -2 to 50")[0] for note in of_action] == ["action group 'position', dim 0"]
    assert [note.partition(" has spikes from -2 to 50")[0] for note in of_proprio] == [
        "proprio group 'position', dim 0"
    ]


def test_notes_name_the_robot_if_there_are_several() -> None:
    other = Robot(dataclasses.replace(small.embodiment(), name="other"), with_spikes().statistics)
    found = describe_robot_dims([with_spikes(), other], NormalizationConfig(action="quantile", proprio="minmax"))
    assert [note.partition(" has")[0] for note in found] == [
        "small, action group 'position', dim 0",
        "other, action group 'position', dim 0",
    ]


BFLOAT16 = small.NANO | {"dtype": "bfloat16"}


def test_trained_weights_are_float32_and_frozen_ones_stay_in_16_bits() -> None:
    vla = small.policy(backbone=BFLOAT16 | {"train": {"vision": False}})
    before = {name: p.detach().clone() for name, p in vla.named_parameters()}
    train_in_float32(vla, torch.bfloat16)
    norms = {p for m in vla.modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm) for p in m.parameters()}
    for name, p in vla.named_parameters():
        assert p.dtype == (torch.float32 if p.requires_grad or p in norms else torch.bfloat16)
        assert torch.equal(p.float(), before[name].float())
    assert any(p.dtype == torch.bfloat16 for p in vla.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        loss = vla.loss(small.batch(2, 1))
    loss.total.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in vla.parameters() if p.requires_grad)


@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
def test_frozen_weights_in_16_bits_need_autocast(precision: torch.dtype) -> None:
    vla = small.policy(backbone=BFLOAT16 | {"train": {"vision": False}})
    with pytest.raises(ConfigError, match=r"in bfloat16 and trained ones in float32.*--training\.precision bfloat16"):
        train_in_float32(vla, precision)


@pytest.mark.parametrize("options", [{}, {"train": FROZEN}, {"train": FROZEN, "lora": {"rank": 2}}])
def test_without_both_any_precision_does(options: dict[str, Any]) -> None:
    """All weights are trained, or those of the backbone that are float32 from the start."""
    if "lora" in options:
        pytest.importorskip("peft")
    vla = small.policy(backbone=BFLOAT16 | options)
    train_in_float32(vla, torch.float32)
    vla.loss(small.batch(2, 1)).total.backward()
    assert all(p.dtype == torch.float32 for p in vla.parameters() if p.requires_grad)


def test_float16_weights_count_as_well() -> None:
    vla = small.policy().to(torch.float16)
    train_in_float32(vla, torch.float32)
    assert {p.dtype for p in vla.parameters()} == {torch.float32}


def test_a_policy_trained_in_float32_from_bfloat16_resumes_and_loads(tmp_path: Path) -> None:
    """A step of 1e-5 moves no bfloat16 weight of about 1, but does move its float32 one, and survives a resume."""
    root = tmp_path / "data"
    write_dataset(root, small.embodiment(), [small.episode(9, seed=i) for i in range(2)])
    structure = small.model(backbone=BFLOAT16 | {"train": {"vision": False}})
    training = {"steps": 3, "batch_size": 2, "precision": "bfloat16", "optim": {"lr": 1e-5, "warmup_steps": 0}}
    recipe, mixture = small.recipe(structure, training, root), small.mixture(root)
    straight = load_file(train(recipe, mixture, tmp_path / "straight") / "model.safetensors")
    with pytest.raises(Interrupted):
        train(recipe, mixture, tmp_path / "stopped", stop=lambda: True)
    final = train(recipe, mixture, tmp_path / "stopped")
    resumed = load_file(final / "model.safetensors")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    name = "backbone.model.model.language_model.norm.weight"
    assert straight[name].dtype == torch.float32
    assert not torch.equal(straight[name], straight[name].bfloat16().float())
    loaded = dict(VLA.load(final).named_parameters())[name]
    assert torch.equal(loaded, straight[name].bfloat16())


@pytest.mark.parametrize("native", [True, False])
def test_emulated_bfloat16_does_not_count(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    wanted = torch.bfloat16 if native else torch.float32
    assert pick_precision("auto", torch.device("cuda")) == wanted
