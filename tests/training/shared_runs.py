"""Trainings of a small recipe in one process or several, and comparisons of what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from anyvla.policy import VLA
from tests.small import SMALLEST
from tests.training.launched import Ended, Launcher, Running, variables

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


class Runs:
    """Trains recipes in folders of their own."""

    def __init__(self, launch: Launcher, data: Path, folder: Path) -> None:
        self.launch, self.data, self.folder = launch, data, folder

    def recipe(self, *, sources: int = 2, **keys: Any) -> Path:
        """Write a recipe with these keys of `model` and of `training`, and so many sources."""
        model = {
            **SMALLEST,
            **{key: keys.pop(key) for key in ("decoder", "history", "fuser", "backbone") if key in keys},
        }
        paths = [{"path": str(self.data / "one"), "weight": 2.0}, {"path": str(self.data / "two")}]
        document = {
            "name": "shared",
            "model": model,
            "data": {"sources": paths[:sources]},
            "training": {**TRAINING, **keys},
        }
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def train(self, recipe: Path, run: str, count: int, *options: Any, **environment: str) -> list[Ended]:
        """Train in some processes, one without any launcher."""
        given = ["train", recipe, "--out", self.folder / run, *options]
        if count == 1:
            return self.launch.start("anyvla", *given, own=[environment]).wait()
        return self.launch("anyvla", count, *given, **environment)

    def start(self, recipe: Path, run: str, count: int, *options: Any) -> Running:
        """Begin to train in some processes."""
        return self.launch.start("anyvla", "train", recipe, "--out", self.folder / run, *options, own=variables(count))

    def count_logged(self, run: str) -> int:
        """Return the number of steps in the log so far."""
        path = self.folder / run / "train/log.jsonl"
        return path.read_text().count("\n") if path.is_file() else 0

    def finish(self, recipe: Path, run: str, count: int, *options: Any) -> None:
        for ended in self.train(recipe, run, count, *options):
            assert ended.status == 0, ended.err

    def lines(self, run: str) -> list[dict[str, Any]]:
        """Return the lines of the log."""
        return [json.loads(line) for line in (self.folder / run / "train/log.jsonl").read_text().splitlines()]

    def curve(self, run: str) -> dict[str, Tensor]:
        """Return the losses, their parts and the norms of the gradients of all steps."""
        lines = [line for line in self.lines(run) if "loss" in line]
        rows = [{"loss": of["loss"], "grad_norm": of["grad_norm"], **of["parts"]} for of in lines]
        return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}

    def weights(self, run: str) -> dict[str, Tensor]:
        return VLA.load(self.folder / run / "checkpoint").state_dict()


def assert_same(runs: Runs, run: str, other: str, *, steps: int = 20, tolerance: float = 1e-6) -> None:
    one, two = runs.curve(run), runs.curve(other)
    assert one.keys() == two.keys()
    for name in one:
        assert len(one[name]) == len(two[name]) == steps
        torch.testing.assert_close(
            one[name], two[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
    for (name, weight), again in zip(runs.weights(run).items(), runs.weights(other).values(), strict=True):
        torch.testing.assert_close(weight, again, rtol=0, atol=5 * tolerance, msg=lambda m, n=name: f"{n}: {m}")
