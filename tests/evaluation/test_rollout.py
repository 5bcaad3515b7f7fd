"""Tests of the result and the track of an episode."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anyvla.config import build
from anyvla.evaluation.conditions import parse
from anyvla.evaluation.protocol import EpisodePlan, EvaluationConfig, Subtask, plan_episodes
from anyvla.evaluation.results import EpisodeResult
from anyvla.evaluation.rollout import ResultBuilder, Rollout, count_grasps
from anyvla.evaluation.runner import evaluate
from anyvla.evaluation.tracks import read_track
from anyvla.policy import VLA
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.shared_layout import Robot
from anyvla.types import Observation
from anyvla_sim.base import Suite
from tests import small
from tests.evaluation.toy_opened import EMBODIMENT, opened
from tests.evaluation.toy_world import SUITES


def arm(low: float = -1, high: float = 1, open: float | None = -1, first: bool = False) -> Embodiment:
    gripper = {"name": "gripper", "size": 1, "kind": "gripper", "low": low, "high": high, "open": open}
    groups = [gripper, {"name": "position", "size": 1, "kind": "position", "mode": "delta"}]
    space = {"name": "arm", "cameras": ["c"], "control_hz": 10, "proprio": {"groups": [{"name": "p", "size": 1}]}}
    return build(Embodiment, {**space, "action": {"groups": groups if first else groups[::-1]}})


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("low", "high", "open", "commands", "count"),
    [
        (-1, 1, -1, (-1, -1, 1, 1, -0.5, 0.2, 0.1, -1), 2),
        (-1, 1, 1, (1, 1, -1, -1, 0.5, -0.2, -0.1, 1), 2),
        (-1, 1, -1, (1, 1, -1, 1), 2),  # closed from the start
        (-1, 1, -1, (-1, -1, 1), 1),
        (-1, 1, -1, (1, -1, -1), 1),
        (-1, 1, -1, (-1, -1), 0),
        (0, 1, 1, (1, 0.7, 0.3, 0, 0.8), 1),
        (0, 1, 0, (0, 0.3, 0.7, 1, 0.2), 1),
        (0, 1, 1, (0.6, 0.6), 0),
        (0, 0.08, 0.08, (0.08, 0.05, 0.03, 0.0, 0.05, 0.01), 2),
        (-1, 1, None, (-1, 1), None),
    ],
)
def test_each_closing_of_the_gripper_is_a_grasp(
    low: float, high: float, open: float | None, commands: tuple[float, ...], count: int | None, first: bool
) -> None:
    """The gripper is closed beyond the middle of its range. The other dim alternates."""
    other = [high if i % 2 else low for i in range(len(commands))]
    columns = [commands, other] if first else [other, commands]
    assert count_grasps(np.array(columns, np.float32).T, arm(low, high, open, first)) == count
    assert count_grasps(np.zeros((0, 2), np.float32), arm(low, high, open, first)) is None


def actions(*values: float) -> np.ndarray:
    """Actions of the cart, whose gripper is open at -1, that close it where the value is positive."""
    return np.array([[value, 0, 0, value] for value in values], np.float32)


STAGES = (Subtask("left", "right", "go right"), Subtask("up", "up", "go up"), Subtask("right", "left", "go left"))


def chain() -> Rollout:
    """Two subtasks have ended, after 3 of 4 and 1 of 2 actions; of the third, 2 of 4 were executed."""
    rollout = Rollout(EpisodePlan(parse("swapped+load=heavy"), "chain", 7, STAGES), attempt=2)
    rollout.instructions = [(0, "go right"), (3, "go up"), (4, "go left")]
    rollout.session = "a session"  # type: ignore[assignment]
    rollout.actions = [actions(-0.1, -0.2), actions(0.3, 0.4)]
    rollout.start_next_subtask(3)
    assert rollout.session is None
    assert rollout.actions == []
    assert rollout.subtask == STAGES[1]
    rollout.actions = [actions(-0.5, 0.6)]
    rollout.start_next_subtask(1)
    rollout.actions = [actions(0.7, -0.8), actions(0.9, 1.0)]
    rollout.calls, rollout.seconds = 4, 0.5
    return rollout


SETTING = ResultBuilder("toy/chains", "c0ffee", {"execute": 2}, {"horizon": 12}, {"torch": "2"}, EMBODIMENT)


def test_the_executed_actions_of_all_subtasks_count() -> None:
    rollout = chain()
    assert rollout.subtask == STAGES[2]
    assert rollout.instruction == "go left"
    assert rollout.steps(2) == 3 + 1 + 2
    assert rollout.executed(2)[:, 0].tolist() == pytest.approx([-0.1, -0.2, 0.3, -0.5, 0.7, -0.8])
    fresh = Rollout(EpisodePlan(parse("original"), "left", 0, STAGES[:1]))
    assert fresh.instruction is None
    assert fresh.executed(0).shape == (0, 0)
    assert fresh.steps(0) == 0


def test_the_line_of_a_chain() -> None:
    rollout = chain()
    rollout.disturbed_at = 0
    line = SETTING.build(rollout, "failure", reached="left", completed=2, subtask_steps=2, clipped=5, error="it broke")
    assert line == EpisodeResult(
        benchmark="toy/chains",
        condition="swapped+load=heavy",
        task="chain",
        instructed="right",
        instruction="go right",
        seed=7,
        outcome="failure",
        reached="left",
        steps=6,
        completed=2,
        length=3,
        attempts=2,
        clipped=5,
        latency_ms=125.0,  # of a call: 0.5 s for 4
        checkpoint="c0ffee",
        policy={"execute": 2},
        protocol={"horizon": 12},
        versions={"torch": "2"},
        extra={"chain": ["left", "up", "right"], "disturbed_at": 0, "grasps": 2, "error": "it broke"},
    )


def test_the_line_of_a_single_task() -> None:
    rollout = Rollout(EpisodePlan(parse("unrelated"), "left", 3, (Subtask("left", "up", "rise"),)))
    rollout.instructions = [(0, "rise"), (4, "go up")]
    rollout.actions = [actions(-1, -1)]
    line = SETTING.build(rollout, "success", subtask_steps=2)
    assert (line.task, line.instructed, line.instruction, line.condition) == ("left", "up", "rise", "unrelated")
    assert (line.steps, line.length, line.attempts, line.clipped, line.latency_ms) == (2, 1, 1, 0, 0.0)
    assert (line.outcome, line.reached, line.extra) == ("success", None, {"grasps": 0})


@pytest.fixture(scope="module")
def policy() -> VLA:
    """A policy whose chunks depend on its history, on its noise and on the instruction."""
    torch.manual_seed(0)
    history, fuser = {"name": "policy_head", "window": 3}, {"name": "lstm", "hidden": 32, "layers": 1}
    return small.awake(
        VLA(small.model(history, fuser, decoder="diffusion"), [Robot(EMBODIMENT, small.statistics())]).eval()
    )


HORIZON = 7  # actions of a subtask: three chunks of two, and half of a fourth one


def played_by_hand(vla: VLA, planned: EpisodePlan) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the chunks and executed actions of an episode: a session per subtask, a chunk for every two actions.

    A stage ends when its goal is reached, and the chain when the time of a stage is over.
    """
    cart = opened("chains").benchmark.make("chains")
    cart.reset(planned.subtasks[0].task, planned.seed, {})
    chunks, executed = [], []
    for number, stage in enumerate(planned.subtasks):
        if number:
            cart.begin(stage.task)  # type: ignore[attr-defined]
        session = vla.start(stage.instruction or "", planned.seed)
        goals: dict[str, bool] = {}
        for step in range(HORIZON):
            if step % 2 == 0:
                shown = cart.observe()
                (chunk,) = vla.act([Observation(shown.images, shown.proprio)], [session])
                chunks.append(chunk.actions)
            executed.append(chunk.actions[step % 2])
            goals = dict(cart.step(executed[-1]))
            if any(goals.values()):
                break
        if not goals[stage.task]:
            break
    return chunks, executed


