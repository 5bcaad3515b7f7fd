from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anyvla.cli.data.command import main
from anyvla.cli.data.vqa import look
from anyvla.config import ConfigError, build
from anyvla.data.vqa import open_vqa
from anyvla.demonstrations.label_frames import LabelConfig, balance, label_frames
from anyvla.demonstrations.metaworld_scene import COLORS, SCENES, FrameLabels, VisiblePart
from anyvla.demonstrations.questions import PHRASES
from anyvla.interrupted import Interrupted
from anyvla.worker_pool import WorkerPool


def make_records(answers: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    return [
        {"held_out": False, "turns": [[kind, "?", answer]]}
        for kind, counts in answers.items()
        for answer, n in counts.items()
        for _ in range(n)
    ]


def test_common_answers_are_thinned_and_a_constant_one_goes() -> None:
    """No answer comes up more often than 1.5 times the mean of the answers that are left; earlier frames stay."""
    made = make_records(
        {
            "state": {"open": 100, "closed": 10, "half open": 10},
            "color": {"red": 15, "blue": 10, "green": 10, "black": 10},
            "what": {"a door": 9},
            "point x": {"1 2": 5},
        }
    )
    left: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, k in sorted(balance(made, held_out=False)):
        kind, _, answer = made[i]["turns"][k]
        left[kind, answer].append(i)
    # 20 is 1.5 times the mean of 20, 10 and 10; 15 is within 1.5 times the mean of 15, 10, 10 and 10.
    assert {name: len(places) for name, places in left.items()} == {
        ("state", "open"): 20,
        ("state", "closed"): 10,
        ("state", "half open"): 10,
        ("color", "red"): 15,
        ("color", "blue"): 10,
        ("color", "green"): 10,
        ("color", "black"): 10,
        ("point x", "1 2"): 5,
    }
    assert left["state", "open"] == list(range(20))
    assert balance(made, held_out=True) == set()


def test_each_split_is_balanced_by_its_own_answers() -> None:
    rare, common = make_records({"state": {"open": 4, "closed": 2}}), make_records({"state": {"open": 2, "closed": 8}})
    both = [record | {"held_out": False} for record in rare] + [record | {"held_out": True} for record in common]
    counts = {
        held_out: Counter(both[i]["turns"][k][2] for i, k in balance(both, held_out)) for held_out in (False, True)
    }
    assert counts == {False: {"open": 4, "closed": 2}, True: {"open": 2, "closed": 6}}


def test_other_benchmarks_are_refused():
    with pytest.raises(ConfigError, match="frames of 'calvin/D' cannot be labeled; supported: metaworld"):
        build(LabelConfig, {"benchmark": "calvin/D"})


class Pool:
    """A pool that runs each task at once, in this process."""

    def __init__(self, processes: int, start: Callable[..., None], begin: tuple[Any, ...], remedy: str) -> None:
        start(*begin)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def submit(self, run: Callable[[int], None], number: int) -> Future[None]:
        made: Future[None] = Future()
        made.set_result(run(number))
        return made

    def finished(self, running: set[Future[None]]) -> list[Future[None]]:
        return list(running)

    run = WorkerPool.run


class Labeler:
    """Makes pictures whose pixels encode a color, a scene and a column, and the matching labels."""

    def __init__(self, size: int) -> None:
        self.size = size

    def frame(self, scene: str, rng: np.random.Generator) -> tuple[np.ndarray, FrameLabels]:
        color, column = int(rng.integers(len(COLORS))), int(rng.integers(self.size))
        pixels = np.full((self.size, self.size, 3), (color, list(SCENES).index(scene), column), np.uint8)
        main = {"drawer": "cabinet", "window": "window", "door": "cabinet", "button": "box"}[scene]
        seen = VisiblePart(column / self.size, 0.5, 0.1, True, 1.0, list(COLORS)[color])
        return pixels, FrameLabels(scene, {main: seen}, float(rng.choice([0.0, 1.0])), 0.9)


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LP_NUM_THREADS", "")  # labeling sets it; monkeypatch restores it
    monkeypatch.setattr("anyvla.demonstrations.label_frames.WorkerPool", Pool)
    monkeypatch.setattr("anyvla.demonstrations.metaworld_scene.SceneLabeler", Labeler)


@pytest.mark.usefixtures("simulated")
def test_each_entry_is_about_its_own_picture(tmp_path: Path) -> None:
    """Questions and answers alternate, and give the color, the position and the scene of the picture."""
    label_frames(LabelConfig(frames=60, size=32, held_out=0.3, questions=3), tmp_path)
    entries = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("train", "held_out")}
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["frames"] == {name: len(of) for name, of in entries.items()}
    ids = [entry["id"] for of in entries.values() for entry in of]
    assert len(set(ids)) == len(ids)
    assert 8 <= len(entries["held_out"]) <= 28  # of 60 frames 18 are expected; some lose all of their questions
    assert sorted(p.stem for p in (tmp_path / "images").iterdir()) == sorted(ids)
    counts: dict[str, dict[str, Counter[str]]] = {name: defaultdict(Counter) for name in entries}
    for name, of in entries.items():
        for entry in of:
            color, index, column = (int(x) for x in np.asarray(Image.open(tmp_path / entry["image"]))[0, 0])
            scene = list(SCENES)[index]
            assert entry["image"] == f"images/{entry['id']}.png"
            assert index == int(entry["id"]) % 4  # scenes take turns
            turns = entry["conversations"]
            assert [turn["from"] for turn in turns] == ["human", "gpt"] * len(entry["kinds"])
            assert 1 <= len(entry["kinds"]) <= 3
            for k, kind in enumerate(entry["kinds"]):
                question, answer = turns[2 * k]["value"], turns[2 * k + 1]["value"]
                assert question.startswith("<image>\n") == (k == 0)
                assert question.count("<image>") == (k == 0)
                assert question.removeprefix("<image>\n") in list_phrasings(kind)
                counts[name][kind][answer] += 1
                if kind.startswith("color"):
                    assert answer == list(COLORS)[color]
                if kind.startswith("point"):
                    assert answer == f"{round(100 * column / 32)} 50"
                if kind.startswith("what"):
                    assert scene in answer
    assert card["answers"] == counts
    seen = Counter(kind.split()[0] for entry in entries["train"] for kind in entry["kinds"])
    assert min(seen["color"], seen["point"], seen["what"]) > 3


