"""Whatever a training keeps from step to step is in its checkpoint: a resumed run equals an uninterrupted one."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from anyvla.config import build
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.training.mixture import Mixture
from anyvla.interrupted import Interrupted
from anyvla.policy import VLA
from anyvla.training.errors import TrainingError
from anyvla.training.loop import train
from anyvla.training.optim import OptimConfig
from anyvla.training.state import TrainingState
from tests.small import NANO, embodiment, episode, mixture, model, policy, recipe

MODEL = model(
    backbone=NANO, fuser={"name": "lstm", "hidden": 32, "layers": 1}, history={"name": "policy_head", "window": 2}
)
OPTIONS: dict[str, dict[str, Any]] = {
    "adamw8bit": {"optim": {"name": "adamw8bit"}},
    "muon": {"optim": {"name": "muon"}},
    "wsd": {"optim": {"schedule": "wsd", "wsd": {"decay_share": 0.5}}},
    "linear": {"optim": {"schedule": "linear"}},
    "ema": {"ema": {"decay": 0.9, "start": 1}},
    "ema and muon": {"ema": {"decay": 0.9}, "optim": {"name": "muon"}},
    "ema, muon and parts": {
        "ema": {"decay": 0.9},
        "optim": {"name": "muon", "parts": {"decoder": {"lr": 1e-3, "unfreeze_at": 2}, "vision": {"unfreeze_at": 1}}},
    },
    "adamw8bit and parts": {"optim": {"name": "adamw8bit", "parts": {"language": {"lr": 1e-3, "unfreeze_at": 2}}}},
    "float16": {"precision": "float16"},
    "float16, adamw8bit and ema": {"precision": "float16", "ema": {}, "optim": {"name": "adamw8bit"}},
    "float16 and muon": {"precision": "float16", "optim": {"name": "muon"}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    root = tmp_path_factory.mktemp("data") / "dataset"
    write_dataset(root, embodiment(), [episode(12 + i, seed=i) for i in range(3)])
    return mixture(root)


def config(**keys: Any) -> dict[str, Any]:
    optim = {"lr": 1e-2, "warmup_steps": 1} | keys.pop("optim", {})
    return {"steps": 4, "batch_size": 2, "log_every": 1, "precision": "float32", "optim": optim} | keys


def run(data: Mixture, folder: Path, options: dict[str, Any], **keys: Any) -> Path:
    return train(recipe(MODEL, options), data, folder, **keys)


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in VLA.load(folder).named_parameters()}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_run_equals_an_uninterrupted_one(name: str, data: Mixture, tmp_path: Path) -> None:
    if "8bit" in name:
        pytest.importorskip("bitsandbytes")
    options = config(**OPTIONS[name])
    straight = run(data, tmp_path / "straight", options)
    for _ in range(2):
        with pytest.raises(Interrupted):
            run(data, tmp_path / "stopped", options, stop=lambda: True)
    resumed = run(data, tmp_path / "stopped", options)
    assert contents(resumed) == contents(straight)


def test_a_policy_acts_with_the_average_and_trains_with_its_own_weights(data: Mixture, tmp_path: Path) -> None:
    plain = run(data, tmp_path / "plain", config())
    averaged = run(data, tmp_path / "averaged", config(ema={"decay": 0.5, "warmup": False}))
    own, acting = parameters(plain), parameters(averaged)
    raw = load_file(averaged / "training" / "weights.safetensors")
    assert raw.keys() == own.keys()
    assert all(torch.equal(raw[name], own[name]) for name in raw)  # the average has no effect on the training
    assert any(not torch.equal(acting[name], own[name]) for name in raw)
    by_hand = None
    for steps in range(1, 5):
        weights = parameters(run(data, tmp_path / str(steps), config(steps=steps, optim=CONSTANT)))
        first = begin() if by_hand is None else by_hand
        by_hand = {name: (first[name] + weights[name]) / 2 for name in raw}
    again = run(data, tmp_path / "again", config(ema={"decay": 0.5, "warmup": False}, optim=CONSTANT))
    found = parameters(again)
    assert by_hand is not None
    for name in raw:
        torch.testing.assert_close(found[name], by_hand[name], rtol=1e-5, atol=1e-7)
    card = (averaged / "README.md").read_text()
    assert "an exponential moving average of decay 0.5" in card
    assert "those of the last step" in (plain / "README.md").read_text()


CONSTANT = {"schedule": "constant", "lr": 1e-2, "warmup_steps": 1}


def begin() -> dict[str, torch.Tensor]:
    """Return the weights before the first step of a run with seed 0."""
    vla = policy(MODEL.history, MODEL.fuser)
    return {name: p.detach().clone() for name, p in vla.named_parameters()}


def test_frozen_weights_are_neither_averaged_nor_stored_twice(data: Mixture, tmp_path: Path) -> None:
    backbone = NANO | {"train": {"vision": False, "language": False}}
    structure = model(backbone=backbone)
    final = train(recipe(structure, config(ema={"decay": 0.5})), data, tmp_path)
    raw = load_file(final / "training" / "weights.safetensors")
    vla = VLA.load(final)
    assert raw.keys() == {name for name, p in vla.named_parameters() if p.requires_grad}
    assert not any("vision_tower" in name or ".layers." in name for name in raw)


def test_measurements_see_the_average(data: Mixture, tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    class Look:
        every, names, saves_first = 4, {"looked": True}, False

        def start(self, vla: VLA) -> Look:
            self.vla = vla
            return self

        def describe(self) -> str:
            return "a look"

        def measure(self, step: int) -> dict[str, float]:
            seen.append(self.vla.queries.detach().clone())
            return {"looked": 1.0}

    final = run(data, tmp_path, config(ema={"decay": 0.5}), measurements=[Look()])
    assert torch.equal(seen[0], load_file(final / "model.safetensors")["queries"])
    assert not torch.equal(seen[0], load_file(final / "training" / "weights.safetensors")["queries"])


class Overflow(torch.autograd.Function):
    """The identity, with an infinite gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf")


