"""A profile shows where the time of a step goes, and changes no result."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from anyvla.config import build
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.training.mixture import Mixture
from anyvla.fusers import LSTMFuser
from anyvla.interrupted import Interrupted
from anyvla.policy import VLA
from anyvla.training import spans
from anyvla.training.config import TrainingConfig
from anyvla.training.loop import train
from anyvla.training.profile import PARTS
from tests.small import embodiment, episode, mixture, model, recipe

MODEL = model({"name": "policy_head", "window": 2}, {"name": "lstm", "hidden": 32, "layers": 1}, decoder="flow")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    root = tmp_path_factory.mktemp("data") / "dataset"
    write_dataset(root, embodiment(), [episode(12 + i, seed=i) for i in range(4)])
    return mixture(root)


def run(data: Mixture, folder: Path, **keys: Any) -> tuple[Path, list[str]]:
    training = {"steps": 14, "batch_size": 4, "accumulate": 2, "log_every": 2, "checkpoint_every": 6, "track": "none"}
    said: list[str] = []
    return train(recipe(MODEL, build(TrainingConfig, training)), data, folder, say=said.append, **keys), said


@pytest.fixture(scope="module")
def made(data: Mixture, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """Return the runs without and with a profile, and what the latter said."""
    plain, _ = run(data, tmp_path_factory.mktemp("plain"))
    profiled, said = run(data, tmp_path_factory.mktemp("profiled"), profile=4)
    return plain, profiled, said


def test_a_profile_changes_no_result(made: tuple[Path, Path, list[str]]) -> None:
    plain, profiled, _ = made
    assert (plain / "model.safetensors").read_bytes() == (profiled / "model.safetensors").read_bytes()
    for left in plain, profiled:
        lines = (left.parent / "train" / "log.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(2, 15, 2))


def test_recomputed_layers_count_as_backward_and_change_no_result(data: Mixture, tmp_path: Path) -> None:
    keys = {"steps": 9, "batch_size": 4, "track": "none", "gradient_checkpointing": True}
    training = build(TrainingConfig, keys)
    plain = train(recipe(MODEL, training), data, tmp_path / "plain")
    profiled = train(recipe(MODEL, training), data, tmp_path / "profiled", profile=3)
    assert (plain / "model.safetensors").read_bytes() == (profiled / "model.safetensors").read_bytes()
    parts = json.loads((tmp_path / "profiled" / "profile" / "profile.json").read_text())["parts"]
    assert sum(p["share"] for p in parts) == pytest.approx(1)


def test_the_parts_of_a_step_add_up_to_it(made: tuple[Path, Path, list[str]]) -> None:
    profile = json.loads((made[1].parent / "profile" / "profile.json").read_text())
    assert (profile["first_step"], profile["steps"]) == (5, 4)  # after a third of the 14 steps
    parts = {p["part"]: p for p in profile["parts"]}
    assert parts.keys() <= set(PARTS)
    wanted = {"data wait", "tokenize and preprocess", "vision", "projector", "language", "fuser", "decoder"}
    assert parts.keys() >= wanted | {"to device", "backward", "clip", "optimizer", "log", "checkpoint"}
    assert all(p["ms"] > 0 for p in parts.values())
    assert sum(p["ms"] for p in parts.values()) == pytest.approx(profile["step_ms"])
    assert sum(p["share"] for p in parts.values()) == pytest.approx(1)
    assert any("aten::" in operator["name"] for operator in profile["operators"])
    [table] = [text for text in made[2] if text.startswith("step ")]
    assert [line.split("  ")[0] for line in table.splitlines()[1:-1]] == [p["part"] for p in profile["parts"]]


def test_the_trace_names_the_parts(made: tuple[Path, Path, list[str]]) -> None:
    with gzip.open(made[1].parent / "profile" / "trace.json.gz") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert names.count("step") == 3
    assert {"vision", "language", "decoder", "backward", "optimizer", "aten::addmm"} <= set(names)


class Inverses:
    """A measurement with operators of its own."""

    saves_first, every, names = False, 1, {"inverses": True}

    def start(self, vla: VLA) -> Inverses:
        return self

    def describe(self) -> str:
        return "inverses every step"

    def measure(self, step: int) -> dict[str, float]:
        return {"inverses": float(torch.linalg.inv(torch.eye(3)).sum())}


def test_a_measurement_is_not_traced(data: Mixture, tmp_path: Path) -> None:
    run(data, tmp_path, profile=2, measurements=[Inverses()])
    with gzip.open(tmp_path / "profile" / "trace.json.gz") as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert not any("linalg_inv" in str(name) for name in names)
    assert names.count("aten::addmm") > 0
    assert names.count("step") == 2
    assert names.count("optimizer") == 2  # tracing continues after a measurement


def test_a_slow_part_gets_its_own_time(data: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = LSTMFuser.forward

    def slow(self: LSTMFuser, features: Any) -> Any:
        time.sleep(0.05)
        return original(self, features)

    monkeypatch.setattr(LSTMFuser, "forward", slow)
    run(data, tmp_path, profile=2)
    parts = json.loads((tmp_path / "profile" / "profile.json").read_text())["parts"]
    ms = {p["part"]: p["ms"] for p in parts}
    assert ms["fuser"] >= 100  # two pieces of a batch
    assert ms["rest of the forward pass"] < 100  # the parts inside are not counted twice


def test_a_run_that_stops_while_it_is_profiled_leaves_no_trace_in_later_ones(data: Mixture, tmp_path: Path) -> None:
    step, policies = [0], list[VLA]()
    original = VLA.train

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VLA, "train", lambda self, mode=True: policies.append(self) or original(self, mode))
        with pytest.raises(Interrupted):
            run(data, tmp_path, profile=4, progress=lambda p: step.__setitem__(0, p.step), stop=lambda: step[0] >= 6)
    assert spans._clock is None
    assert not spans._tracing
    [vla] = policies
    assert not any("forward" in vars(module) for module in vla.modules())
    assert "loss" not in vars(vla)


def test_a_run_of_one_step_is_profiled(data: Mixture, tmp_path: Path) -> None:
    training = build(TrainingConfig, {"steps": 1, "batch_size": 2, "track": "none"})
    train(recipe(MODEL, training), data, tmp_path, profile=20)
    assert json.loads((tmp_path / "profile" / "profile.json").read_text())["steps"] == 1
