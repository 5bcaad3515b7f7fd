"""Training with kept features of a frozen vision tower: the same training, with fewer runs of the tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from anyvla.backbones.nano.backbone import NanoBackbone
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.training.mixture import Mixture
from anyvla.interrupted import Interrupted
from anyvla.training.features import freezes_vision, why_not_kept
from anyvla.training.loop import train
from tests.small import NANO, embodiment, episode, mixture, model, recipe

FROZEN = NANO | {"train": {"vision": False}}
BASE: dict[str, Any] = {
    "steps": 12,
    "batch_size": 4,
    "log_every": 1,
    "precision": "float32",
    "optim": {"lr": 1e-2, "warmup_steps": 1},
    "augment": {"shift": 0},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    root = tmp_path_factory.mktemp("data") / "dataset"
    write_dataset(root, embodiment(), [episode(6 + i, seed=i) for i in range(2)])  # 26 images
    return mixture(root)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each run of the vision tower."""
    counts: list[int] = []
    plain = NanoBackbone.compute_features

    def compute(self: NanoBackbone, images: torch.Tensor) -> torch.Tensor:
        counts.append(images.shape[:2].numel())
        return plain(self, images)

    monkeypatch.setattr(NanoBackbone, "compute_features", compute)
    return counts


def run(data: Mixture, folder: Path, backbone: Any = FROZEN, keys: dict[str, Any] | None = None, **given: Any) -> Any:
    structure = given.pop("structure", None) or model(backbone=backbone)
    train(recipe(structure, BASE | (keys or {})), data, folder, **given)
    lines = [json.loads(line) for line in (folder / "train" / "log.jsonl").read_text().splitlines()]
    return [(line["loss"], line["grad_norm"]) for line in lines]


def test_training_is_the_same_with_an_empty_a_full_and_without_a_store(
    data: Mixture, tmp_path: Path, computed: list[int]
) -> None:
    without = run(data, tmp_path / "without", keys={"features_gb": 0})
    assert sum(computed) == 12 * 8
    computed.clear()
    empty = run(data, tmp_path / "empty", features=tmp_path / "shared")
    assert len(set(map(tuple, without))) == 12
    assert sum(computed) <= 2 + 26  # the probe, and each image once
    computed.clear()
    full = run(data, tmp_path / "full", features=tmp_path / "shared")
    assert sum(computed) == 2
    assert full == empty
    assert torch.tensor(empty).allclose(torch.tensor(without), rtol=1e-4)
    weights = [(tmp_path / name / "checkpoint" / "model.safetensors").read_bytes() for name in ("empty", "full")]
    assert weights[0] == weights[1]


def test_a_run_of_its_own_keeps_features_until_it_is_finished(
    data: Mixture, tmp_path: Path, computed: list[int]
) -> None:
    expected = run(data, tmp_path / "whole")
    assert not (tmp_path / "whole" / "train" / "features").exists()
    steps = iter([False] * 5 + [True] * 100)
    with pytest.raises(Interrupted):
        run(data, tmp_path / "parts", stop=lambda: next(steps))
    assert list((tmp_path / "parts" / "train" / "features").glob("*/*.rows"))
    assert run(data, tmp_path / "parts") == expected
    assert not (tmp_path / "parts" / "train" / "features").exists()


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str | None]] = {  # keys of the model and of training, the reason
    "kept": ({}, {}, None),
    "shift": ({}, {"augment": {"shift": [0, 1]}}, "training.augment.shift"),
    "hue": ({}, {"augment": {"shift": 0, "hue": 0.1}}, "training.augment.hue"),
    "crop": ({"view": {"crop": [1.0, 0.9]}}, {}, "model.view.crop"),
    "off": ({}, {"features_gb": 0}, "training.features_gb is 0"),
}


@pytest.mark.parametrize("name", CASES)
def test_new_images_in_each_step_are_not_kept_and_a_line_says_so(
    name: str, data: Mixture, tmp_path: Path, computed: list[int]
) -> None:
    keys, training, reason = CASES[name]
    said: list[str] = []
    structure = model(backbone=FROZEN, **keys)
    run(data, tmp_path, keys=training | {"steps": 2}, structure=structure, say=said.append)
    [line] = [line for line in said if "frozen vision tower" in line]
    assert ("computed once" in line) == (reason is None)
    assert (reason or "computed once") in line
    assert (why_not_kept(recipe(structure, BASE | training)) or "").startswith(reason or "")
    assert (1 in computed) == (reason is None)  # one by one


@pytest.mark.parametrize(
    "backbone",
    [NANO, FROZEN | {"lora": {"rank": 2, "vision": True}}, NANO | {"train": {"projector": False}}],
    ids=["trained", "lora", "projector"],
)
def test_a_tower_that_is_trained_keeps_nothing(
    backbone: dict[str, Any], data: Mixture, tmp_path: Path, computed: list[int]
) -> None:
    said: list[str] = []
    run(data, tmp_path, backbone, {"steps": 2}, say=said.append, features=tmp_path / "shared")
    assert set(computed) == {8}
    assert not (tmp_path / "shared").exists()
    assert not [line for line in said if "frozen vision tower" in line]


def test_a_tower_that_thaws_keeps_nothing_and_one_frozen_by_training_does(
    data: Mixture, tmp_path: Path, computed: list[int]
) -> None:
    thawing = {"optim": BASE["optim"] | {"parts": {"vision": {"unfreeze_at": 2}}}, "steps": 3}
    run(data, tmp_path / "thawing", NANO, thawing)
    assert set(computed) == {8}
    frozen = {"optim": BASE["optim"] | {"parts": {"vision": {"train": False}}}, "steps": 3}
    run(data, tmp_path / "frozen", NANO, frozen)
    assert 1 in computed
    assert freezes_vision(recipe(model(), BASE | frozen))
    assert not freezes_vision(recipe(model(), BASE | thawing))


def test_a_model_of_transformers_says_that_it_computes_them_inside() -> None:
    structure = model(backbone={"name": "auto", "path": "some/model", "train": {"vision": False}})
    assert "the backbone auto computes them inside" in (why_not_kept(recipe(structure, BASE)) or "")
