"""On a GPU, policies train, act, are saved and loaded as on a CPU. Run by `make gpu`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyvla.backbones.auto import AutoBackbone
from anyvla.backbones.checks.conformance import examine
from anyvla.config import build
from anyvla.policy import VLA
from anyvla.training.config import TrainingConfig
from anyvla.training.state import TrainingState
from anyvla.training.step import OptimizerStep
from tests import small
from tests.backbones.families import FAMILIES
from tests.backbones.families.common import write_family

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")
WINDOW = {"name": "policy_head", "window": 3}
RUN = {"name": "interleaved", "window": 3}
GPT, LSTM = {"name": "gpt", "width": 32, "layers": 2, "heads": 2}, {"name": "lstm", "hidden": 32, "layers": 2}
STRUCTURES: dict[str, dict[str, Any]] = {
    "regression": {},
    "gpt": {"history": WINDOW, "fuser": GPT},
    "lstm": {"history": WINDOW, "fuser": LSTM},
    "interleaved": {"history": RUN},
    "recurrent": {"history": small.HISTORIES[3], "fuser": small.FUSERS[4]},
    "flow": {"decoder": "flow"},
    "diffusion": {"history": WINDOW, "fuser": GPT, "decoder": "diffusion"},
    "tokens, bins": {"decoder": "tokens", "representation": "bins"},
    "tokens, fast": {"decoder": "tokens", "representation": "fast"},
    "tokens, vq": {"decoder": "tokens", "representation": "vq"},
    "lm_tokens": {"history": RUN, "decoder": "lm_tokens", "representation": "bins"},
    "expert": {"decoder": "expert"},
    "expert, interleaved": {"history": RUN, "decoder": "expert"},
}
EXAMINED = ("paligemma", "smolvlm", "qwen2_5_vl", "kosmos-2", "gemma3", "mllama")


def make(name: str, folder: Path) -> VLA:
    keys = STRUCTURES[name]
    codec = small.fit_codec(keys.get("representation", "continuous"), folder / "codec")
    return small.awake(small.policy(codec=codec, **keys))


def steps_of(vla: VLA) -> int:
    return 4 if vla.history.carries_state else vla.history.window


def train(vla: VLA, device: torch.device, precision: str, steps: int) -> list[float]:
    """Make optimizer steps on one batch, and return their losses."""
    keys = {"batch_size": 4, "device": str(device), "precision": precision, "optim": {"lr": 1e-3, "warmup_steps": 0}}
    config = build(TrainingConfig, keys)
    take_step = OptimizerStep(TrainingState(vla.to(device).train(), config.optim), config, device)
    data = small.batch(4, steps_of(vla))
    return [take_step(data, step, None).loss for step in range(steps)]


def act(vla: VLA, steps: int) -> np.ndarray:
    data = small.batch(2, steps)
    sessions = [vla.eval().start(text, seed=row) for row, text in enumerate(data.instructions)]
    chunks: list[np.ndarray] = []
    for step in range(steps):
        acted = vla.act([small.observation(data, row, step) for row in range(2)], sessions)
        chunks += [chunk.actions for chunk in acted]
    return np.stack(chunks)


@pytest.mark.parametrize("name", STRUCTURES)
def test_it_trains_and_acts_as_on_a_cpu(name: str, tmp_path: Path) -> None:
    """And is the same policy again after it was saved."""
    on_cpu, on_gpu = make(name, tmp_path), make(name, tmp_path)
    np.testing.assert_allclose(act(on_gpu.to(GPU), 3), act(on_cpu, 3), atol=2e-3)
    expected, found = train(on_cpu, torch.device("cpu"), "float32", 3), train(on_gpu, GPU, "float32", 3)
    assert found == pytest.approx(expected, rel=5e-3)
    on_gpu.eval().save(tmp_path / "saved")
    again = VLA.load(tmp_path / "saved").to(GPU)
    np.testing.assert_allclose(act(again, 3), act(on_gpu, 3), atol=1e-5)


@pytest.mark.parametrize("name", STRUCTURES)
def test_it_trains_in_bfloat16(name: str, tmp_path: Path) -> None:
    expected = train(make(name, tmp_path), torch.device("cpu"), "float32", 1)
    assert train(make(name, tmp_path), GPU, "bfloat16", 1) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_step_seldom_waits_for_the_gpu(name: str, tmp_path: Path) -> None:
    vla = make(name, tmp_path).to(GPU).train()
    config = build(TrainingConfig, {"batch_size": 4, "device": "cuda", "precision": "bfloat16"})
    take_step = OptimizerStep(TrainingState(vla, config.optim), config, GPU)
    data = small.batch(4, steps_of(vla)).pin_memory()
    for step in range(2):
        take_step(data, step, None)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            take_step(data, 2, None)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
    assert len(waits) <= 5, waits


@pytest.mark.parametrize("name", EXAMINED)
def test_a_family_passes_the_checks_of_a_backbone(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    config = AutoBackbone.Config(path=str(write_family(family, tmp_path)), prompt="do {instruction}", **family.options)
    results = list(examine(AutoBackbone(config).to(GPU), config))
    assert not [result for result in results if result.state == "failed"], results
