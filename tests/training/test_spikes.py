"""Losses that leap are logged with their samples; noise, drifts and resuming are no reason to."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.interrupted import Interrupted
from anyvla.policy import VLA
from anyvla.training.loop import train
from anyvla.training.spikes import SpikeDetector, SpikeLog, SpikesConfig
from tests.small import batch, embodiment, episode, mixture, model, recipe
from tests.training.pretended import Pretended


def spikes(losses: Any, **keys: Any) -> list[int]:
    detector = SpikeDetector(SpikesConfig(**keys))
    return [step for step, loss in enumerate(losses) if detector.look(float(loss)) is not None]


def test_noise_and_a_falling_loss_are_no_spikes() -> None:
    rng = np.random.default_rng(0)
    steps = np.arange(5000)
    losses = np.exp(-steps / 500) + 0.2 + 0.05 * rng.normal(size=5000)
    assert spikes(losses) == []
    assert spikes(np.full(200, 0.5) + 1e-6 * rng.normal(size=200)) == []  # nearly constant


def test_the_threshold_is_in_standard_deviations_of_the_noise() -> None:
    rng = np.random.default_rng(1)
    noise = 1 + 0.05 * rng.normal(size=1000)
    for size, found in ((7, []), (13, [900])):
        losses = noise.copy()
        losses[900] = 1 + size * 0.05
        assert spikes(losses) == found
    losses[900] = 1 + 7 * 0.05
    assert 900 in spikes(losses, threshold=5)


def test_many_spikes_do_not_hide_each_other() -> None:
    losses = np.ones(300) + 0.01 * np.random.default_rng(2).normal(size=300)
    high = list(range(150, 300, 5))
    losses[high] = 50
    assert spikes(losses) == high


def test_the_search_begins_with_half_a_window_and_a_new_level_becomes_the_usual_one() -> None:
    losses = [1.0] * 10 + [9.0] + [1.0] * 10 + [9.0] * 30
    found = spikes(losses, window=20)
    assert found[:3] == [10, 21, 22]
    assert found[-1] < 35
    assert spikes([1.0] * 9 + [9.0], window=20) == []


@pytest.mark.parametrize("off", [False, True])
def test_a_spike_is_logged_with_its_samples(off: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    write_dataset(root, embodiment(), [episode(9 + i, seed=i, instruction=f"task {i}") for i in range(3)])
    training = {"steps": 9, "batch_size": 3, "precision": "float32", "spikes": None if off else {"window": 10}}
    original, batches = VLA.loss, []

    def loss(self: VLA, batch: Any, *args: Any) -> Any:
        given = original(self, batch, *args)
        batches.append(batch)
        return dataclasses.replace(given, total=given.total * (1000 if len(batches) == 8 else 1))

    monkeypatch.setattr(VLA, "loss", loss)
    given = recipe(model(), training, root)

    def run(folder: Path) -> Path:
        return train(given, mixture(root), folder)

    final = run(tmp_path / "run")
    path = tmp_path / "run" / "train" / "spikes.jsonl"
    if off:
        assert not path.exists()
        return
    [line] = [json.loads(text) for text in path.read_text().splitlines()]
    assert line["step"] == 8
    assert line["loss"] > 100 * line["median"] > 0
    assert [s["instruction"] for s in line["samples"]] == list(batches[7].instructions)
    assert [[s["source"], s["episode"], s["step"]] for s in line["samples"]] == batches[7].samples.tolist()
    sample = line["samples"][0]
    assert f"step {sample['step']} ({sample['instruction']!r})" in sample["name"]
    assert str(root) in sample["name"]
    assert final.is_dir()


def test_a_resumed_run_drops_the_spikes_of_steps_that_it_repeats(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_dataset(root, embodiment(), [episode(9 + i, seed=i) for i in range(3)])
    given = recipe(model(), {"steps": 4, "batch_size": 2}, root)
    for _ in range(2):
        with pytest.raises(Interrupted):
            train(given, mixture(root), tmp_path / "run", stop=lambda: True)
    path = tmp_path / "run" / "train" / "spikes.jsonl"
    path.write_text('{"step": 1}\n{"step": 3}\n')
    train(given, mixture(root), tmp_path / "run")
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1]


def test_a_spike_lists_the_samples_of_all_processes_in_the_file_of_the_first(tmp_path: Path) -> None:
    other = [{"source": 0, "episode": 9, "step": 9, "instruction": "other", "name": "far"}]
    data = dataclasses.replace(batch(2, 1), samples=torch.tensor([[0, 1, 2], [0, 1, 3]]))
    for rank in range(2):
        processes = Pretended(rank, 2, says=[other, other])
        path = tmp_path / str(rank) / "spikes.jsonl"
        path.parent.mkdir()
        log = SpikeLog(SpikesConfig(window=10), path, 0, lambda sample, text: "near", processes)
        for step, loss in enumerate([1.0, 1.1] * 5 + [99.0], 1):
            log.look(step, loss, data)
    [line] = [json.loads(line) for line in (tmp_path / "0/spikes.jsonl").read_text().splitlines()]
    assert line["step"] == 11
    assert [of["name"] for of in line["samples"]] == ["near"] * len(data.instructions) + ["far"]
    assert not (tmp_path / "1/spikes.jsonl").exists()
