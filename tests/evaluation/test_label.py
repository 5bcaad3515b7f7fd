from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from anyvla.config import ConfigError, build
from anyvla.evaluation.label import COMMONEST, LabelConfig, balanced
from anyvla.evaluation.questions import place


def records(answers: dict[str, dict[str, int]]) -> list[dict[str, object]]:
    return [
        {"held_out": False, "turns": [[kind, "?", answer]]}
        for kind, counts in answers.items()
        for answer, n in counts.items()
        for _ in range(n)
    ]


def test_common_answers_are_thinned_and_a_constant_one_goes():
    made = records(
        {"state": {"open": 100, "closed": 10, "half open": 10}, "what": {"a door": 9}, "point x": {"1 2": 5}}
    )
    kept = [made[i]["turns"][k] for i, k in balanced(made, held_out=False)]
    left = Counter((t[0], t[2]) for t in kept)
    assert left["state", "closed"] == left["state", "half open"] == 10
    mean = sum(n for (kind, _), n in left.items() if kind == "state") / 3
    assert 10 < left["state", "open"] <= COMMONEST * mean
    assert not any(kind == "what" for kind, _ in left)
    assert left["point x", "1 2"] == 5
    assert balanced(made, held_out=True) == set()


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (0, 0, "top left"),
        (0.5, 0.5, "centre"),
        (1, 1, "bottom right"),
        (0.34, 0.1, "top centre"),
        (0.9, 0.4, "middle right"),
    ],
)
def test_places_in_words(x: float, y: float, words: str):
    assert place(x, y) == words


def test_other_benchmarks_are_told():
    with pytest.raises(ConfigError, match="frames of 'calvin/D' cannot be labelled; of these they can: metaworld"):
        build(LabelConfig, {"benchmark": "calvin/D"})


def test_labels_follow_what_moves():
    pytest.importorskip("metaworld")
    from anyvla.evaluation.environments.metaworld_scene import SCENES, SceneLabeller, project

    labeller = SceneLabeller(96, "fast")
    try:
        labeller.environment.reset("drawer-open", 3)
        colours = labeller.paint("drawer", np.random.default_rng(0))
        found = {}
        for share in (0.0, 1.0):
            labeller.set_joint("drawer", share)
            pixels, found[share] = labeller.look("drawer", labeller.view(), colours)
            assert found[share].opened == pytest.approx(share)
        before, after = found[0.0].things["handle"], found[1.0].things["handle"]
        assert after.x < before.x - 0.05  # drawn out, it comes to the left and down in the corner view
        assert after.y > before.y + 0.05
        # two ways to the same place: the identities of pixels, and the geoms' position through the camera
        sim = labeller.environment._running.sim
        material = sim.model.material(SCENES["drawer"].materials["handle"]).id
        geoms = np.flatnonzero(sim.model.geom_matid == material)
        across = project(sim.model, sim.data, labeller.view(), sim.data.geom_xpos[geoms]).mean(0)
        assert np.abs(across - [after.x, after.y]).max() < 0.08
        # the colour that is named is the colour that is seen
        name = found[1.0].things["drawer"].colour
        assert name == colours["drawer"]
        again, _ = labeller.look("drawer", labeller.view(), colours)
        assert np.array_equal(again, pixels)  # the identity rendering leaves no trace
    finally:
        labeller.close()


@pytest.mark.slow
def test_data_is_made_resumed_and_read(tmp_path: Path):
    pytest.importorskip("metaworld")
    from anyvla.data.vqa import open_vqa
    from anyvla.evaluation.label import Interrupted, label

    config = LabelConfig(frames=16, size=64, processes=1, held_out=0.25)
    label(config, tmp_path / "whole")
    calls = iter(range(100))
    with pytest.raises(Interrupted, match="of 16 frames; the same command goes on there"):
        label(config, tmp_path / "cut", stop=lambda: next(calls) > 3)
    label(config, tmp_path / "cut")
    for name in ("train.json", "held_out.json", "card.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    data = open_vqa(tmp_path / "whole" / "train.json")
    assert len(data) > 4
    assert data.missing() == []
    assert data[0].images[0].shape == (64, 64, 3)
    with pytest.raises(ValueError, match="made with other settings \\(seed: 0 then, 1 now\\)"):
        label(LabelConfig(frames=16, size=64, seed=1, held_out=0.25), tmp_path / "whole")
