"""Noise and augmentation belong to the rows of the whole batch: no split of it changes the curve of the loss."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.training.mixture import open_mixture
from anyvla.data.training.window import WindowConfig, WindowDataset
from anyvla.histories.base import History
from anyvla.policy import VLA, VLAConfig
from anyvla.training.batches import make_batches
from anyvla.training.loop import train
from anyvla.training.randomness import NOISE, make_generators
from anyvla.training.validation import open_validation
from anyvla.types import Batch
from tests.small import DECODERS, awake, batch, embodiment, episode, mixture, model, policy, recipe

AUGMENT = {"shift": 3, "brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1}
TRAINING: dict[str, Any] = {
    "steps": 20,
    "batch_size": 4,
    "log_every": 1,
    "precision": "float32",
    "optim": {"lr": 1e-4, "warmup_steps": 2},
    "augment": AUGMENT,
    "track": "none",
}
WINDOW = {"name": "policy_head", "window": 3}
LSTM = {"name": "lstm", "hidden": 16, "layers": 1}
GPT = {"name": "gpt", "width": 32, "layers": 1, "heads": 2}
ROWS = {"name": "recurrent", "steps": 12}
STRUCTURES: dict[str, VLAConfig] = {
    "regression": model(WINDOW, LSTM, view={"crop": 0.8}),
    "flow": model(WINDOW, GPT, decoder=DECODERS["flow"] | {"samples": 3}, view={"crop": 0.8}),
    "diffusion": model(decoder=DECODERS["diffusion"] | {"samples": 2}),
    "expert": model({"name": "interleaved", "window": 2}, decoder=DECODERS["expert"]),
    "whole rows": model(ROWS, {"name": "mingru", "width": 32, "layers": 1}, decoder="flow"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of 6 to 9 steps, so that rows of a batch are of different lengths."""
    folder = tmp_path_factory.mktemp("data") / "dataset"
    write_dataset(folder, embodiment(), [episode(6 + i, seed=i, instruction=f"open it {i}") for i in range(4)])
    return folder


def read_curve(run: Path) -> list[float]:
    lines = (run / "train" / "log.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


@pytest.mark.parametrize("name", STRUCTURES)
def test_accumulation_does_not_change_the_curve(name: str, root: Path, tmp_path: Path) -> None:
    curves = []
    for accumulate in (1, 2, 4):
        run = tmp_path / str(accumulate)
        train(recipe(STRUCTURES[name], TRAINING | {"accumulate": accumulate}, root), mixture(root), run)
        curves.append(read_curve(run))
    assert len(curves[0]) == 20
    assert len(set(curves[0])) == 20
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", ["flow", "whole rows"])
def test_parts_of_batches_are_their_rows(name: str, root: Path) -> None:
    """Each has the steps of its own longest row, where a batch is of whole rows."""
    config = recipe(STRUCTURES[name], TRAINING, root)
    history: History = config.model.history.build()
    window = WindowConfig(window=history.window, whole=history.carries_state, chunk=4, stride=2, view=config.model.view)
    windows = WindowDataset(mixture(root), window)

    def made(rows: range | None) -> list[Batch]:
        batches = make_batches(0, windows, config.training, config.model.view, 0, 60.0, rows=rows)
        return list(itertools.islice(batches, 3))

    whole = made(None)
    assert len({int(count) for of in whole for count in of.step_mask.sum(1)}) > 1
    for rows in (range(1), range(1, 3), range(2, 4)):
        for of_all, part in zip(whole, made(rows), strict=True):
            expected = of_all.cut(rows.start, rows.stop)
            steps = part.step_mask.shape[1]
            assert not expected.step_mask[:, steps:].any()
            assert (part.first_row, part.instructions) == (rows.start, expected.instructions)
            for field in ("images", "proprio", "actions", "action_mask", "step_mask"):
                assert torch.equal(getattr(part, field), getattr(expected, field)[:, :steps]), field
            assert torch.equal(part.robots, expected.robots)
            assert torch.equal(part.samples, expected.samples)


@pytest.mark.parametrize("decoder", ["flow", "diffusion", "expert"])
def test_a_row_has_the_same_noise_in_every_part(decoder: str) -> None:
    vla = awake(policy(WINDOW, GPT, decoder=DECODERS[decoder] | {"samples": 2}))
    data = batch(4, 3)
    data.step_mask[1, 2:] = data.step_mask[3, 1:] = False
    data.action_mask[~data.step_mask] = False

    def loss(first: int, end: int, step: int = 7) -> float:
        with torch.no_grad():
            return float(vla.loss(data.cut(first, end), make_generators(3, step, NOISE, range(first, end))).total)

    alone = [loss(row, row + 1) for row in range(4)]
    assert sum(alone) == pytest.approx(loss(0, 4), rel=1e-5)
    assert alone[1] + alone[2] == pytest.approx(loss(1, 3), rel=1e-5)
    assert loss(0, 4) != pytest.approx(loss(0, 4, step=8), rel=1e-3)
    with torch.no_grad():  # rows differ in their noise
        other = float(vla.loss(data.cut(0, 1), make_generators(3, 7, NOISE, range(1, 2))).total)
    assert other != pytest.approx(alone[0], rel=1e-3)


def test_the_pieces_of_a_batch_do_not_change_a_validation(root: Path) -> None:
    """Held-out windows are read in pieces, of which the last one of a data set is smaller."""
    measured = []
    for accumulate in (1, 2):
        training = TRAINING | {"accumulate": accumulate}
        given = recipe(model(decoder="flow"), training, root, validation={"episodes": 1})
        opened = open_mixture(given.data, root)
        torch.manual_seed(0)
        vla = awake(VLA(given.model, opened.robots()))
        [validation] = open_validation(given, opened, vla, WindowConfig(chunk=4, stride=2))
        assert len(validation.chosen[0]) % 4 > 0
        measured.append(validation.measure(1))
    assert measured[0] == pytest.approx(measured[1], rel=1e-5)
