"""Weights that no gradient reaches are named after the first steps."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from anyvla.config import build
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.open import open_dataset
from anyvla.data.training.mixture import Mixture
from anyvla.policy import VLA
from anyvla.training.config import TrainingConfig
from anyvla.training.errors import TrainingError
from anyvla.training.idle_weights import IdleWeights, group_by_module
from anyvla.training.loop import train
from anyvla.training.processes import Processes
from tests.small import batch, embodiment, episode, model, policy, recipe
from tests.training.pretended import Pretended


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "dataset"
    write_dataset(root, embodiment(), [episode(12 + i, seed=i) for i in range(4)])
    return root


def warned(root: Path, run: Path, caplog: pytest.LogCaptureFixture, **keys: object) -> list[str]:
    data = Mixture([open_dataset(root)], [1.0], [None])
    training = build(TrainingConfig, {"steps": 12, "batch_size": 2, "track": "none", **keys})
    with caplog.at_level(logging.WARNING):
        train(recipe(model("none", "identity"), training), data, run)
    return [m for m in caplog.messages if "no gradient" in m]


@pytest.fixture
def disconnect(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Add modules to the policy that nothing depends on."""
    original = VLA.__init__

    def apply(kind: str) -> None:
        def init(self: VLA, *args: object, **keys: object) -> None:
            original(self, *args, **keys)  # type: ignore[arg-type]
            self.decoder.extra = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
            self.decoder.loose = nn.Parameter(torch.zeros(3))
            if kind == "frozen":
                self.decoder.extra.requires_grad_(False)
                self.decoder.loose.requires_grad_(False)
            if kind == "declared":
                unused = (self.decoder.extra, nn.ParameterList([self.decoder.loose]))
                monkeypatch.setattr(type(self.backbone), "unused_modules", unused)

        monkeypatch.setattr(VLA, "__init__", init)

    return apply


def test_disconnected_weights_are_named_by_module(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, disconnect: Callable[[str], None]
) -> None:
    disconnect("trained")
    [text] = warned(root, tmp_path, caplog)
    assert text.startswith(
        "no gradient reached 5 trained weights in 10 steps: decoder.loose, decoder.extra (4 weights). They stay"
    )


@pytest.mark.parametrize(("kind", "then"), [("frozen", "error"), ("declared", "error"), ("trained", "ignore")])
def test_frozen_and_declared_weights_are_intended(
    root: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    disconnect: Callable[[str], None],
    kind: str,
    then: str,
) -> None:
    disconnect(kind)
    assert warned(root, tmp_path, caplog, without_gradient=then) == []


def test_it_is_an_error_where_the_recipe_wants_that(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, disconnect: Callable[[str], None]
) -> None:
    disconnect("trained")
    with pytest.raises(TrainingError, match=r"5 trained weights in 3 steps.*or set training.without_gradient: ignore"):
        warned(root, tmp_path, caplog, without_gradient="error", steps=3)


def test_a_layer_that_only_a_rare_data_set_uses_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """The decoder gets a gradient only once the second data set is sampled, in step 15."""
    vla = policy()
    for name, weight in vla.named_parameters():
        weight.grad = None if name.startswith("decoder") else torch.ones_like(weight)
    watch, steps = IdleWeights(vla, 2, "error", Processes.single()), torch.tensor([[0, 0, 0], [0, 3, 1]])
    frequent = dataclasses.replace(batch(2, 1), samples=steps)
    for _ in range(14):
        watch.look(frequent, last=False)
    for weight in vla.parameters():
        weight.grad = torch.ones_like(weight)
    watch.look(dataclasses.replace(frequent, samples=steps + torch.tensor([1, 0, 0])), last=False)
    assert caplog.messages == []


def test_a_data_set_that_another_process_samples_was_seen() -> None:
    vla, seen = policy(), dataclasses.replace(batch(2, 1), samples=torch.tensor([[0, 0, 0], [0, 3, 1]]))
    for weight in vla.parameters():
        weight.grad = torch.zeros_like(weight)
    others = Pretended(0, 2)
    others.gather = lambda own: [own, [1] if own == [0] else own]  # data set 1, and the same idle weights as ours
    watch = IdleWeights(vla, 2, "error", others)
    for _ in range(9):
        watch.look(seen, last=False)
    with pytest.raises(TrainingError, match="in 10 steps"):
        watch.look(seen, last=False)


def test_a_module_is_named_only_if_all_of_its_trained_weights_are_idle() -> None:
    net = nn.ModuleDict({"a": nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), "b": nn.Linear(1, 1)})
    net["b"].bias.requires_grad_(False)
    assert group_by_module(net, {"a.0.weight", "a.0.bias", "b.weight"}) == ["a.0 (2 weights)", "b (1 weight)"]
    assert group_by_module(net, {"a.1.bias"}) == ["a.1.bias"]
