from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import av
import numpy as np
import pytest

from anyvla.evaluation.conditions import parse
from anyvla.evaluation.protocol import EpisodePlan, Subtask
from anyvla.evaluation.results import EpisodeResult
from anyvla.evaluation.rollout import Rollout
from anyvla.evaluation.tracks import write_track
from anyvla.interrupted import Interrupted
from anyvla.report import filming
from anyvla.report.filming import choose_episodes, film
from tests.evaluation.toy_opened import opened

OPPOSITE = {"left": "right", "right": "left"}
STEPS = 7
T, R = TypeVar("T"), TypeVar("R")


def episode(condition, task, seed, reached):
    instructed = task if condition == "original" else OPPOSITE[task]
    return EpisodeResult(
        benchmark="toy/line", condition=condition, task=task, instructed=instructed,
        instruction=f"go {instructed}", seed=seed, outcome="success" if reached == task else "failure",
        reached=reached, steps=7, latency_ms=1.0, checkpoint="c0ffee",
    )  # fmt: skip


def keys(results):
    return [(r.condition, r.task, r.seed) for r in results]


def test_successes_with_an_obedient_twin_are_preferred():
    results = [
        episode("original", "left", 0, "left"),
        episode("original", "left", 1, "left"),
        episode("original", "right", 0, "right"),
        episode("original", "up", 0, "up"),
        episode("swapped", "left", 0, "left"),  # ignored the instruction
        episode("swapped", "left", 1, "right"),
        episode("swapped", "right", 0, None),
    ]
    chosen = keys(choose_episodes(results, failures=6))
    assert chosen[:4] == [
        ("original", "left", 1),
        ("swapped", "left", 1),
        ("original", "right", 0),
        ("original", "up", 0),
    ]
    assert chosen[4:] == [("swapped", "left", 0), ("swapped", "right", 0)]  # they missed the instructed goal
    assert keys(choose_episodes(results, failures=1)) == chosen[:5]
    assert keys(choose_episodes(results, failures=0)) == chosen[:4]


def test_one_pair_per_scene_is_filmed():
    original = [episode("original", task, 0, task) for task in ("left", "right")]
    swapped = [episode("swapped", task, 0, OPPOSITE[task]) for task in ("left", "right")]
    chosen = keys(choose_episodes(original + swapped, failures=6))
    assert chosen == [("original", "left", 0), ("swapped", "left", 0), ("original", "right", 0)]


def test_other_conditions_get_one_video_and_unrelated_instructions_none():
    def other(condition, seed, outcome, reached=None):
        return replace(episode("original", "left", seed, reached), condition=condition, outcome=outcome)

    results = [
        episode("original", "left", 0, "left"),
        other("unrelated", 0, "failure"),
        other("empty", 0, "error"),
        other("empty", 1, "failure"),
        other("empty", 2, "success", "left"),
        other("original+light=dim", 0, "success", "left"),
        other("original+light=dim", 1, "invalid_action"),
        other("original+light=dim", 2, "failure"),
    ]
    chosen = keys(choose_episodes(results, failures=9))
    assert chosen[:3] == [("original", "left", 0), ("empty", "left", 1), ("original+light=dim", "left", 0)]
    assert chosen[3:] == [("original+light=dim", "left", 2)]