def overflowing(monkeypatch: pytest.MonkeyPatch, calls: set[int]) -> None:
    original, count = VLA.loss, []

    def loss(self: VLA, *args: Any) -> Any:
        count.append(1)
        given = original(self, *args)
        return dataclasses.replace(given, total=Overflow.apply(given.total)) if len(count) in calls else given

    monkeypatch.setattr(VLA, "loss", loss)


def test_a_step_whose_float16_gradients_overflow_is_skipped_and_reported(
    data: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    overflowing(monkeypatch, {3})
    options = config(precision="float16", checkpoint_every=1, optim=CONSTANT)
    with caplog.at_level(logging.WARNING):
        final = run(data, tmp_path, options)
    assert "step 3: gradients overflowed float16 at a loss scale of 65536" in caplog.text
    assert json.loads((final / "training" / "state.json").read_text())["scaler"]["scale"] == 32768
    lines = [json.loads(line) for line in (tmp_path / "train" / "log.jsonl").read_text().splitlines()]
    assert [line for line in lines if "overflowed_at_scale" in line] == [{"step": 3, "overflowed_at_scale": 65536}]
    assert [line["grad_norm"] is None for line in lines if "loss" in line] == [False, False, True, False]
    steps = {float(v) for k, v in load_file(final / "training" / "state.safetensors").items() if k.endswith(".step")}
    assert steps == {3.0}


def test_a_run_whose_steps_were_all_skipped_resumes(
    data: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Muon has no state yet then."""
    overflowing(monkeypatch, {1})
    options = config(precision="float16", optim={"name": "muon"})
    with pytest.raises(Interrupted):
        run(data, tmp_path, options, stop=lambda: True)
    assert json.loads((run(data, tmp_path, options) / "training" / "state.json").read_text())["step"] == 4


def test_gradients_that_overflow_at_any_scale_stop_the_training(
    data: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflowing(monkeypatch, set(range(100)))
    with pytest.raises(TrainingError, match=r"step 17: loss .*, gradient norm (inf|nan)"):
        run(data, tmp_path, config(precision="float16", steps=30))


def test_small_gradients_survive_float16_by_their_scale(
    data: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients of a loss of 1e-7 vanish in float16, unless they are scaled before the backward pass."""
    original = VLA.loss

    def small(self: VLA, *args: Any) -> Any:
        given = original(self, *args)
        return dataclasses.replace(given, total=given.total * 1e-7)

    monkeypatch.setattr(VLA, "loss", small)
    norms: dict[str, list[float]] = {"float32": [], "float16": []}
    for precision, found in norms.items():
        options = config(precision=precision, steps=1)
        run(data, tmp_path / precision, options, progress=lambda p, found=found: found.append(p.grad_norm))
    assert norms["float16"] == pytest.approx(norms["float32"], rel=0.02)


@pytest.mark.parametrize(
    ("scaler", "message"),
    [
        (None, "scaler: expected the keys scale"),
        ({"scale": 1.0}, "scaler: expected the keys scale"),
        ({"scale": -1.0}, "scaler: expected numbers from 0 on"),
        ({"scale": 0.0}, "a scale of 0"),
    ],
)
def test_a_damaged_scale_is_refused(scaler: Any, message: str, tmp_path: Path) -> None:
    state = TrainingState(policy(), OptimConfig(), None, torch.float16)
    if isinstance(scaler, dict) and scaler["scale"] <= 0:
        scaler = state.scaler.state_dict() | scaler
    for p in state.parameters:
        p.grad = torch.ones_like(p)
    state.optimizer.step()
    state.save(tmp_path / "folder", {"name": "x"})
    with pytest.raises(ValueError, match=message):
        state.restore(tmp_path / "folder", {"step": 1, "scaler": scaler})


@pytest.mark.parametrize("damage", ["missing", "one lacks", "shape", "nan"])
def test_damaged_weights_beside_an_average_are_refused(damage: str, data: Mixture, tmp_path: Path) -> None:
    options = config(ema={})
    with pytest.raises(Interrupted):
        run(data, tmp_path, options, stop=lambda: True)
    path = tmp_path / "train" / "step-00000001" / "training" / "weights.safetensors"
    tensors = load_file(path)
    if damage == "one lacks":
        del tensors["queries"]
    elif damage == "shape":
        tensors["queries"] = torch.zeros(3)
    elif damage == "nan":
        tensors["queries"].fill_(torch.nan)
    path.unlink()
    if damage != "missing":
        save_file(tensors, path)
    with pytest.raises(ValueError, match=r"weights\.safetensors"):
        run(data, tmp_path, options)


def test_a_state_of_another_optimizer_is_refused(data: Mixture, tmp_path: Path) -> None:
    states = {}
    for name in ("adamw", "muon"):
        states[name] = TrainingState(policy(), build(OptimConfig, {"name": name}))
        for p in states[name].parameters:
            p.grad = torch.ones_like(p)
        states[name].optimizer.step()
        states[name].save(tmp_path / name, {"name": "x"})
    for name, other in (("adamw", "muon"), ("muon", "adamw")):
        with pytest.raises(ValueError, match=r"state\.safetensors holds .*no state of this model's optimizer"):
            states[name].restore(tmp_path / other, {"step": 1})
