from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_opened import EMBODIMENT, opened
from toy_world import DIES, DIES_ONCE, HORIZON, RAISES, SUITE, SUITES, Toy

from anyvla.config import ConfigError
from anyvla.data.canonical import Robot
from anyvla.evaluation.collect import FIRST_SEED
from anyvla.evaluation.conditions import Condition, expand, parse
from anyvla.evaluation.protocol import EpisodePlan, EvaluationConfig, Stage, plan
from anyvla.evaluation.results import EpisodeResult, read_results
from anyvla.evaluation.runner import check_embodiment, checkpoint_hash, evaluate
from anyvla.evaluation.suites import open_suite
from anyvla.evaluation.tracks import read_track
from anyvla.evaluation.workers import EnvironmentFailed
from anyvla.interrupted import Interrupted
from anyvla.policy import VLA, Session
from anyvla.types import Chunk, Observation
from anyvla_sim.base import Suite, Task

HALF_OPEN_LIKE = Suite(
    "s",
    (
        *(Task(f"{scene}-{way}", scene, ("a", "b", "c")) for scene in "xy" for way in ("open", "close")),
        Task("z-press", "z", ("a", "b")),
    ),
    horizon=9,
)
LANGUAGES = [parse(c) for c in ("told", "swapped", "unrelated")]


@given(episodes=st.integers(1, 30), unrelated=st.integers(1, 30), first=st.integers(0, 1000), more=st.integers(0, 10))
def test_plan(episodes: int, unrelated: int, first: int, more: int) -> None:
    config = EvaluationConfig(episodes=episodes, unrelated_episodes=unrelated, first_seed=first)
    plans = plan(HALF_OPEN_LIKE, config, LANGUAGES)
    assert plans == plan(HALF_OPEN_LIKE, config, LANGUAGES)
    assert Counter(p.condition.language for p in plans) == {
        "told": 5 * episodes,
        "swapped": 4 * episodes,
        "unrelated": 5 * unrelated,
    }
    assert len({p.key for p in plans}) == len(plans)
    tasks = {t.name: t for t in HALF_OPEN_LIKE.tasks}
    for p in plans:
        (stage,) = p.stages
        assert first <= p.seed < first + max(episodes, unrelated) < FIRST_SEED
        assert stage.instruction in tasks[stage.told].instructions
        same_scene = tasks[stage.told].scene == tasks[p.task].scene
        assert {
            "told": stage.told == p.task,
            "swapped": same_scene and stage.told != p.task,
            "unrelated": not same_scene,
        }[p.condition.language]
    # A longer evaluation, or one that begins elsewhere, has the same episodes where they overlap.
    longer = dataclasses.replace(config, episodes=episodes + more, first_seed=max(0, first - more))
    others = {p.key: p for p in plan(HALF_OPEN_LIKE, longer, LANGUAGES)}
    assert all(others[p.key] == p for p in plans if p.key in others)


def test_plan_visits_all_tasks_early() -> None:
    plans = plan(HALF_OPEN_LIKE, EvaluationConfig(), [Condition()])
    assert [p.task for p in plans[:5]] == [t.name for t in HALF_OPEN_LIKE.tasks]
    assert len(plans) == 5 * HALF_OPEN_LIKE.episodes


def test_plan_takes_the_counts_of_the_authors() -> None:
    suite = Suite("s", [Task("a", "a", ("a",), episodes=3), Task("b", "b", ("b",), ("bee",))], 9, episodes=2, starts=5)
    told = plan(suite, EvaluationConfig(), [Condition()])
    assert [p.key for p in told] == ["told-a-0", "told-b-0", "told-a-1", "told-b-1", "told-a-2"]
    assert [p.task for p in plan(suite, EvaluationConfig(tasks=("b",), episodes=1), [Condition()])] == ["b"]
    with pytest.raises(ConfigError, match=r"evaluation.tasks: suite 's' has no task 'c'"):
        plan(suite, EvaluationConfig(tasks=("c",)), [Condition()])
    with pytest.raises(ConfigError, match=r"s/b has 5 start states; 6 from number 0 on are asked: --episodes 5"):
        plan(suite, EvaluationConfig(tasks=("b",), episodes=6), [Condition()])
    with pytest.raises(ConfigError, match="seeds from 1000000 on belong to demonstrations"):
        plan(HALF_OPEN_LIKE, EvaluationConfig(first_seed=FIRST_SEED - 19), [Condition()])
    with pytest.raises(ConfigError, match="suite s has no episodes under swapped"):
        plan(suite, EvaluationConfig(), [parse("swapped")])