class Here:
    """A pool that runs its tasks in this process."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def run(
        self, work: Callable[[T], R], todo: deque[T], ahead: int, stop: Callable[[], bool]
    ) -> Iterator[tuple[T, R]]:
        while todo and not stop():
            task = todo.popleft()
            yield task, work(task)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(filming, "WorkerPool", Here)


def recorded(folder, result, action, instructions=None, stages=1, steps=STEPS):
    """Write the track of an episode of equal actions, in chunks of eight."""
    plan = [Subtask(task, task, None) for task in result.extra.get("chain", [result.task])]
    rollout = Rollout(EpisodePlan(parse(result.condition), result.task, result.seed, tuple(plan)))
    rollout.instructions = instructions or [(0, result.instruction)]
    rollout.actions.append(np.tile(np.array(action, np.float32), (8, 1)))
    write_track(folder, rollout, steps)
    return rollout


@pytest.fixture
def played(tmp_path):
    """Two episodes of the toy with their actions on disk, as the runner leaves them."""
    results = [episode("original", "right", 0, "right"), episode("swapped", "right", 0, "left")]
    for result, sign in zip(results, (1, -1), strict=True):
        recorded(tmp_path, result, [sign, 0, 0, 0])
    return tmp_path, results


def frames_of(path):
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
        return [f.to_ndarray(format="rgb24") for f in container.decode(video=0)], rate


def test_episodes_are_replayed_and_filmed(played, caplog):
    """The worker processes are real here."""
    folder, results = played
    progress = []
    index = film(results, opened(), folder, progress=lambda done, total: progress.append((done, total)))
    assert progress == [(0, 2), (1, 2), (2, 2)]
    assert "did not end as recorded" not in caplog.text
    entries = json.loads(index.read_text())
    assert entries == [
        {"file": f"{c}-right-0.mp4", "task": "right", "instructed": instructed, "condition": c,
         "instruction": f"go {instructed}", "success": c == "original", "reached": instructed,
         "seed": 0, "steps": STEPS}
        for c, instructed in (("original", "right"), ("swapped", "left"))
    ]  # fmt: skip
    for name in ("original-right-0.mp4", "swapped-right-0.mp4"):
        frames, rate = frames_of(index.parent / name)
        assert rate == 10  # the robot's
        assert len(frames) == STEPS + 1 + 14  # seven steps, then the end, held for 0.7 s of 20 frames
        mark = frames[-1][:46, 200:]
        assert (
            mark[..., 1].astype(int) - mark[..., 0] > 60
        ).sum() > 50  # green at the end only: the instruction was followed
        assert (frames[0][:46, 200:, 1].astype(int) - frames[0][:46, 200:, 0] > 60).sum() == 0
    # Existing videos are kept.
    before = {p: p.stat().st_mtime_ns for p in index.parent.glob("*.mp4")}
    film(results, opened(), folder)
    assert {p: p.stat().st_mtime_ns for p in index.parent.glob("*.mp4")} == before


@pytest.mark.usefixtures("here")
def test_a_replay_that_ends_differently_is_reported(played, caplog):
    folder, results = played
    with caplog.at_level(logging.WARNING):
        film([replace(results[0], reached="left"), results[1]], opened(), folder)
    assert "original-right-0.mp4 did not end as recorded" in caplog.text
    assert "swapped-right-0.mp4" not in caplog.text


@pytest.mark.usefixtures("here")
def test_stopping_keeps_finished_videos(played):
    folder, results = played
    with pytest.raises(Interrupted, match="run the same command to resume"):
        film(results, opened(), folder, stop=lambda: True)
    assert not (folder / "videos/index.json").exists()
    assert not list((folder / "videos").glob("*.partial"))
    film(results, opened(), folder)
    assert len(list((folder / "videos").glob("*.mp4"))) == 2


@pytest.mark.usefixtures("here")
def test_chunks_are_drawn_below_the_frame(tmp_path):
    result = episode("original", "right", 0, "right")
    rollout = recorded(tmp_path, result, [1, 0, 0, 0])
    for mark in (0, 4):  # a new chunk after four of six actions
        rollout.predicted_at.append(mark)
        rollout.chunks.append(np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 4))
    write_track(tmp_path, rollout, STEPS)
    index = film([result], opened(), tmp_path)
    frames, _ = frames_of(index.parent / "original-right-0.mp4")
    plots = [f[-48:].astype(int) for f in frames[:7]]
    bright = [(np.abs(p - [110, 163, 255]).sum(-1) < 120).sum() for p in plots]  # the first dimension's color
    assert bright[0] > bright[3] > 0  # executed actions are faded
    assert bright[4] > bright[3]  # and the policy predicted again


@dataclass
class Watched:
    """A simulator that records its calls; its frames show the number of executed actions."""

    hz: float = 10
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    steps: int = 0

    def reset(self, task: str, seed: int, factors: dict[str, str]) -> None:
        self.calls.append(("reset", task, seed, factors))

    def begin(self, task: str) -> None:
        self.calls.append(("begin", task, self.steps))

    def disturb(self, kind: str, seed: int) -> None:
        self.calls.append(("disturb", kind, seed, self.steps))

    def step(self, action: np.ndarray) -> dict[str, bool]:
        self.steps += 1
        self.calls.append(("step", action.tolist()))
        return {"left": False, "up": self.steps >= 6}

    def frame(self, height: int, width: int) -> np.ndarray:
        return np.full((height, width, 3), self.steps, np.uint8)


@pytest.fixture
def watch(monkeypatch, tmp_path):
    """Return a function that films an episode and returns the calls, the overlays, the video and `as_recorded`."""
    shown: list[dict[str, Any]] = []
    videos: list[tuple[Path, list[int], float]] = []

    def overlay(frame: np.ndarray, text: str, **keys: Any) -> np.ndarray:
        chunk = keys.pop("chunk")
        limits = keys.pop("limits")
        shown.append(
            {"at": int(frame[0, 0, 0]), "size": frame.shape, "text": text, **keys}
            | {"chunk": None if chunk is None else chunk[:, 0].tolist(), "limits": np.asarray(limits).tolist()}
        )
        return frame

    def write_video(path: Path, frames: Any, fps: float) -> None:
        videos.append((path, [int(f[0, 0, 0]) for f in frames], fps))

    def run(result: EpisodeResult, rollout: Rollout, here: int, hz: float = 10) -> Any:
        simulator = Watched(hz)
        benchmark = SimpleNamespace(
            embodiment=lambda suite: {"control_hz": hz}, make=lambda suite: simulator, close=lambda: None
        )
        monkeypatch.setattr(filming, "connect", lambda spec: benchmark)
        monkeypatch.setattr(filming, "draw_overlay", overlay)
        monkeypatch.setattr(filming, "write_video", write_video)
        write_track(tmp_path, rollout, here)
        ended = filming._film_one(opened().spec, tmp_path, result)
        return simulator.calls, shown, videos[-1], ended

    return run


def of(result, actions, **fields):
    """Return the rollout of a result; actions are given by their first dimension."""
    plan = [Subtask(task, task, None) for task in result.extra.get("chain", [result.task])]
    rollout = Rollout(EpisodePlan(parse(result.condition), result.task, result.seed, tuple(plan)), **fields)
    rollout.actions.append(np.array([[a, 0] for a in actions], np.float32))
    rollout.instructions = rollout.instructions or [(0, result.instruction)]
    return rollout


def test_a_video_replays_start_and_actions_at_the_robots_rate(watch):
    result = replace(episode("original", "left", 41, "up"), condition="original+camera=far+light=dim")
    calls, shown, (_, frames, fps), ended = watch(result, of(result, range(1, 9)), 6)
    assert calls == [
        ("reset", "left", 41, {"light": "dim", "camera": "far"}),
        *(("step", [float(a), 0.0]) for a in range(1, 7)),  # the last two were sent and not executed
    ]
    assert frames == [*range(6), *[6] * 15]
    assert (fps, ended) == (10, True)
    assert [(s["step"], s["at"], s["success"]) for s in shown] == [*((n, n, None) for n in range(6)), (6, 6, False)]
    assert {(s["size"], s["task"], s["text"]) for s in shown} == {
        ((240, 240, 3), "left, original+camera=far+light=dim", "go left")
    }


def test_a_fast_robot_is_filmed_at_about_twenty_frames_a_second(watch):
    result = episode("original", "left", 0, "up")
    _, _, (_, frames, fps), _ = watch(result, of(result, range(8)), 7, hz=60)
    assert frames == [0, 3, 6, *[7] * 15]
    assert fps == 20
    _, _, (_, frames, fps), ended = watch(replace(result, reached=None), of(result, range(8)), 5, hz=40)
    assert (frames[:3], fps, ended) == ([0, 2, 4], 20, True)


def test_the_disturbance_is_repeated_at_its_action(watch):
    result = replace(episode("original", "left", 9, None), condition="original+push@2", extra={"disturbed_at": 4})
    calls, *_ = watch(result, of(result, range(8)), 7)
    assert [call for call in calls if call[0] == "disturb"] == [("disturb", "push", 9, 4)]
    result = replace(result, extra={})  # there was nothing to disturb
    calls, *_ = watch(result, of(result, range(8)), 7)
    assert not [call for call in calls if call[0] == "disturb"]


def test_each_task_of_a_chain_begins_at_its_action_and_is_named(watch):
    result = replace(
        episode("original", "chain", 3, "up"), instructed="chain", extra={"chain": ["left", "up", "right"]}
    )
    before = [np.zeros((2, 2), np.float32), np.zeros((1, 2), np.float32)]
    given = [(0, "go left"), (2, "rise"), (3, "go right")]
    calls, shown, *_ = watch(result, of(result, range(4), finished=before, instructions=given), 3)
    assert [call for call in calls if call[0] in ("reset", "begin")] == [
        ("reset", "left", 3, {}), ("begin", "up", 2), ("begin", "right", 3)
    ]  # fmt: skip
    assert [(s["step"], s["task"], s["text"]) for s in shown] == [
        (0, "left", "go left"), (1, "left", "go left"), (2, "up", "rise"), (3, "right", "go right"),
        (4, "right", "go right"), (5, "right", "go right"), (6, "right", "go right"),
    ]  # fmt: skip


@pytest.mark.parametrize(("delay", "expected"), [(0, "AAABBB"), (2, "..AAAB")])
def test_the_executed_chunk_is_shown(watch, delay, expected):
    result = episode("original", "left", 0, None)
    if delay:
        result = replace(result, condition=f"original+delay={delay}")
    chunks = [np.array([[v, -v]] * 4, np.float32) for v in (1, 3)]
    _, shown, *_ = watch(result, of(result, range(6), chunks=chunks, predicted_at=[0, 3]), 5)
    names = {(1.0,) * 4: "A", (3.0,) * 4: "B"}
    assert "".join("." if s["chunk"] is None else names[tuple(s["chunk"])] for s in shown) == expected
    if not delay:
        assert [s["executed"] for s in shown] == [0, 1, 2, 0, 1, 2]
    assert shown[0]["limits"] == [[1, -3], [3, -1]]


def test_an_episode_that_followed_its_instruction_ends_with_a_tick(watch):
    """With another task's instruction, obedience differs from success."""
    for condition, reached, done in (
        ("original", "left", True), ("original", "right", False),
        ("swapped", "right", True), ("swapped", "left", False),
    ):  # fmt: skip
        result = episode(condition, "left", 0, reached)
        _, shown, *_ = watch(result, of(result, range(3)), 2)
        assert shown[-1]["success"] is done
