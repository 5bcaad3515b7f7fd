"""Data that cannot be trained on is refused before a model is built."""

from __future__ import annotations

import pytest

from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.training import loop
from anyvla.training.warm_start.start import Start
from tests.small import embodiment, episode, mixture, model, recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "dataset"
    write_dataset(root, embodiment(), [episode(12 + i, seed=i) for i in range(3)])
    return root


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (
            model({"name": "policy_head", "window": 16}, {"name": "lstm", "hidden": 8, "layers": 1}),
            "a window of 16 steps with stride 2 spans 31 steps .* has 14 steps, .* a window of at most 7, or longer",
        ),
        (model(chunk=32), "a chunk of 32 actions, but the longest of 3 episodes .* at most 14"),
    ],
)
def test_bad_data_is_refused_before_a_model_is_built(folder, tmp_path, monkeypatch, structure, message):
    monkeypatch.setattr(Start, "build_policy", None)
    with pytest.raises(ValueError, match=message):
        loop.train(recipe(structure, {"steps": 1}), mixture(folder), tmp_path)
    assert not list(tmp_path.iterdir())
