from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_world import DIES, EMBODIMENT, SUITE, Toy

from anyvla.config import ConfigError
from anyvla.data.canonical import Robot
from anyvla.evaluation.collect import FIRST_SEED
from anyvla.evaluation.environments.base import EpisodeResult, Suite, Task
from anyvla.evaluation.environments.pool import EnvironmentFailed
from anyvla.evaluation.protocol import EpisodePlan, EvaluationConfig, plan
from anyvla.evaluation.runner import Interrupted, actions_file, check_embodiment, checkpoint_hash, evaluate
from anyvla.evaluation.statistics import read_results
from anyvla.policy import VLA, Session
from anyvla.types import Chunk, Observation

HALF_OPEN_LIKE = Suite(
    "s",
    (
        *(Task(f"{scene}-{way}", scene, ("a", "b", "c")) for scene in "xy" for way in ("open", "close")),
        Task("z-press", "z", ("a", "b")),
    ),
    horizon=9,
)


@given(episodes=st.integers(1, 30), unrelated=st.integers(1, 30), first=st.integers(0, 1000), more=st.integers(0, 10))
def test_plan(episodes: int, unrelated: int, first: int, more: int) -> None:
    config = EvaluationConfig(episodes=episodes, unrelated_episodes=unrelated, first_seed=first)
    plans = plan(HALF_OPEN_LIKE, config)
    assert plans == plan(HALF_OPEN_LIKE, config)
    assert Counter(p.protocol for p in plans) == {
        "told": 5 * episodes,
        "swapped": 4 * episodes,
        "unrelated": 5 * unrelated,
    }
    assert len({p.key for p in plans}) == len(plans)
    tasks = {t.name: t for t in HALF_OPEN_LIKE.tasks}
    for p in plans:
        assert first <= p.seed < first + max(episodes, unrelated) < FIRST_SEED
        assert p.instruction in tasks[p.told].instructions
        same_scene = tasks[p.told].scene == tasks[p.task].scene
        assert {"told": p.told == p.task, "swapped": same_scene and p.told != p.task, "unrelated": not same_scene}[
            p.protocol
        ]
    # A longer evaluation, or one that begins elsewhere, has the same episodes where they overlap.
    longer = dataclasses.replace(config, episodes=episodes + more, first_seed=max(0, first - more))
    others = {p.key: p for p in plan(HALF_OPEN_LIKE, longer)}
    assert all(others[p.key] == p for p in plans if p.key in others)


def test_plan_visits_all_tasks_early() -> None:
    plans = plan(HALF_OPEN_LIKE, EvaluationConfig(protocols=("told",)))
    assert [p.task for p in plans[:5]] == [t.name for t in HALF_OPEN_LIKE.tasks]


def test_seeds_of_demonstrations_are_refused() -> None:
    with pytest.raises(ValueError, match="seeds from 1000000 on belong to demonstrations; lower first_seed"):
        EvaluationConfig(first_seed=FIRST_SEED - 19)
    EvaluationConfig(first_seed=FIRST_SEED - 20)


class Obedient(VLA):
    """Goes where it is told, by the words alone; the rest is a real policy."""

    seen: int = 0
    largest: int = 0

    def act(self, observations: Sequence[Observation], sessions: Sequence[Session]) -> list[Chunk]:
        super().act(observations, sessions)
        self.largest = max(self.largest, len(sessions))
        ways = {"left": [-1, 0, 0, 0], "right": [1, 0, 0, 0], "go up": [0, 0, 1, 0], "rise": [0, 0, 1, 0]}
        words = [next(way for word, way in ways.items() if word in s.instruction) for s in sessions]
        return [Chunk(np.array([way] * self.config.chunk, np.float32)) for way in words]


@pytest.fixture
def obedient() -> VLA:
    torch.manual_seed(0)
    return Obedient(small.model(), [Robot(EMBODIMENT, small.statistics())]).eval()


@pytest.fixture
def policy() -> VLA:
    torch.manual_seed(0)
    config = small.model({"name": "policy_head", "window": 3}, {"name": "lstm", "hidden": 32, "layers": 1})
    return VLA(config, [Robot(EMBODIMENT, small.statistics())]).eval()


def play(vla: VLA, plans: Sequence[EpisodePlan], folder: Path, **keys: Any) -> list[EpisodeResult]:
    keys = {"checkpoint": "c0ffee", "processes": 1, "slots": 3, "benchmark": Toy(), "suite": SUITE} | keys
    return evaluate(vla, plans, keys.pop("benchmark"), keys.pop("suite"), folder, **keys)


PLANS = plan(SUITE, EvaluationConfig(episodes=2, unrelated_episodes=1))


def after(count: int) -> tuple[Callable[[int, int], None], Callable[[], bool]]:
    seen = [0]

    def progress(done: int, total: int) -> None:
        seen[0] = done

    return progress, lambda: seen[0] >= count


