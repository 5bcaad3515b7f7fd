"""The numbers of the presets are the published ones."""

from __future__ import annotations

from typing import Any

import pytest

from anyvla.config import to_dict
from anyvla.recipe import bundled, find, presets, read

OPENPI = {  # github.com/Physical-Intelligence/openpi: training/optimizer.py and training/config.py
    "training.steps": 30_000,
    "training.batch_size": 32,
    "training.optim.lr": 2.5e-5,
    "training.optim.final_lr": 2.5e-6,
    "training.optim.warmup_steps": 1000,
    "training.optim.schedule": "cosine",
    "training.optim.betas": [0.9, 0.95],
    "training.optim.weight_decay": 1e-10,
    "training.optim.clip": 1.0,
}
ROBOVLMS = {  # arXiv 2412.14058, and its configurations
    "training.batch_size": 128,
    "training.steps": 50_000,
    "training.optim.lr": 2e-5,
    "training.optim.schedule": "constant",
    "training.optim.weight_decay": 0.0,
    "training.optim.betas": [0.9, 0.999],
    "training.augment.shift": [10, 4],
    "model.chunk": 10,
    "model.execute": 1,
    "model.readouts": 1,
    "model.proprio": "none",
    "model.normalization.action": "quantile",
}
ROBOVLMS_LOSS = {"model.decoder.loss": "huber", "model.decoder.gripper": "bce", "model.decoder.gripper_weight": 0.01}
OPENVLA_LORA = {  # arXiv 2406.09246, section 5.3
    "model.backbone.lora.rank": 32,
    "model.backbone.lora.alpha": 16,
    "training.optim.lr": 5e-4,
    "training.optim.warmup_steps": 0,
    "training.optim.betas": [0.9, 0.999],
    "training.optim.weight_decay": 0.01,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "robovlms-policy-head": ROBOVLMS
    | ROBOVLMS_LOSS
    | {"model.history.window": 16, "model.fuser.hidden": 1024, "model.fuser.layers": 4},
    "robovlms-interleaved": ROBOVLMS
    | ROBOVLMS_LOSS
    | {"model.history.window": 8, "model.history.past": "visible", "model.fuser.widths": [1024, 1024]},
    "robovlms-one-step-continuous": ROBOVLMS | ROBOVLMS_LOSS | {"model.fuser.widths": [1024, 1024]},
    "robovlms-one-step-discrete": ROBOVLMS
    | {"model.representation.bins": 256, "model.decoder.ids": "end", "model.decoder.decoding": "autoregressive"},
    "openvla": OPENVLA_LORA
    | {
        "training.batch_size": 128,
        "training.optim.schedule": "constant",
        "model.chunk": 1,
        "model.execute": 1,
        "model.representation.bins": 256,
        "model.decoder.ids": "end",
        "model.decoder.decoding": "autoregressive",
        "model.proprio": "none",
    },
    # arXiv 2502.19645: 8 actions at once, all executed, L1, batch 64, 150,000 steps
    "openvla-oft": OPENVLA_LORA
    | {
        "training.batch_size": 64,
        "training.steps": 150_000,
        "training.optim.final_lr": 5e-5,  # after the rate falls by 10
        "model.chunk": 8,
        "model.execute": 8,
        "model.readouts": 8,
        "model.proprio": "token",
        "model.decoder.loss": "l1",
    },
    "pi0": OPENPI
    | {  # arXiv 2410.24164, appendix B: width 1024, MLP 4096, chunk 50, 10 steps
        "model.chunk": 50,
        "model.execute": 25,
        "model.decoder.width": 1024,
        "model.decoder.mlp": 4096,
        "model.decoder.time": "beta",
        "model.decoder.steps": 10,
        "model.decoder.method": "euler",
    },
    "pi0-fast": OPENPI | {"model.chunk": 10, "model.execute": 5, "model.decoder.decoding": "autoregressive"},
    "smolvla-like": {  # github.com/huggingface/lerobot: policies/smolvla/configuration_smolvla.py
        "training.steps": 200_000,
        "training.batch_size": 64,
        "training.optim.lr": 1e-4,
        "training.optim.final_lr": 2.5e-6,
        "training.optim.warmup_steps": 1000,
        "training.optim.schedule": "cosine",
        "training.optim.betas": [0.9, 0.95],
        "training.optim.weight_decay": 1e-10,
        "training.optim.clip": 10.0,
        "model.chunk": 50,
        "model.execute": 25,
        "model.backbone.layers": 16,
        "model.backbone.train": dict.fromkeys(("vision", "projector", "language", "embeddings"), False),
        "model.decoder.width": 720,  # three quarters of 960
        "model.decoder.steps": 10,
        "model.decoder.time": "beta",
        "model.proprio": "token",
    },
    "groot-like": {  # arXiv 2503.14734, its table of hyperparameters of post-training
        "training.optim.lr": 1e-4,
        "training.optim.betas": [0.95, 0.999],
        "training.optim.weight_decay": 1e-5,
        "training.optim.schedule": "cosine",
        "training.optim.warmup_steps": 1000,
        "training.steps": 20_000,
        "training.batch_size": 128,
        "model.chunk": 16,
        "model.execute": 8,
        "model.readouts": 8,
        "model.backbone.layers": 12,
        "model.backbone.train": {"vision": True, "projector": True, "language": False, "embeddings": False},
        "model.decoder.layers": 16,
        "model.decoder.time": "beta",
        "model.decoder.steps": 4,
        "model.decoder.method": "euler",
    },
    "roboflamingo": {  # arXiv 2311.01378
        "training.batch_size": 48,
        "training.optim.lr": 1e-4,
        "training.optim.schedule": "constant",
        "training.optim.warmup_steps": 5000,
        "training.optim.weight_decay": 0.1,
        "training.augment.shift": [10, 4],
        "model.history.window": 12,
        "model.fuser.hidden": 1024,
        "model.fuser.layers": 4,
        "model.chunk": 1,
        "model.proprio": "none",
        "model.decoder.loss": "l2",
        "model.decoder.gripper": "bce",
        "model.decoder.gripper_weight": 0.01,
        "model.backbone.preset": "3B",
        "model.backbone.train": {"vision": False, "projector": True, "language": False, "embeddings": False},
    },
}


@pytest.mark.parametrize("name", presets())
def test_a_preset_has_the_published_numbers(name: str) -> None:
    document = to_dict(read(name))

    def at(key: str) -> Any:
        node: Any = document
        for part in key.split("."):
            node = node[part]
        return node

    assert {key: at(key) for key in PUBLISHED[name]} == PUBLISHED[name]


@pytest.mark.parametrize("name", bundled())
def test_every_option_of_a_bundled_recipe_reaches_it(name: str) -> None:
    recipe = read(name, ["--training.seed", "5", "--training.optim.lr=0.25", "--model.chunk", "60", "--name", "mine"])
    assert (recipe.training.seed, recipe.training.optim.lr) == (5, 0.25)
    assert (recipe.model.chunk, recipe.name) == (60, "mine")
    assert to_dict(read(name))["training"]["seed"] == 0


def test_a_file_wins_over_a_bundled_recipe_of_its_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("pi0") != tmp_path / "pi0"
    (tmp_path / "pi0").write_text(find("quickstart").read_text())
    assert find("pi0").resolve() == tmp_path / "pi0"
    assert read("pi0").name == "quickstart"
