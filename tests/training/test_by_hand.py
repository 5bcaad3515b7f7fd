"""Weights, log lines and checkpoints of a run agree at each step with the training written out in `by_hand`."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from anyvla.config import STRICT
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.open import open_dataset
from anyvla.data.training.mixture import Mixture
from anyvla.fusers import Fuser
from anyvla.interrupted import Interrupted
from anyvla.policy import VLA, VLAConfig
from anyvla.registry import fusers
from anyvla.training.loop import train
from anyvla.training.meter import Progress
from tests.small import embodiment, episode, model, recipe
from tests.training.by_hand import Settings, Step, train_by_hand

SETTINGS = Settings(
    steps=6,
    batch_size=4,
    accumulate=2,
    seed=3,
    bfloat16=False,
    lr=4e-3,
    final_lr=1e-3,
    warmup_steps=2,
    weight_decay=0.3,
    betas=(0.7, 0.8),
    clip=0.7,
    shift=2,
    window=3,
    stride=2,
    crop=0.8,
)
HISTORY = {"name": "policy_head", "window": 3}


class Dropping(Fuser):
    """A linear layer and dropout, which differs between training and acting and samples from the global generator."""

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Config:
        pass

    def __init__(self, config: Config, features: int, window: int) -> None:
        super().__init__()
        self.out, self.width = nn.Linear(features, 24), 24

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.dropout(self.out(features), 0.5, self.training)


@pytest.fixture(autouse=True)
def dropping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fusers._targets, "dropping", Dropping)


def one_robot(root: Path, name: str, count: int, change: Any = lambda actions: actions, task: str = "open it") -> None:
    robot = dataclasses.replace(embodiment(), name=name)
    made = [episode(7 + i, seed=i, instruction=f"{task} {i}") for i in range(count)]
    write_dataset(root, robot, [dataclasses.replace(e, embodiment=robot, actions=change(e.actions)) for e in made])


def still(actions: Any) -> Any:
    """Return actions whose second dim never varies."""
    changed = actions.copy()
    changed[:, 1] = 0.25
    return changed


def doubled(actions: Any) -> Any:
    return actions * np.array([2, 2, 2, 1], np.float32)


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Mixture]:
    """Two robots, the first of which is seen three times as often; and a robot of which one dim never varies."""
    folder = tmp_path_factory.mktemp("data")
    one_robot(folder / "a", "small", 2)
    one_robot(folder / "b", "other", 2, doubled, "close it")
    one_robot(folder / "c", "still", 3, still)
    a, b, c = (open_dataset(folder / name) for name in "abc")
    return {"two robots": Mixture([a, b], [3.0, 1.0], [None, None]), "a still dim": Mixture([c], [1.0], [None])}


def structure(**keys: Any) -> VLAConfig:
    given = {"history": HISTORY, "fuser": "dropping", "execute": 2, "view": {"crop": 0.8}}
    return model(**given | keys)


CASES: dict[str, tuple[str, dict[str, Any], Settings]] = {  # a mixture, keys of the model, settings of training
    "two robots": ("two robots", {}, SETTINGS),
    "one piece, a still dim, constant rate": (
        "a still dim",
        {},
        dataclasses.replace(SETTINGS, accumulate=1, final_lr=None, seed=8, steps=4),
    ),
    "noise": ("two robots", {"decoder": "flow"}, dataclasses.replace(SETTINGS, clip=3.3, steps=3)),
    # One step: rounding to bfloat16 makes tiny differences of weights large.
    "bfloat16": ("two robots", {}, dataclasses.replace(SETTINGS, bfloat16=True, warmup_steps=0, steps=1)),
}
Expected = Callable[[str], list[Step]]  # the steps of a case


@pytest.fixture(scope="module")
def expected(mixtures: dict[str, Mixture]) -> Expected:
    @functools.cache
    def steps(name: str) -> list[Step]:
        data, keys, settings = CASES[name]
        return list(train_by_hand(settings, structure(**keys), mixtures[data], mixtures[data].robots()))

    return steps


def run(name: str, mixtures: dict[str, Mixture], folder: Path, workers: int = 0, **keys: Any) -> Path:
    data, keys_of_model, settings = CASES[name]
    training = settings.section(log_every=1, checkpoint_every=2)
    return train(recipe(structure(**keys_of_model), training, workers=workers), mixtures[data], folder, **keys)


def assert_weights(folder: Path, wanted: dict[str, Tensor]) -> None:
    """Compare by the mean of each tensor: AdamW turns the rounding error of a gradient near 0 into a whole step."""
    found = VLA.load(folder).state_dict()
    assert found.keys() == wanted.keys()
    off = {name: (found[name] - wanted[name]).abs().mean().item() for name in wanted if wanted[name].numel()}
    assert {name: value for name, value in off.items() if value > 1e-3 * SETTINGS.lr} == {}


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train" / "log.jsonl").read_text().splitlines()]


def assert_log(lines: list[dict[str, Any]], wanted: list[Step]) -> None:
    for line in lines:
        step = wanted[line["step"] - 1]
        assert line["lr"] == pytest.approx(step.lr, rel=1e-9)
        assert line["loss"] == pytest.approx(step.loss, rel=1e-5)
        assert line["grad_norm"] == pytest.approx(step.grad_norm, rel=3e-5)
        for part, value in step.parts.items():
            assert line["parts"][part] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_weights_and_log_agree_with_a_loop_written_by_hand(
    name: str, mixtures: dict[str, Mixture], expected: Expected, tmp_path: Path
) -> None:
    assert_weights(run(name, mixtures, tmp_path), expected(name)[-1].weights)
    assert [line["step"] for line in log(tmp_path)] == [n + 1 for n in range(CASES[name][2].steps)]
    assert_log(log(tmp_path), expected(name))


def test_the_cases_cover_clipping_and_rounding(mixtures: dict[str, Mixture], expected: Expected) -> None:
    for name in CASES.keys() - {"bfloat16"}:  # some steps are clipped, others are not
        norms = [step.grad_norm for step in expected(name)]
        assert min(norms) < CASES[name][2].clip < max(norms), (name, norms)
    one, other = expected("bfloat16")[0], expected("two robots")[0]
    assert one.grad_norm != pytest.approx(other.grad_norm, rel=1e-4)


def test_a_run_that_was_stopped_twice_agrees_with_a_loop_written_by_hand(
    mixtures: dict[str, Mixture], expected: Expected, tmp_path: Path
) -> None:
    """AdamW's moments and step, data order and dropout resume exactly, and a worker process changes nothing."""
    for stopped in (2, 3):
        shown: list[Progress] = []
        with pytest.raises(Interrupted):
            run("two robots", mixtures, tmp_path, progress=shown.append, stop=lambda: shown[-1].step == stopped)  # noqa: B023
        [left] = (tmp_path / "train").glob("step-*")
        assert left.name == f"step-{stopped:08d}"
        assert_weights(left, expected("two robots")[stopped - 1].weights)
        torch.manual_seed(99)  # the next process is in another state
    assert_weights(run("two robots", mixtures, tmp_path, workers=1), expected("two robots")[-1].weights)
    assert [line["step"] for line in log(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert_log(log(tmp_path), expected("two robots"))
