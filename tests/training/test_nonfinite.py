"""A loss or gradient that is not finite names the samples, the parts and the parameters that cause it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from anyvla.config import build
from anyvla.data.episode import Episode
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.open import open_dataset
from anyvla.data.training.mixture import Mixture
from anyvla.data.transforms.subset import Subset
from anyvla.data.transforms.wrapped import WrappedDataset
from anyvla.policy import VLA
from anyvla.training import nonfinite
from anyvla.training.config import TrainingConfig
from anyvla.training.errors import TrainingError
from anyvla.training.loop import train
from tests.small import embodiment, episode, model, recipe


class Planted(WrappedDataset):
    """The data set with a fault in some of its episodes, from the moment `fault` is set."""

    fault: Callable[[int, Episode], Episode] | None = None

    def __getitem__(self, index: int) -> Episode:
        read = super().__getitem__(index)
        return read if self.fault is None else self.fault(index, read)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "dataset"
    write_dataset(root, embodiment(), [episode(9 + i, i, f"open drawer {i}") for i in range(5)])
    return root


def failure(
    root: Path, run: Path, fault: Callable[[int, Episode], Episode], precision: str = "float32", **model_keys: object
) -> str:
    """Return the error of training on the data with a fault that its statistics do not show."""
    planted = Planted(Subset(open_dataset(root), [0, 2, 3, 4]), {"test": 1})
    mixture = Mixture([planted], [1.0], [None])
    mixture.robots()
    planted.fault = fault
    keys = {"steps": 30, "batch_size": 8, "accumulate": 2, "checkpoint_every": 100, "precision": precision}
    with pytest.raises(TrainingError) as error:
        train(recipe(model(**model_keys), build(TrainingConfig, keys)), mixture, run)
    return str(error.value)


def in_episode(number: int, **values: tuple[int, int, float]) -> Callable[[int, Episode], Episode]:
    """Return a fault that sets the value (step, dim, value) of arrays of one episode."""

    def plant(index: int, of: Episode) -> Episode:
        if index != number:
            return of
        arrays = {name: np.array(getattr(of, name)) for name in values}
        for name, (step, dim, value) in values.items():
            arrays[name][step, dim] = value
        return dataclasses.replace(of, **arrays)

    return plant


@pytest.mark.parametrize("decoder", ["regression", "flow"])
def test_a_nan_in_one_episode_names_exactly_that_episode_and_step(root: Path, tmp_path: Path, decoder: str) -> None:
    """Episode 2 of the selection is episode 3 of the file; the NaN is the proprio of its step 5."""
    text = failure(root, tmp_path, in_episode(2, proprio=(5, 1, float("nan"))), decoder=decoder)
    assert "loss nan" in text
    assert "The loss of position and gripper is not finite" in text
    assert "1 of 4 samples cause it: " in text
    assert text.count("drawer") == 1
    assert "file-000.parquet, episode 3, step 5 ('open drawer 3'): proprio group 'position', dim 1 is nan." in text


def test_a_gradient_that_overflows_names_the_sample_and_the_first_bad_parameter(root: Path, tmp_path: Path) -> None:
    """The loss is finite: only the square of the input, in the gradient, is not."""
    text = failure(
        root,
        tmp_path,
        in_episode(3, proprio=(4, 0, 3e38)),
        decoder={"name": "regression", "loss": "l1", "hidden": 8, "layers": 1},
    )
    assert "episode 4, step 4 ('open drawer 4'): proprio group 'position', dim 0 is 3e+38" in text
    assert re.search(r"decoder\.mlp\.2\.\w+ is the first of \d+ parameters", text), text


def test_weights_that_diverge_are_not_blamed_on_the_data(root: Path, tmp_path: Path) -> None:
    keys = {"steps": 30, "batch_size": 8, "precision": "float32"}
    keys |= {"optim": {"lr": 100, "warmup_steps": 0, "weight_decay": 100, "clip": 1e12}}
    data = Mixture([open_dataset(root)], [1.0], [None])
    with pytest.raises(TrainingError, match=r"the weights (are at fault|may have diverged): try a lower"):
        train(recipe(model(), build(TrainingConfig, keys)), data, tmp_path)


def test_weights_that_are_not_finite_are_blamed_and_not_the_samples(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = VLA.train

    def broken(self: VLA, mode: bool = True) -> VLA:
        with torch.no_grad():
            self.queries[0, 0] = float("inf")
        return original(self, mode)

    monkeypatch.setattr(VLA, "train", broken)
    text = failure(root, tmp_path, lambda _, of: of)
    assert "1 weights were not finite before this step, queries first" in text
    assert "samples" not in text


@pytest.mark.parametrize(
    ("precision", "advice"),
    [
        ("bfloat16", "the weights or the precision are at fault: .*optim.lr or --training.precision float32$"),
        ("float32", "the weights are at fault: .*optim.lr or more --training.optim.warmup_steps$"),
    ],
)
def test_a_fault_of_all_samples_blames_none_of_them(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, advice: str
) -> None:
    original = VLA.loss
    monkeypatch.setattr(
        VLA, "loss", lambda self, *given: dataclasses.replace(o := original(self, *given), total=o.total * float("nan"))
    )
    text = failure(root, tmp_path, lambda _, of: of, precision)
    assert re.search("It happens whatever the samples are: " + advice, text)
    assert "drawer" not in text


def test_a_search_that_fails_hides_no_failed_step(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise RuntimeError("CUDA out of memory\nand many lines")

    monkeypatch.setattr(nonfinite, "explain", fail)
    text = failure(root, tmp_path, in_episode(2, proprio=(5, 1, float("nan"))))
    assert "nothing was updated with it" in text
    assert text.endswith("The search for the cause failed (CUDA out of memory)")


def test_nothing_was_updated(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for the cause computes gradients, which must not reach the weights."""
    trained: list[VLA] = []
    original = VLA.train
    monkeypatch.setattr(VLA, "train", lambda self, mode=True: trained.append(self) or original(self, mode))
    before: dict[str, torch.Tensor] = {}
    loss = VLA.loss

    def noted(self: VLA, *given: object) -> object:
        if not before:
            before.update({k: v.clone() for k, v in self.state_dict().items()})
        return loss(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(VLA, "loss", noted)
    text = failure(root, tmp_path, lambda _, of: dataclasses.replace(of, proprio=of.proprio * np.float32("nan")))
    assert text.startswith("step 1: loss nan")
    assert "3 of 4 samples at least" in text
    assert all(torch.equal(before[k], v) for k, v in trained[0].state_dict().items())
