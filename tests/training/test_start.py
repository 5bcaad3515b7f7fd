from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.training.sampler import MixtureSampler
from anyvla.data.training.window import WindowConfig, WindowDataset
from anyvla.policy import VLA
from anyvla.training import start
from anyvla.training.loop import train
from anyvla.training.processes import Processes
from anyvla.training.start import cache_advice, describe_run, report_decoding
from tests.small import SIZE, embodiment, episode, mixture, model, recipe

MODEL = model("none", "identity")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[VLA, Any]:
    root = tmp_path_factory.mktemp("data") / "dataset"
    write_dataset(root, embodiment(), [episode(12, seed=i) for i in range(4)])
    data = mixture(root)
    return VLA(MODEL, data.robots()), data


def windows_of(data: Any, **keys: Any) -> WindowDataset:
    return WindowDataset(data, WindowConfig(chunk=MODEL.chunk, **keys))


def test_the_description_has_device_precision_weights_and_data(parts: tuple[VLA, Any]) -> None:
    vla, data = parts
    vla.backbone.requires_grad_(False)
    frozen = sum(p.numel() for p in vla.parameters() if not p.requires_grad)
    trained = sum(p.numel() for p in vla.parameters() if p.requires_grad)
    alone = Processes.single()
    text = describe_run(vla, torch.device("cpu"), torch.float32, windows_of(data), alone)
    assert text.startswith("device cpu (")
    assert f"precision float32; {trained:,} trained weights, {frozen:,} frozen; 48 windows of 4 episodes" in text
    assert frozen > 0
    assert "bfloat16 (autocast)" in describe_run(vla, torch.device("cpu"), torch.bfloat16, windows_of(data), alone)


def test_the_cheapest_remedy_comes_first(parts: tuple[VLA, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    vla, data = parts
    windows = windows_of(data)
    assert cache_advice(vla, windows, 1.0, 0) is None
    small = cache_advice(vla, windows, 1e-5, 0)
    assert small is not None
    assert "model.view.size" not in small  # the frames have the backbone's size already
    assert "--data.cache_gb 0.1 keeps all of them in memory" in small
    monkeypatch.setattr(WindowDataset, "image_size", (480, 640))
    monkeypatch.setattr(WindowDataset, "decoded_gb", 9.2)
    text = cache_advice(vla, windows, 2.0, 0)
    assert text is not None
    share = SIZE * SIZE / (480 * 640)
    size = f"--model.view.size '[{SIZE}, {SIZE}]'"
    assert f"{size}, the size to which the backbone scales them anyway, takes {9.2 * share:.2g} GB;" in text
    assert text.index(size) < text.index("--data.cache_gb 9.3")
    assert "take 36.8 GB in 4 workers" in (cache_advice(vla, windows, 2.0, 4) or "")
    assert cache_advice(vla, windows, 36.7, 4) is not None  # all of them together
    assert cache_advice(vla, windows, 36.9, 4) is None


def test_more_memory_than_the_machine_has_is_marked(parts: tuple[VLA, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    vla, data = parts
    monkeypatch.setattr(WindowDataset, "decoded_gb", 1e6)
    assert "more than the" in (cache_advice(vla, windows_of(data), 2.0, 0) or "")


def test_slow_decoding_is_reported_while_it_lasts(parts: tuple[VLA, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_PATIENCE", 0.02)
    lines: list[str] = []
    windows = windows_of(parts[1])
    with report_decoding(windows, lines.append):
        windows.batch(MixtureSampler(windows.sizes, [1.0], 1, 0).sample(0))
        time.sleep(0.1)
    assert lines
    assert lines[-1].endswith("1 of 1 episodes decoded")
    count = len(lines)
    time.sleep(0.06)
    assert len(lines) == count


def test_fast_decoding_prints_nothing(parts: tuple[VLA, Any]) -> None:
    lines: list[str] = []
    with report_decoding(windows_of(parts[1]), lines.append):
        pass
    assert lines == []


def test_training_prints_the_description_before_its_first_step(parts: tuple[VLA, Any], tmp_path: Path) -> None:
    data = parts[1]
    lines: list[str] = []
    steps: list[int] = []
    small = recipe(MODEL, {"steps": 1, "batch_size": 2})
    train(small, data, tmp_path / "run", progress=lambda p: steps.append(len(lines)), say=lines.append)
    assert [line.split(" ")[0] for line in lines] == ["device"]
    assert steps == [1]