def list_phrasings(kind: str) -> list[str]:
    """Return the questions of a kind: "point box" has "Point to the box." and others."""
    name, *subjects = kind.split()
    scenes = [[scene] for scene in SCENES] if name == "exists" else [subjects]
    return [phrase.format(*subject) for phrase in PHRASES[name] for subject in scenes]


@pytest.mark.usefixtures("simulated")
def test_frames_depend_on_the_seed_and_their_number_alone(tmp_path: Path) -> None:
    config = LabelConfig(frames=24, size=32, held_out=0.2)
    pictures = {}
    for name, other in {"a": config, "seed": replace(config, seed=1), "more": replace(config, frames=30)}.items():
        label_frames(other, tmp_path / name)
        pictures[name] = {p.stem: p.read_bytes() for p in (tmp_path / name / "images").iterdir()}
    assert len(set(pictures["a"].values())) > 18  # of 24
    both = pictures["a"].keys() & pictures["seed"].keys()
    assert sum(pictures["a"][i] == pictures["seed"][i] for i in both) < 4
    both = pictures["a"].keys() & pictures["more"].keys()
    assert len(both) > 15
    assert all(pictures["a"][i] == pictures["more"][i] for i in both)


@pytest.mark.usefixtures("simulated")
def test_interrupted_data_is_the_same_as_data_made_at_once(tmp_path: Path) -> None:
    config = LabelConfig(frames=16, size=32, processes=1, held_out=0.25)
    label_frames(config, tmp_path / "whole")
    calls = iter(range(100))
    with pytest.raises(Interrupted, match="of 16 frames; run the same command to resume"):
        label_frames(config, tmp_path / "cut", stop=lambda: next(calls) > 3)
    assert not (tmp_path / "cut" / "card.json").exists()
    label_frames(replace(config, processes=2), tmp_path / "cut")
    names = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(tmp_path / "cut") for p in (tmp_path / "cut").rglob("*") if p.is_file())
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    with pytest.raises(ValueError, match="made with other settings \\(seed: 0 then, 1 now\\)"):
        label_frames(replace(config, seed=1), tmp_path / "whole")


@pytest.mark.simulator("metaworld")
def test_data_of_meta_world_can_be_read(tmp_path: Path) -> None:
    label_frames(LabelConfig(frames=10, size=64, processes=1, held_out=0.25), tmp_path)
    data = open_vqa(tmp_path / "train.json")
    card = json.loads((tmp_path / "card.json").read_text())
    assert len(data) == card["frames"]["train"] > 2
    assert sum(sum(a.values()) for a in card["answers"]["train"].values()) == sum(len(e.turns) for e in data)
    assert data.missing() == []
    assert data[0].images[0].shape == (64, 64, 3)


def test_an_example_page_is_written_beside_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    turn = [{"from": "human", "value": "<image>\nPoint to the <b>."}, {"from": "gpt", "value": "27 58"}]
    (tmp_path / "train.json").write_text(json.dumps([{"image": "a.png", "conversations": turn}]))
    assert main(["vqa", "--look", str(tmp_path)]) == 0
    page = (tmp_path / "examples.html").read_text()
    assert "left:27%;top:58%" in page
    assert "Point to the &lt;b&gt;." in page
    assert str(tmp_path / "examples.html") in capsys.readouterr().out
    assert look(tmp_path / "train.json") == tmp_path / "train-examples.html"