def test_languages() -> None:
    told = {c: plan(SUITE, EvaluationConfig(episodes=2), [parse(c)]) for c in ("paraphrased", "empty", "swapped")}
    assert [p.stages[0].instruction for p in told["paraphrased"]] == ["leftwards", "rightwards"] * 2  # up has none
    assert {p.stages[0].instruction for p in told["empty"]} == {""}
    assert [(p.task, p.stages[0].told) for p in told["swapped"][:2]] == [("left", "right"), ("right", "left")]
    chains = plan(SUITES["chains"], EvaluationConfig(episodes=2), [Condition()])
    assert [[s.task for s in p.stages] for p in chains] == [["left", "up"], ["right", "left", "up"]]
    with pytest.raises(ConfigError, match="chains has 2 chains; 3 from number 0 on are asked"):
        plan(SUITES["chains"], EvaluationConfig(episodes=3), [Condition()])


def test_conditions_are_read_and_written() -> None:
    for text in ("told", "swapped+light=dim", "told+camera=far+light=dim+push@20+delay=4", "empty+delay=1"):
        assert str(parse(text)) == text
    assert parse("told+light=dim+camera=far") == parse("told+camera=far+light=dim")
    for text, message in (
        ("tolled", "did you mean 'told'"),
        ("told+light", "'light' is none of FACTOR=LEVEL"),
        ("told+a=b+a=c", "the factor a is there twice"),
        ("told+push@1+pull@2", "'pull@2' is none of"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse(text)
    with pytest.raises(ValueError, match="did you mean 'told'"):
        EvaluationConfig(conditions=("tolled",))


def test_sets_of_conditions() -> None:
    toy = opened().benchmark
    assert [str(c) for c in expand(["generalisation", "told"], toy)] == ["told", "told+load=light", "told+load=heavy"]
    assert [str(c) for c in expand(["correction"], toy)] == ["told", "told+push@10", "told+push@30"]
    assert [str(c) for c in expand(["latency"], toy)][:3] == ["told", "told+delay=1", "told+delay=2"]
    assert len(expand(["language"], toy)) == 5
    for text, message in (
        ("told+light=dim", "toy has no factor 'light'; known: load: light, heavy"),
        ("told+load=huge", "load has no level 'huge'; known: light, heavy"),
        ("told+kick@3", "toy has no disturbance 'kick'; known: push"),
    ):
        with pytest.raises(ConfigError, match=message):
            expand([text], toy)


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
    keys = {"checkpoint": "c0ffee", "opened": opened()} | keys
    config = EvaluationConfig(processes=keys.pop("processes", 1), slots=keys.pop("slots", 3), **keys.pop("config", {}))
    return evaluate(vla, plans, keys.pop("opened"), config, folder, **keys)


def told(condition: str = "told", suite: str = "line", **keys: Any) -> list[EpisodePlan]:
    return plan(SUITES[suite], EvaluationConfig(**keys), [parse(condition)])


PLANS = plan(SUITE, EvaluationConfig(episodes=2, unrelated_episodes=1), LANGUAGES)


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
    assert obedient.largest > 1  # slots are batched
    for planned, result in zip(PLANS, results, strict=True):
        assert (result.condition, result.task, result.told, result.seed) == (
            str(planned.condition),
            planned.task,
            planned.stages[0].told,
            planned.seed,
        )
        assert (result.benchmark, result.checkpoint) == ("toy/line", "c0ffee")
        assert result.protocol["settings"] == {"render": "fast"}
        assert result.protocol["simulator"] == {"toy": "1"}
        assert result.protocol["horizon"] == HORIZON
        assert dict(result.policy) == {"execute": 2, "ensemble": "none", "chunk": 4}
        assert {"anyvla", "torch", "transformers", "python", "machine", "device"} <= set(result.versions)
        assert result.latency_ms > 0
        possible = SUITE.task(result.told).scene == SUITE.task(result.task).scene
        assert result.reached == (result.told if possible else None)
        assert result.success == (result.condition == "told") == (result.completed == 1)
        assert result.steps in ((5, 6) if possible else (HORIZON,))
        assert result.extra == {"grasps": 0}
        track = read_track(tmp_path, planned.key)
        assert track.actions.shape == (result.steps, 4)
        assert track.actions.dtype == np.float32
        assert track.chunks.shape[1:] == (4, 4)
        assert track.marks.tolist() == list(range(0, result.steps, 2))


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
    plans = told(suite="chains", episodes=2)
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
    stages = dict(zip(track.stages.tolist(), results[1].extra["chain"], strict=True))
    ends = []
    for number, action in enumerate(track.actions):
        if number in stages:
            cart.begin(stages[number])  # type: ignore[attr-defined]
        if any(cart.step(action).values()):
            ends.append(number + 1)
    assert ends == [*track.stages[1:].tolist(), results[1].steps]
    assert track.told.tolist() == track.stages.tolist()
    assert track.words == tuple(stage.instruction or stage.task for stage in plans[1].stages)
    # A task that is not solved in time ends the chain.
    late = play(obedient, plans, tmp_path / "late", opened=opened("chains"), config={"horizon": 5})
    assert all(r.completed < r.length and r.outcome == "failure" for r in late)


def test_cameras_of_two_sizes_need_a_view(obedient: Obedient, tmp_path: Path) -> None:
    class Uneven(Toy):
        def protocol(self, suite: str) -> Mapping[str, Any]:
            return {"cameras": {"corner": [200, 200], "wrist": [84, 84]}}

    uneven = dataclasses.replace(opened(), benchmark=Uneven())
    with pytest.raises(ConfigError, match=r"toy/line have different sizes \(corner 200x200, wrist 84x84\), and the po"):
        play(obedient, told(episodes=1), tmp_path, opened=uneven)
    assert not (tmp_path / "results.jsonl").exists()


def test_an_environment_may_say_the_instruction(obedient: Obedient, tmp_path: Path) -> None:
    (result,) = play(obedient, told(suite="spoken", episodes=1), tmp_path, opened=opened("spoken"))
    assert (result.instruction, result.success) == ("go left, 0", True)
    changed = play(obedient, told(suite="spoken", episodes=1, first_seed=3), tmp_path / "on", opened=opened("spoken"))
    assert (changed[0].instruction, changed[0].success) == ("go left, 3", False)
    signs = np.sign(read_track(tmp_path / "on", changed[0].key).actions[:, 0])
    assert {-1, 1} <= set(signs)  # to and fro, as it is told


def test_a_goal_that_must_hold_to_the_end(obedient: Obedient, tmp_path: Path) -> None:
    results = play(obedient, told(suite="kept", episodes=1), tmp_path, opened=opened("kept"))
    assert {(r.steps, r.outcome) for r in results} == {(HORIZON, "success")}


def test_factors_and_disturbances(obedient: Obedient, tmp_path: Path) -> None:
    heavy = play(obedient, told("told+load=heavy", episodes=1), tmp_path / "heavy")
    assert all(r.steps in (9, 10, 11) for r in heavy)  # half the pace
    pushed = play(obedient, told("told+push@3", episodes=1), tmp_path / "pushed")
    for r in pushed:  # at the first picture from action 3 on, it is put back to the start
        assert r.extra["disturbed_at"] == 4
        assert r.steps == 4 + 6
    early = play(obedient, told("told+push@0", episodes=1), tmp_path / "early")
    assert {r.extra["disturbed_at"] for r in early} == {2}  # there was nothing to disturb before


def test_delay_and_ensemble(obedient: Obedient, tmp_path: Path) -> None:
    prompt, late, averaged = (
        play(obedient, told(c, episodes=1), tmp_path / f, config=k)
        for c, f, k in (("told", "a", {}), ("told+delay=2", "b", {}), ("told", "c", {"ensemble": "temporal"}))
    )
    assert [b.steps - a.steps for a, b in zip(prompt, late, strict=True)] == [2, 2, 2]  # holds still at first
    assert [a.steps for a in prompt] == [c.steps for c in averaged]  # equal chunks: an average changes nothing
    assert averaged[0].policy["ensemble"] == "temporal"
    with pytest.raises(ConfigError, match="--execute 9: the policy predicts 4 actions at once"):
        play(obedient, told(episodes=1), tmp_path / "d", config={"execute": 9})


def test_a_policy_that_gives_no_numbers(obedient: Obedient, tmp_path: Path) -> None:
    sample, calls = obedient.decoder.sample, [0]

    def breaks(*arguments: Any) -> torch.Tensor:
        """NaN from the second call on."""
        calls[0] += 1
        return sample(*arguments) * (1 if calls[0] == 1 else np.nan)

    obedient.decoder.sample = breaks  # type: ignore[method-assign]
    results = play(obedient, told(tasks=("left",), episodes=1), tmp_path)
    assert {(r.outcome, r.steps, r.success) for r in results} == {("invalid_action", 2, False)}
    assert len(read_track(tmp_path, results[0].key).actions) == 2


def test_a_simulator_in_other_units_is_an_error_unless_the_evaluation_says_warn(tmp_path: Path) -> None:
    torch.manual_seed(0)
    near = {key: [x * 1e-3 for x in of] for key, of in small.statistics().proprio.items()}  # data in another unit
    robot = Robot(EMBODIMENT, dataclasses.replace(small.statistics(), proprio=near))
    vla = Obedient(small.model(), [robot]).eval()
    plans = told(tasks=("left",), episodes=2)
    results = play(vla, plans, tmp_path / "a")
    assert {r.outcome for r in results} == {"error"}
    assert (
        "refuses what the simulator shows: observation 0: proprio of robot 'cart' is far" in results[0].extra["error"]
    )
    assert {r.outcome for r in play(vla, plans, tmp_path / "b", config={"implausible": "warn"})} == {"success"}


def test_a_simulator_that_fails_once_changes_nothing(obedient: Obedient, tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    plans = [p for seed in (1, DIES_ONCE, 2) for p in told(tasks=("left",), episodes=1, first_seed=seed)]
    results = play(obedient, plans, tmp_path, opened=opened(marks=str(tmp_path / "marks")))
    assert [(r.seed, r.outcome) for r in results] == [(1, "success"), (DIES_ONCE, "success"), (2, "success")]
    assert results[1].attempts == 2
    assert len(read_results(tmp_path / "results.jsonl")) == 3


@pytest.mark.parametrize(("seed", "message"), [(RAISES, "the cart has no wheels"), (DIES, "exit status -9")])
def test_a_simulator_that_fails_twice_is_an_error_of_the_simulator(
    obedient: Obedient, tmp_path: Path, seed: int, message: str
) -> None:
    plans = [p for s in (1, seed, 2) for p in told(tasks=("left",), episodes=1, first_seed=s)]
    results = play(obedient, plans, tmp_path, slots=1)
    assert [(r.outcome, r.attempts) for r in results] == [("success", 1), ("error", 2), ("success", 1)]
    assert message in results[1].extra["error"]
    assert play(obedient, plans, tmp_path) == results  # reported, not played again


def test_a_simulator_that_always_fails_ends_the_evaluation(obedient: Obedient, tmp_path: Path) -> None:
    plans = [EpisodePlan(Condition(), "left", RAISES, (Stage("left", "left", "go left"),))] * 8
    start = time.monotonic()
    with pytest.raises(EnvironmentFailed, match=r"(?s)failed in 6 episodes in a row.*What was reported is kept"):
        play(obedient, plans, tmp_path, slots=1)
    assert time.monotonic() - start < 30


def test_the_batch_makes_no_difference(policy: VLA, tmp_path: Path) -> None:
    many = play(policy, PLANS, tmp_path / "many", processes=2, slots=3)
    alone = play(policy, PLANS[::-1], tmp_path / "alone", processes=1, slots=1)
    for left, right in zip(many, alone[::-1], strict=True):
        assert (left.task, left.seed, left.reached, left.steps) == (right.task, right.seed, right.reached, right.steps)
    for planned in PLANS:
        a, b = (read_track(tmp_path / f, planned.key).actions for f in ("many", "alone"))
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
    assert [r.key for r in results] == [p.key for p in PLANS]

    def never(*args: object, **keys: object) -> None:
        raise AssertionError("everything is played already")

    monkeypatch.setattr("anyvla.evaluation.runner.EnvironmentPool", never)
    assert play(policy, PLANS, tmp_path) == results
    assert play(policy, PLANS[4:6], tmp_path) == results[4:6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"checkpoint": "beef"},
            r"something else \(checkpoint: 'c0ffee', 'beef': there, here\); choose another",
        ),
        ({"opened": opened(render="native")}, r"\(settings.render: 'fast', 'native': there, here\)"),
        ({"opened": opened("kept")}, r"benchmark: 'toy/line', 'toy/kept'; judged: 'reached', 'end'"),
        ({"config": {"execute": 3}}, r"execute: 2, 3"),
        ({"config": {"horizon": 20}}, r"horizon: 12, 20"),
    ],
)
def test_results_of_something_else_are_refused(
    policy: VLA, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    play(policy, PLANS[:1], tmp_path)
    with pytest.raises(ConfigError, match=message):
        play(policy, PLANS, tmp_path, **change)


def test_another_robot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trained for another robot \\(name: 'small' there, 'cart' here"):
        play(small.policy(), PLANS, tmp_path)
    turned = dataclasses.replace(EMBODIMENT, cameras=("wrist", "corner"), control_hz=5.0)
    with pytest.raises(ConfigError, match=r"cameras.0: 'wrist' there, 'corner' here; .*control_hz: 5.0 there, 10"):
        check_embodiment([turned], EMBODIMENT)


def test_checkpoint_hash(tmp_path: Path) -> None:
    small.policy().save(tmp_path, {})
    first = checkpoint_hash(tmp_path)
    assert len(first) == 16
    for name in ("model.safetensors", "statistics.json", "config.yaml"):
        kept = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(kept + b" ")
        assert checkpoint_hash(tmp_path) != first
        (tmp_path / name).write_bytes(kept)
    assert checkpoint_hash(tmp_path) == first


def test_meta_world(tmp_path: Path) -> None:
    pytest.importorskip("metaworld")
    from anyvla.actions.normalize import Statistics

    sawyer = open_suite("metaworld/half-open", {"render": "fast"})
    action = small.statistics().action
    torch.manual_seed(0)
    vla = VLA(small.model(), [Robot(sawyer.embodiment, Statistics(action, action, "f" * 64))]).eval()
    plans = [
        EpisodePlan(parse("told"), "drawer-open", 0, (Stage("drawer-open", "drawer-open", "open the drawer"),)),
        EpisodePlan(parse("swapped"), "drawer-open", 0, (Stage("drawer-open", "drawer-close", "close the drawer"),)),
        EpisodePlan(parse("told+light=dim"), "door-open", 3, (Stage("door-open", "door-open", "open the door"),)),
    ]
    config = EvaluationConfig(processes=1, slots=2, horizon=7)
    results = evaluate(vla, plans, sawyer, config, tmp_path, checkpoint="0")
    assert [(r.steps, r.reached, r.success) for r in results] == [(7, None, False)] * 3
    assert results[0].protocol["settings"]["render"] == "fast"
    assert results[0].benchmark == "metaworld/half-open"
    assert read_track(tmp_path, plans[0].key).actions.shape == (7, 4)
