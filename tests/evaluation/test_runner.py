from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from anyvla.config import ConfigError
from anyvla.evaluation import runner
from anyvla.evaluation.conditions import parse
from anyvla.evaluation.execution import Execution
from anyvla.evaluation.protocol import EpisodePlan, EvaluationConfig, Subtask
from anyvla.evaluation.results import read_results
from anyvla.evaluation.runner import evaluate
from anyvla.evaluation.suites import open_suite
from anyvla.evaluation.tracks import read_track
from anyvla.policy import VLA
from anyvla.robot.shared_layout import Robot
from anyvla_sim.workers.pool import WorkerLimits
from tests import small
from tests.evaluation.playing import PLANS, Obedient, make_plans, play
from tests.evaluation.toy_opened import EMBODIMENT, opened
from tests.evaluation.toy_world import HORIZON, SUITE, Toy


def test_results_and_actions(obedient: Obedient, tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    results = play(obedient, PLANS, tmp_path, progress=lambda *p: progress.append(p))
    assert progress == [(n, len(PLANS)) for n in range(len(PLANS) + 1)]
    assert sorted(read_results(tmp_path / "results.jsonl"), key=str) == sorted(results, key=str)
    assert max(obedient.batches) > 1  # slots are batched
    # Each episode has a session with its instruction and seed, for the robot of the simulator.
    asked = [(p.subtasks[0].instruction, p.seed, "cart") for p in PLANS]
    assert sorted(obedient.started) == sorted(asked)
    assert {seed for _, seed, _ in asked} == {0, 1}
    for planned, result in zip(PLANS, results, strict=True):
        assert (result.condition, result.task, result.instructed, result.seed) == (
            str(planned.condition),
            planned.task,
            planned.subtasks[0].instructed,
            planned.seed,
        )
        assert (result.benchmark, result.checkpoint) == ("toy/line", "c0ffee")
        assert result.instruction == planned.subtasks[0].instruction
        assert dict(result.protocol) == {
            "harness": 1, "horizon": HORIZON, "judged": "reached", "tasks": 3, "groups": {}, "episodes": 20,
            "first_seed": 0, "control_hz": 10, "settings": {"render": "fast"}, "simulator": {"toy": "1"},
        }  # fmt: skip
        assert dict(result.policy) == {"execute": 2, "ensemble": "none", "chunk": 4}
        assert {"anyvla", "torch", "transformers", "python", "machine", "device"} <= set(result.versions)
        assert result.latency_ms > 0
        possible = SUITE.task(result.instructed).scene == SUITE.task(result.task).scene
        assert result.reached == (result.instructed if possible else None)
        assert result.success == (result.condition == "original") == (result.completed == 1)
        assert result.steps in ((5, 6) if possible else (HORIZON,))
        assert result.extra == {"grasps": 0}
        track = read_track(tmp_path, planned.key)
        assert track.actions.shape == (result.steps, 4)
        assert track.actions.dtype == np.float32
        assert track.chunks.shape[1:] == (4, 4)
        assert track.predicted_at.tolist() == list(range(0, result.steps, 2))


def test_the_recorded_actions_play_the_same_episode(policy: VLA, tmp_path: Path) -> None:
    results = play(policy, PLANS[:3], tmp_path)
    for planned, result in zip(PLANS, results, strict=False):
        cart = opened().benchmark.make("line")
        cart.reset(planned.task, planned.seed, {})
        goals: Any = {}
        for action in read_track(tmp_path, planned.key).actions:
            goals = cart.step(action)
        assert next((t for t, holds in goals.items() if holds), None) == result.reached


def test_chains(obedient: Obedient, tmp_path: Path) -> None:
    plans = make_plans(suite="chains", episodes=2)
    results = play(obedient, plans, tmp_path, opened=opened("chains"))
    assert [(r.task, r.completed, r.length, r.outcome, r.reached) for r in results] == [
        ("chain", 2, 2, "success", "up"),
        ("chain", 3, 3, "success", "up"),
    ]
    assert results[1].extra["chain"] == ["right", "left", "up"]
    track = read_track(tmp_path, plans[1].key)
    assert len(track.actions) == results[1].steps
    cart = opened("chains").benchmark.make("chains")
    cart.reset("right", 1, {})
    stages = dict(zip(track.subtask_starts.tolist(), results[1].extra["chain"], strict=True))
    ends = []
    for number, action in enumerate(track.actions):
        if number in stages:
            cart.begin(stages[number])  # type: ignore[attr-defined]
        if any(cart.step(action).values()):
            ends.append(number + 1)
    assert ends == [*track.subtask_starts[1:].tolist(), results[1].steps]
    assert track.instructed_at.tolist() == track.subtask_starts.tolist()
    edges = [
        *track.subtask_starts.tolist(),
        results[1].steps,
    ]  # a chunk at the beginning of each subtask, and after every two actions
    assert track.predicted_at.tolist() == [mark for a, b in itertools.pairwise(edges) for mark in range(a, b, 2)]
    assert track.instructions == tuple(stage.instruction or stage.task for stage in plans[1].subtasks)
    # A task that is not solved in time ends the chain.
    late = play(obedient, plans, tmp_path / "late", opened=opened("chains"), config={"horizon": 5})
    assert all(r.completed < r.length and r.outcome == "failure" for r in late)


def test_cameras_of_two_sizes_need_a_view(obedient: Obedient, tmp_path: Path) -> None:
    class Uneven(Toy):
        def protocol(self, suite: str) -> Mapping[str, Any]:
            return {"cameras": {"corner": [200, 200], "wrist": [84, 84]}}

    uneven = dataclasses.replace(opened(), benchmark=Uneven())
    with pytest.raises(ConfigError, match=r"toy/line have different sizes \(corner 200x200, wrist 84x84\), and the po"):
        play(obedient, make_plans(episodes=1), tmp_path, opened=uneven)
    assert not (tmp_path / "results.jsonl").exists()


def test_an_environment_may_give_the_instruction(obedient: Obedient, tmp_path: Path) -> None:
    (result,) = play(obedient, make_plans(suite="spoken", episodes=1), tmp_path, opened=opened("spoken"))
    assert (result.instruction, result.success) == ("go left, 0", True)
    changed = play(
        obedient, make_plans(suite="spoken", episodes=1, first_seed=3), tmp_path / "on", opened=opened("spoken")
    )
    assert (changed[0].instruction, changed[0].success) == ("go left, 3", False)
    track = read_track(tmp_path / "on", changed[0].key)
    assert {-1, 1} <= set(np.sign(track.actions[:, 0]))  # in both directions, as instructed
    assert track.subtask_starts.tolist() == [0]
    assert len(track.instructions) == len(track.instructed_at) > 2
    for number, (words, way) in enumerate(zip(track.instructions, track.instructed_at.tolist(), strict=True)):
        assert words == f"go {('left', 'right')[number % 2]}, 3"
        assert way == len(track.actions) or np.sign(track.actions[way, 0]) == (-1, 1)[number % 2]
    assert obedient.started[-len(track.instructions) :] == [(words, 3, "cart") for words in track.instructions]


def test_a_goal_that_must_hold_to_the_end(obedient: Obedient, tmp_path: Path) -> None:
    results = play(obedient, make_plans(suite="kept", episodes=1), tmp_path, opened=opened("kept"))
    assert {(r.steps, r.outcome) for r in results} == {(HORIZON, "success")}


def test_factors_and_disturbances(obedient: Obedient, tmp_path: Path) -> None:
    heavy = play(obedient, make_plans("original+load=heavy", episodes=1), tmp_path / "heavy")
    assert all(r.steps in (9, 10, 11) for r in heavy)  # half the pace
    pushed = play(obedient, make_plans("original+push@3", episodes=1), tmp_path / "pushed")
    for r in pushed:  # at the first picture from action 3 on, it is put back to the start
        assert r.extra["disturbed_at"] == 4
        assert r.steps == 4 + 6
    early = play(obedient, make_plans("original+push@0", episodes=1), tmp_path / "early")
    assert {r.extra["disturbed_at"] for r in early} == {2}  # there was nothing to disturb before
    # The seed of the episode is the disturbance's too: an odd one puts the cart to 0.25; an action moves it by 0.2.
    odd = play(obedient, make_plans("original+push@3", episodes=1, first_seed=1), tmp_path / "odd")
    assert [r.steps for r in odd] == [4 + 7, 4 + 4, 4 + 4]


def test_delay_and_ensemble(obedient: Obedient, tmp_path: Path) -> None:
    prompt, late, averaged = (
        play(obedient, make_plans(c, episodes=1), tmp_path / f, config=k)
        for c, f, k in (
            ("original", "a", {}),
            ("original+delay=2", "b", {}),
            ("original", "c", {"ensemble": "temporal"}),
        )
    )
    assert [b.steps - a.steps for a, b in zip(prompt, late, strict=True)] == [2, 2, 2]  # holds still at first
    assert [a.steps for a in prompt] == [c.steps for c in averaged]  # averaging equal chunks changes nothing
    assert averaged[0].policy["ensemble"] == "temporal"
    with pytest.raises(ConfigError, match="--execute 9: the policy predicts chunks of 4 actions"):
        play(obedient, make_plans(episodes=1), tmp_path / "d", config={"execute": 9})


def test_the_protocol_has_the_rate_of_the_robot() -> None:
    faster = dataclasses.replace(opened(), embodiment=dataclasses.replace(EMBODIMENT, control_hz=25.0))
    assert runner._describe_protocol(faster, EvaluationConfig())["control_hz"] == 25


@pytest.mark.parametrize(
    ("condition", "config", "lasting"),
    [
        ("original", {"execute": 3}, 3),
        ("original+delay=1", {"execute": 2}, 3),
        ("original", {"execute": 1, "ensemble": "temporal"}, 4),
    ],
)
def test_chunks_that_outlast_what_a_suite_allows_are_refused(
    obedient: Obedient, tmp_path: Path, condition: str, config: dict[str, Any], lasting: int
) -> None:
    """Chunks of 4 actions on a suite that allows 2: an older observation would act for longer."""
    plans = make_plans(condition, "cued", episodes=1)
    with pytest.raises(ConfigError, match=f"acts for {lasting} actions on one observation.*at most --execute 2"):
        play(obedient, plans, tmp_path, opened=opened("cued"), config=config)
    assert not (tmp_path / "results.jsonl").exists()


def test_chunks_are_executed_as_requested(obedient: Obedient, tmp_path: Path, monkeypatch: Any) -> None:
    given: list[tuple[Any, ...]] = []

    def execution(*arguments: Any) -> Execution:
        given.append(arguments)
        return Execution(*arguments)

    monkeypatch.setattr(runner, "Execution", execution)
    one = {"tasks": ("left",), "episodes": 1}
    play(obedient, make_plans(**one), tmp_path / "a")
    play(obedient, make_plans("original+delay=2", **one), tmp_path / "b", config={"ensemble": "temporal", "execute": 3})
    assert given == [(EMBODIMENT, 2, 0, False), (EMBODIMENT, 3, 2, True)]


def test_a_task_may_have_its_own_horizon(obedient: Obedient, tmp_path: Path) -> None:
    results = play(obedient, make_plans(suite="hurried", episodes=1), tmp_path, opened=opened("hurried"))
    assert [(r.task, r.steps, r.success) for r in results] == [("left", 3, False), ("right", 5, True)]
    assert len(read_track(tmp_path, "original-left-0").actions) == 3  # of the second chunk only one
    longer = play(
        obedient, make_plans(suite="hurried", episodes=1), tmp_path / "longer", opened=opened("hurried"),
        config={"horizon": 7, "execute": 4},
    )  # fmt: skip
    assert [(r.steps, r.success) for r in longer] == [(6, True), (5, True)]


def test_clipped_actions_are_counted(obedient: Obedient, tmp_path: Path) -> None:
    obedient.pace = 1.5
    results = play(obedient, make_plans(episodes=1), tmp_path)
    assert [r.clipped for r in results] == [r.steps for r in results]


def test_the_time_of_a_batch_is_shared_among_its_episodes(
    obedient: Obedient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch takes half a second on a clock that advances by half a second per reading."""
    clock = itertools.count()
    monkeypatch.setattr(runner, "time", SimpleNamespace(perf_counter=lambda: next(clock) / 2))
    results = play(obedient, make_plans(episodes=2), tmp_path)
    taken = sum(r.latency_ms * len(read_track(tmp_path, r.key).predicted_at) for r in results)
    assert taken == pytest.approx(500 * len(obedient.batches))


def test_limits_and_counts_reach_the_simulators(obedient: Obedient, tmp_path: Path, monkeypatch: Any) -> None:
    given: list[Any] = []

    def pool(*arguments: Any) -> Any:
        given.append(arguments)
        raise InterruptedError

    monkeypatch.setattr(runner, "EnvironmentPool", pool)
    with pytest.raises(InterruptedError):
        play(obedient, PLANS, tmp_path, processes=2, slots=5, config={"hang_s": 7.5, "memory_gb": 0.5})
    assert given == [(opened().spec, "line", 2, 5, WorkerLimits(hang_s=7.5, memory_mb=500))]
    with pytest.raises(InterruptedError):
        play(obedient, PLANS[:3], tmp_path, processes=8)
    assert given[1][2:] == (3, 3, WorkerLimits(hang_s=180, memory_mb=8000))  # not more processes than episodes


def test_the_batch_makes_no_difference(policy: VLA, tmp_path: Path) -> None:
    many = play(policy, PLANS, tmp_path / "many", processes=2, slots=3)
    alone = play(policy, PLANS[::-1], tmp_path / "alone", processes=1, slots=1)
    for left, right in zip(many, alone[::-1], strict=True):
        assert (left.task, left.seed, left.reached, left.steps) == (right.task, right.seed, right.reached, right.steps)
    for planned in PLANS:
        a, b = (read_track(tmp_path / f, planned.key).actions for f in ("many", "alone"))
        assert np.abs(a - b).max() < 1e-4


@pytest.mark.simulator("metaworld")
def test_meta_world(tmp_path: Path) -> None:
    from anyvla.robot.normalize import Statistics

    sawyer = open_suite("metaworld/half-open", {"render": "fast"})
    action = small.statistics().action
    torch.manual_seed(0)
    vla = VLA(small.model(), [Robot(sawyer.embodiment, Statistics(action, action, "f" * 64))]).eval()
    plans = [
        EpisodePlan(parse("original"), "drawer-open", 0, (Subtask("drawer-open", "drawer-open", "open the drawer"),)),
        EpisodePlan(parse("swapped"), "drawer-open", 0, (Subtask("drawer-open", "drawer-close", "close the drawer"),)),
        EpisodePlan(parse("original+light=dim"), "door-open", 3, (Subtask("door-open", "door-open", "open the door"),)),
    ]
    config = EvaluationConfig(processes=1, slots=2, horizon=7)
    results = evaluate(vla, plans, sawyer, config, tmp_path, checkpoint="0")
    assert [(r.steps, r.reached, r.success) for r in results] == [(7, None, False)] * 3
    assert results[0].protocol["settings"]["render"] == "fast"
    assert results[0].benchmark == "metaworld/half-open"
    assert read_track(tmp_path, plans[0].key).actions.shape == (7, 4)
