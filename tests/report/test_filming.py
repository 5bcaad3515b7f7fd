from __future__ import annotations

import json
import logging
from dataclasses import replace

import av
import numpy as np
import pytest
from toy_opened import opened

from anyvla.evaluation.conditions import parse
from anyvla.evaluation.protocol import EpisodePlan, Stage
from anyvla.evaluation.results import EpisodeResult
from anyvla.evaluation.rollout import Rollout
from anyvla.evaluation.tracks import write_track
from anyvla.interrupted import Interrupted
from anyvla.report.filming import choose, film

OPPOSITE = {"left": "right", "right": "left"}


def episode(condition, task, seed, reached):
    told = task if condition == "told" else OPPOSITE[task]
    return EpisodeResult(
        benchmark="toy/line", condition=condition, task=task, told=told, instruction=f"go {told}", seed=seed,
        outcome="success" if reached == task else "failure", reached=reached, steps=7,
        latency_ms=1.0, checkpoint="c0ffee",
    )  # fmt: skip


def keys(results):
    return [(r.condition, r.task, r.seed) for r in results]


def test_the_choice_prefers_successes_whose_twin_obeyed():
    results = [
        episode("told", "left", 0, "left"),
        episode("told", "left", 1, "left"),
        episode("told", "right", 0, "right"),
        episode("told", "up", 0, "up"),
        episode("swapped", "left", 0, "left"),  # did not listen
        episode("swapped", "left", 1, "right"),
        episode("swapped", "right", 0, None),
    ]
    chosen = keys(choose(results, failures=6))
    assert chosen[:4] == [("told", "left", 1), ("swapped", "left", 1), ("told", "right", 0), ("told", "up", 0)]
    assert chosen[4:] == [("swapped", "left", 0), ("swapped", "right", 0)]  # what missed the told goal
    assert keys(choose(results, failures=1)) == chosen[:5]
    assert keys(choose(results, failures=0)) == chosen[:4]


def test_one_pair_per_scene_is_filmed():
    told = [episode("told", task, 0, task) for task in ("left", "right")]
    swapped = [episode("swapped", task, 0, OPPOSITE[task]) for task in ("left", "right")]
    chosen = keys(choose(told + swapped, failures=6))
    assert chosen == [("told", "left", 0), ("swapped", "left", 0), ("told", "right", 0)]


@pytest.fixture
def played(tmp_path):
    """Two episodes of the toy with their actions on disk, as the runner leaves them."""
    results = [episode("told", "right", 0, "right"), episode("swapped", "right", 0, "left")]
    for result, sign in zip(results, (1, -1), strict=True):
        stage = Stage(result.task, result.told, result.instruction)
        rollout = Rollout(
            EpisodePlan(parse(result.condition), result.task, result.seed, (stage,)), said=[(0, result.instruction)]
        )
        rollout.actions.append(np.tile(np.array([sign, 0, 0, 0], np.float32), (8, 1)))
        write_track(tmp_path, rollout, 7)
    return tmp_path, results


def test_episodes_are_played_again_and_filmed(played, caplog):
    folder, results = played
    progress = []
    index = film(results, opened(), folder, progress=lambda done, total: progress.append((done, total)))
    assert progress == [(0, 2), (1, 2), (2, 2)]
    assert "did not end as recorded" not in caplog.text
    entries = json.loads(index.read_text())
    assert [e["file"] for e in entries] == ["told-right-0.mp4", "swapped-right-0.mp4"]
    assert entries[1] | {"told": "left", "reached": "left", "success": False} == entries[1]
    with av.open(str(index.parent / "told-right-0.mp4")) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert len(frames) == 7 + 1 + 14  # seven steps, then the end, held for 0.7 s of 20 frames
    mark = frames[-1][:46, 200:]
    assert (mark[..., 1].astype(int) - mark[..., 0] > 60).sum() > 50  # green, at the end only
    assert (frames[0][:46, 200:, 1].astype(int) - frames[0][:46, 200:, 0] > 60).sum() == 0


def test_what_is_filmed_already_is_left_alone(played):
    folder, results = played
    index = film(results, opened(), folder)
    before = {p: p.stat().st_mtime_ns for p in index.parent.glob("*.mp4")}
    film(results, opened(), folder)
    assert {p: p.stat().st_mtime_ns for p in index.parent.glob("*.mp4")} == before


def test_a_film_that_ends_otherwise_is_reported(played, caplog):
    folder, results = played
    with caplog.at_level(logging.WARNING):
        film([replace(results[0], reached="left")], opened(), folder)
    assert "told-right-0.mp4 did not end as recorded" in caplog.text


def test_stopping_keeps_what_is_filmed(played):
    folder, results = played
    with pytest.raises(Interrupted, match="the same command goes on there"):
        film(results, opened(), folder, stop=lambda: True)
    assert not (folder / "videos/index.json").exists()
    assert not list((folder / "videos").glob("*.partial"))
    film(results, opened(), folder)
    assert len(list((folder / "videos").glob("*.mp4"))) == 2


def test_the_chunks_are_drawn_under_the_picture(tmp_path):
    result = episode("told", "right", 0, "right")
    stage = Stage(result.task, result.told, result.instruction)
    rollout = Rollout(EpisodePlan(parse("told"), "right", 0, (stage,)), said=[(0, result.instruction)])
    for mark in (0, 4):  # a new chunk after four of six actions
        rollout.actions.append(np.tile(np.array([1, 0, 0, 0], np.float32), (4, 1)))
        rollout.marks.append(mark)
        rollout.chunks.append(np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 4))
    write_track(tmp_path, rollout, 7)
    index = film([result], opened(), tmp_path)
    with av.open(str(index.parent / "told-right-0.mp4")) as container:
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    plots = [f[-48:].astype(int) for f in frames[:7]]
    bright = [(np.abs(p - [110, 163, 255]).sum(-1) < 120).sum() for p in plots]  # the first dimension's colour
    assert bright[0] > bright[3] > 0  # what was executed fades
    assert bright[4] > bright[3]  # and the policy looked again
