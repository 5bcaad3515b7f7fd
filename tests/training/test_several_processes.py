"""A training gives the same result on any number of processes, however it is stopped and resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.policy import VLA
from tests.small import SMALLEST, embodiment, episode
from tests.training.launched import Ended, Launcher, launcher

TRAINING: dict[str, Any] = {
    "steps": 20,
    "batch_size": 8,
    "log_every": 1,
    "checkpoint_every": 100,
    "device": "cpu",
    "precision": "float32",
    "track": "none",
    "without_gradient": "ignore",
    "optim": {"lr": 1e-4, "warmup_steps": 5},
    "augment": {"shift": 2, "brightness": 0.3},
}
FLOW = {"name": "flow", "width": 32, "layers": 1, "heads": 2, "samples": 2}
HEAD = {"history": {"name": "policy_head", "window": 2}, "fuser": {"name": "lstm", "hidden": 16, "layers": 1}}


@pytest.fixture(scope="module")
def launch() -> Iterator[Launcher]:
    with launcher() as started:
        yield started


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets whose episodes have several lengths."""
    folder = tmp_path_factory.mktemp("data")
    for name, episodes in (("one", range(3)), ("two", range(3, 5))):
        write_dataset(folder / name, embodiment(), [episode(9 + seed, seed=seed) for seed in episodes])
    return folder


class Runs:
    """Trains recipes in folders of their own."""

    def __init__(self, launch: Launcher, data: Path, folder: Path) -> None:
        self.launch, self.data, self.folder = launch, data, folder

    def recipe(self, **keys: Any) -> Path:
        """Write a recipe with these keys of `model` and of `training`."""
        model = {
            **SMALLEST,
            **{key: keys.pop(key) for key in ("decoder", "history", "fuser", "backbone") if key in keys},
        }
        sources = [{"path": str(self.data / "one"), "weight": 2.0}, {"path": str(self.data / "two")}]
        document = {"name": "shared", "model": model, "data": {"sources": sources}, "training": {**TRAINING, **keys}}
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def train(self, recipe: Path, run: str, count: int, *options: Any, **environment: str) -> list[Ended]:
        """Train in some processes, one without any launcher."""
        given = ["train", recipe, "--out", self.folder / run, *options]
        if count == 1:
            return self.launch.start("anyvla", *given, own=[environment]).wait()
        return self.launch("anyvla", count, *given, **environment)

    def finish(self, recipe: Path, run: str, count: int, *options: Any) -> None:
        for ended in self.train(recipe, run, count, *options):
            assert ended.status == 0, ended.err

    def curve(self, run: str) -> dict[str, Tensor]:
        """Return the losses, their parts and the norms of the gradients of all steps."""
        lines = [json.loads(line) for line in (self.folder / run / "train/log.jsonl").read_text().splitlines()]
        rows = [{"loss": of["loss"], "grad_norm": of["grad_norm"], **of["parts"]} for of in lines if "loss" in of]
        return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}

    def weights(self, run: str) -> dict[str, Tensor]:
        return VLA.load(self.folder / run / "checkpoint").state_dict()


@pytest.fixture
def runs(launch: Launcher, data: Path, tmp_path: Path) -> Runs:
    return Runs(launch, data, tmp_path)


def assert_same(runs: Runs, run: str, other: str, *, steps: int = 20) -> None:
    one, two = runs.curve(run), runs.curve(other)
    assert one.keys() == two.keys()
    for name in one:
        assert len(one[name]) == len(two[name]) == steps
        torch.testing.assert_close(one[name], two[name], rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    for (name, weight), again in zip(runs.weights(run).items(), runs.weights(other).values(), strict=True):
        torch.testing.assert_close(weight, again, rtol=0, atol=5e-6, msg=lambda m, n=name: f"{n}: {m}")


REGRESSION = {"decoder": SMALLEST["decoder"], **HEAD, "ema": {"decay": 0.9}}


@pytest.mark.parametrize(
    ("keys", "splits"),
    [
        pytest.param(REGRESSION, [(2, 2)], id="regression"),
        pytest.param({"decoder": FLOW}, [(4, 1)], id="flow"),
        pytest.param(REGRESSION, [(2, 1), (4, 1), (4, 2)], id="regression on more", marks=pytest.mark.slow),
        pytest.param({"decoder": FLOW}, [(2, 1), (2, 4), (4, 2)], id="flow on more", marks=pytest.mark.slow),
    ],
)
def test_curves_and_weights_do_not_depend_on_the_number_of_processes(
    runs: Runs, keys: dict[str, Any], splits: list[tuple[int, int]]
) -> None:
    recipe = runs.recipe(**keys)
    runs.finish(recipe, "one", 1)
    assert runs.curve("one")["loss"].std() > 1e-2
    for count, pieces in splits:
        runs.finish(recipe, f"{count}x{pieces}", count, "--training.accumulate", pieces)
        assert_same(runs, "one", f"{count}x{pieces}")
