from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from anyvla.cli.data import main
from anyvla.cli.data_vqa import look
from anyvla.config import ConfigError, build
from anyvla.evaluation.label import COMMONEST, LabelConfig, balanced
from anyvla.evaluation.metaworld_scene import COLOURS
from anyvla.evaluation.questions import ask, place
from anyvla.interrupted import Interrupted

if TYPE_CHECKING:
    from anyvla.evaluation.metaworld_scene import SceneLabeller


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


@pytest.fixture(scope="module")
def labeller() -> Iterator[SceneLabeller]:
    pytest.importorskip("metaworld")
    from anyvla.evaluation.metaworld_scene import SceneLabeller

    made = SceneLabeller(96, "fast")
    yield made
    made.close()


# where a thing goes in the corner view from closed (the button: up) to open (pressed): shares of width and height
@pytest.mark.parametrize(
    ("scene", "thing", "across", "down"),
    [
        ("drawer", "drawer", -0.12, 0.04),
        ("drawer", "handle", -0.15, 0.06),
        ("window", "handle", 0.15, 0.10),
        ("door", "door", -0.30, 0.0),
        ("button", "button", 0.0, 0.06),
    ],
)
def test_labels_follow_what_moves(labeller: SceneLabeller, scene: str, thing: str, across: float, down: float):
    from anyvla.evaluation.metaworld_scene import SCENES, project

    labeller.environment.reset(SCENES[scene].task, 3)
    colours = labeller.paint(scene, np.random.default_rng(0))
    found = {}
    for share in (0.0, 1.0):
        labeller.set_joint(scene, share)
        pixels, found[share] = labeller.look(scene, labeller.view(), colours)
        assert found[share].opened == pytest.approx(share)
    before, after = (found[share].things[thing] for share in (0.0, 1.0))
    assert [after.x - before.x, after.y - before.y] == pytest.approx([across, down], abs=0.05)
    # two ways to the same place: the identities of pixels, and the geoms' position through the camera
    sim = labeller.environment.running.sim
    geoms = labeller.geoms(SCENES[scene].parts[thing])
    projected = project(sim.model, sim.data, labeller.view(), sim.data.geom_xpos[geoms]).mean(0)
    assert np.abs(projected - [after.x, after.y]).max() < 0.08
    again, labels = labeller.look(scene, labeller.view(), colours)
    assert np.array_equal(again, pixels)  # the identity renderings leave no trace
    assert labels == found[1.0]


def test_the_colour_that_is_named_is_the_colour_that_is_seen(labeller: SceneLabeller):
    checked = set()
    for number in range(24):
        pixels, labels = labeller.frame("button", np.random.default_rng(number))
        box = labels.things.get("box")
        if box is None or box.clear < 1 or box.area < 0.05:
            continue
        shown = pixels[int(box.y * 96) - 1 : int(box.y * 96) + 2, int(box.x * 96) - 1 : int(box.x * 96) + 2]
        seen = np.median(shown.reshape(-1, 3), 0) / 255
        shades = {name: np.array(rgb) * (seen @ rgb) / (np.array(rgb) @ rgb) for name, rgb in COLOURS.items()}
        nearest = min(shades, key=lambda name: float(np.abs(shades[name] - seen).sum()))
        if box.colour in ("white", "black"):
            assert np.ptp(seen) < 0.1
            assert (seen.mean() > 0.4) == (box.colour == "white")
        else:
            assert nearest == box.colour
        checked.add(box.colour)
    assert len(checked) > 4


def test_what_the_robot_hides_is_not_asked_for(labeller: SceneLabeller):
    """Equal draws, equal frames; and some frame of these has the arm before the handle."""
    hidden = 0
    for number in range(24):
        pixels, labels = labeller.frame("window", np.random.default_rng((100, number)))
        handle = labels.things.get("handle")
        hidden += handle is not None and handle.clear < 0.5
        kinds = {q.kind for q in ask(labels, 99, np.random.default_rng(0))}
        if handle is None or handle.clear < 0.5:
            assert not kinds & {"point handle", "where handle", "side gripper handle"}
    assert hidden
    again, same = labeller.frame("window", np.random.default_rng((100, 23)))
    assert np.array_equal(again, pixels)
    assert same == labels


def test_data_is_made_resumed_and_read(tmp_path: Path):
    pytest.importorskip("metaworld")
    from anyvla.data.vqa import open_vqa
    from anyvla.evaluation.label import label

    config = LabelConfig(frames=16, size=64, processes=1, held_out=0.25)
    label(config, tmp_path / "whole")
    calls = iter(range(100))
    with pytest.raises(Interrupted, match="of 16 frames; the same command goes on there"):
        label(config, tmp_path / "cut", stop=lambda: next(calls) > 3)
    label(replace(config, processes=2), tmp_path / "cut")
    names = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(tmp_path / "cut") for p in (tmp_path / "cut").rglob("*") if p.is_file())
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    data = open_vqa(tmp_path / "whole" / "train.json")
    card = json.loads((tmp_path / "whole/card.json").read_text())
    assert len(data) == card["frames"]["train"] > 4
    assert sum(sum(a.values()) for a in card["answers"]["train"].values()) == sum(len(e.turns) for e in data)
    assert data.missing() == []
    assert data[0].images[0].shape == (64, 64, 3)
    with pytest.raises(ValueError, match="made with other settings \\(seed: 0 then, 1 now\\)"):
        label(LabelConfig(frames=16, size=64, seed=1, held_out=0.25), tmp_path / "whole")


def test_a_page_to_look_at_lies_beside_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    turn = [{"from": "human", "value": "<image>\nPoint to the <b>."}, {"from": "gpt", "value": "27 58"}]
    (tmp_path / "train.json").write_text(json.dumps([{"image": "a.png", "conversations": turn}]))
    assert main(["vqa", "--look", str(tmp_path)]) == 0
    page = (tmp_path / "examples.html").read_text()
    assert "left:27%;top:58%" in page
    assert "Point to the &lt;b&gt;." in page
    assert str(tmp_path / "examples.html") in capsys.readouterr().out
    assert look(tmp_path / "train.json") == tmp_path / "train-examples.html"