def test_results_and_actions(obedient: Obedient, tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    results = play(obedient, PLANS, tmp_path, progress=lambda *p: progress.append(p))
    assert progress == [(n, len(PLANS)) for n in range(len(PLANS) + 1)]
    assert sorted(read_results(tmp_path / "results.jsonl"), key=str) == sorted(results, key=str)
    assert obedient.largest == 3  # slots are batched
    for planned, result in zip(PLANS, results, strict=True):
        assert (result.protocol, result.task, result.told, result.seed) == (
            planned.protocol,
            planned.task,
            planned.told,
            planned.seed,
        )
        assert (result.benchmark, result.checkpoint) == ("toy/line", "c0ffee")
        assert dict(result.versions) == {"toy": "1", "render": "fast"}
        assert result.latency_ms > 0
        possible = SUITE.task(result.told).scene == SUITE.task(result.task).scene
        assert result.reached == (result.told if possible else None)
        assert result.success == (result.protocol == "told")
        assert result.steps in ((5, 6) if possible else (SUITE.horizon,))
        actions = np.load(actions_file(tmp_path, planned.key), allow_pickle=False)
        assert actions.shape == (result.steps, 4)
        assert actions.dtype == np.float32


def test_the_recorded_actions_play_the_same_episode(policy: VLA, tmp_path: Path) -> None:
    results = play(policy, PLANS[:3], tmp_path)
    for planned, result in zip(PLANS, results, strict=False):
        cart = Toy().make()
        cart.reset(planned.task, planned.seed)
        goals: dict[str, bool] = {}
        for action in np.load(actions_file(tmp_path, planned.key)):
            goals = cart.step(action)
        assert next((t for t, holds in goals.items() if holds), None) == result.reached


def test_the_batch_makes_no_difference(policy: VLA, tmp_path: Path) -> None:
    many = play(policy, PLANS, tmp_path / "many", processes=2, slots=3)
    alone = play(policy, PLANS[::-1], tmp_path / "alone", processes=1, slots=1)
    for left, right in zip(many, alone[::-1], strict=True):
        assert (left.task, left.seed, left.reached, left.steps) == (right.task, right.seed, right.reached, right.steps)
    for planned in PLANS:
        a, b = (np.load(actions_file(tmp_path / f, planned.key)) for f in ("many", "alone"))
        assert np.abs(a - b).max() < 1e-4


def test_an_interrupted_evaluation_goes_on(policy: VLA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress, stop = after(3)
    with pytest.raises(Interrupted, match=rf"stopped after \d of {len(PLANS)} episodes; the same command goes on"):
        play(policy, PLANS, tmp_path, progress=progress, stop=stop)
    lines = (tmp_path / "results.jsonl").read_text()
    kept = len(lines.splitlines())
    assert 3 <= kept < len(PLANS)
    seen: list[int] = []
    results = play(policy, PLANS, tmp_path, progress=lambda done, _: seen.append(done))
    assert seen[0] == kept
    assert (tmp_path / "results.jsonl").read_text().startswith(lines)
    assert len(read_results(tmp_path / "results.jsonl")) == len(PLANS)  # nothing twice
    assert [f"{r.protocol}-{r.task}-{r.seed}" for r in results] == [p.key for p in PLANS]

    def never(*args: object, **keys: object) -> None:
        raise AssertionError("everything is played already")

    monkeypatch.setattr("anyvla.evaluation.runner.EnvironmentPool", never)
    assert play(policy, PLANS, tmp_path) == results
    assert play(policy, PLANS[4:6], tmp_path) == results[4:6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint": "beef"}, r"results of another checkpoint \(c0ffee, this is beef\); choose another output"),
        ({"benchmark": Toy(render="native")}, r"results of another render setting \(fast, this is native\)"),
        ({"suite": dataclasses.replace(SUITE, name="ring")}, r"another benchmark \(toy/line, this is toy/ring\)"),
    ],
)
def test_results_of_something_else_are_refused(
    policy: VLA, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    play(policy, PLANS[:1], tmp_path)
    with pytest.raises(ConfigError, match=message):
        play(policy, PLANS, tmp_path, **change)


def test_another_robot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trained for another robot: name 'small', here 'cart'"):
        play(small.policy(), PLANS, tmp_path)
    turned = dataclasses.replace(EMBODIMENT, cameras=("wrist", "corner"), control_hz=5.0)
    with pytest.raises(ConfigError, match=r"cameras \('wrist', 'corner'\), here .*control_hz 5.0, here 10"):
        check_embodiment([turned], EMBODIMENT)


def test_a_worker_that_dies_ends_the_evaluation(policy: VLA, tmp_path: Path) -> None:
    doomed = [*PLANS[:3], dataclasses.replace(PLANS[0], seed=DIES)]
    start = time.monotonic()
    with pytest.raises(EnvironmentFailed, match=r"died \(exit status -9\).*What was reported is kept"):
        play(policy, doomed, tmp_path, slots=1)
    assert time.monotonic() - start < 30
    assert len(read_results(tmp_path / "results.jsonl")) == 3


def test_checkpoint_hash(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = checkpoint_hash(tmp_path)
    assert len(first) == 16
    (tmp_path / "model.safetensors").write_bytes(b"weight5")
    assert checkpoint_hash(tmp_path) != first


def test_meta_world(tmp_path: Path) -> None:
    pytest.importorskip("metaworld")
    from anyvla.actions.normalize import Statistics
    from anyvla.evaluation.environments.metaworld import EMBODIMENT as SAWYER
    from anyvla.evaluation.environments.metaworld import HALF_OPEN, MetaWorld

    action = small.statistics().action
    torch.manual_seed(0)
    vla = VLA(small.model(), [Robot(SAWYER, Statistics(action, action, "f" * 64))]).eval()
    suite = dataclasses.replace(HALF_OPEN, horizon=7)
    plans = [
        EpisodePlan("told", "drawer-open", "drawer-open", "open the drawer", 0),
        EpisodePlan("swapped", "drawer-open", "drawer-close", "close the drawer", 0),
        EpisodePlan("unrelated", "button-press-topdown", "door-open", "open the door", 3),
    ]
    results = evaluate(vla, plans, MetaWorld("fast"), suite, tmp_path, checkpoint="0", processes=1, slots=2)
    assert [(r.steps, r.reached, r.success) for r in results] == [(7, None, False)] * 3
    assert results[0].versions["render"] == "fast"
    assert results[0].benchmark == "metaworld/half-open"
    assert np.load(actions_file(tmp_path, plans[0].key)).shape == (7, 4)
