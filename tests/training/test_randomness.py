"""Randomness follows from (seed, step): dropout too, however many workers make the data and wherever a run resumes."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import embodiment, episode, mixture, model

from anyvla.config import ConfigError, build, to_dict
from anyvla.data.formats.lerobot_writer import write_dataset
from anyvla.data.mixture import Mixture
from anyvla.interrupted import Interrupted
from anyvla.policy import VLA
from anyvla.training.loop import TrainingConfig, train
from anyvla.training.randomness import seeded

MODEL = model(decoder="flow")
STEPS = 4


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    root = tmp_path_factory.mktemp("data") / "dataset"
    write_dataset(root, embodiment(), [episode(12 + i, seed=i) for i in range(4)])
    return mixture(root)


@pytest.fixture
def dropout(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Training with dropout on the proprio, from the global generator as every module of PyTorch; the masks."""
    honest, masks = VLA.loss, list[torch.Tensor]()

    def loss(self: VLA, batch: Any, generator: torch.Generator) -> Any:
        masks.append(torch.nn.functional.dropout(torch.ones_like(batch.proprio), 0.5))
        return honest(self, dataclasses.replace(batch, proprio=batch.proprio * masks[-1]), generator)

    monkeypatch.setattr(VLA, "loss", loss)
    return masks


def run(dataset: Mixture, folder: Path, stop_after: int | None = None, **keys: Any) -> dict[str, torch.Tensor]:
    """The weights of a run, once interrupted or not."""
    training = build(
        TrainingConfig,
        {
            "steps": STEPS,
            "batch_size": 4,
            "accumulate": 2,
            "log_every": 1,
            "checkpoint_every": 1000,
            "augment": {"shift": 2},
        },
    )
    recipe = {"name": "small", "model": to_dict(MODEL), "data": {}, "training": to_dict(training)}
    seen: list[int] = []
    if stop_after is not None:
        with pytest.raises(Interrupted):
            train(
                MODEL, training, dataset, dataset.robots(), folder, recipe,
                progress=lambda p: seen.append(p.step), stop=lambda: len(seen) >= stop_after, **keys,
            )  # fmt: skip
        torch.rand(17)  # another process, in another state
    return VLA.load(train(MODEL, training, dataset, dataset.robots(), folder, recipe, **keys)).state_dict()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[k], other[k]) for k in one)


def test_resuming_at_any_step_gives_the_same_weights(
    dataset: Mixture, tmp_path: Path, dropout: list[torch.Tensor]
) -> None:
    straight = run(dataset, tmp_path / "straight")
    assert len(dropout) == 2 * STEPS
    assert len({tuple(mask.flatten().tolist()) for mask in dropout}) > STEPS
    for step in range(1, STEPS):
        assert equal(straight, run(dataset, tmp_path / str(step), step))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_dropout(
    dataset: Mixture, tmp_path: Path, dropout: list[torch.Tensor], workers: int
) -> None:
    straight = run(dataset, tmp_path / "thread")
    assert equal(straight, run(dataset, tmp_path / "workers", 2, workers=workers))


def test_every_generator_is_seeded_from_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's by a stand-in: this machine may have none."""
    cuda: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", cuda.append)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: False)

    def drawn(*of: int) -> tuple[Any, ...]:
        generator = seeded(*of)
        values = torch.rand(()).item(), float(np.random.rand()), random.random(), torch.rand((), generator=generator)
        return *map(float, values), cuda[-1]

    assert drawn(0, 1, 0) == drawn(0, 1, 0)
    others = [drawn(1, 1, 0), drawn(0, 2, 0), drawn(0, 1, 1)]
    assert all(a != b for other in others for a, b in zip(drawn(0, 1, 0), other, strict=True))
    assert drawn(0, 1, 0)[0] != drawn(0, 1, 0)[3]  # dropout does not follow the noise


def test_a_seed_that_no_generator_takes_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed"):
        build(TrainingConfig, {"seed": -1})