def test_batching_does_not_change_the_chunks_of_an_episode(policy: VLA, tmp_path: Path) -> None:
    """The chunks of each episode in a batch equal the chunks of a session with its seed alone."""
    plans = plan_episodes(SUITES["line"], EvaluationConfig(episodes=3, tasks=("left", "up")), [parse("original")])
    config = EvaluationConfig(processes=1, slots=3, horizon=HORIZON)
    evaluate(policy, plans, opened(), config, tmp_path, checkpoint="0")
    first = set()
    for planned in plans:
        track = read_track(tmp_path, planned.key)
        chunks, executed = played_by_hand(policy, planned)
        assert np.allclose(track.chunks, chunks, atol=1e-4)
        assert np.allclose(track.actions, executed, atol=1e-4)
        first.add(track.chunks[0].tobytes())
    assert len(first) == len(plans)


def test_equal_instructions_in_a_chain_start_a_session_each(policy: VLA, tmp_path: Path) -> None:
    """The cart is up after the first subtask, so the goal of the second holds at once."""

    twice = Suite("chains", SUITES["chains"].tasks, HORIZON, chains=[("up", "up", "up")])
    toy = dataclasses.replace(opened("chains"), suite=twice)
    (planned,) = plan_episodes(twice, EvaluationConfig(episodes=1), [parse("original")])
    assert len({stage.instruction for stage in planned.subtasks}) == 1
    sessions: list[Any] = []
    act = policy.act

    def up(observations: Any, given: Any) -> Any:
        sessions.extend(s for s in given if all(s is not other for other in sessions))
        found = act(observations, given)
        return [type(chunk)(np.where([0, 0, 1, 0], 1, chunk.actions).astype(np.float32)) for chunk in found]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "act", up)
        config = EvaluationConfig(processes=1, slots=1, horizon=HORIZON)
        (result,) = evaluate(policy, [planned], toy, config, tmp_path, checkpoint="0")
        assert result.completed == 3
        assert len(sessions) == 3
        chunks, executed = played_by_hand(policy, planned)
    track = read_track(tmp_path, planned.key)
    assert np.allclose(track.chunks, chunks, atol=1e-4)
    assert np.allclose(track.actions, executed, atol=1e-4)
