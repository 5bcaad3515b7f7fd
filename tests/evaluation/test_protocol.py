from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from anyvla.config import ConfigError
from anyvla.evaluation.conditions import Condition, parse
from anyvla.evaluation.protocol import EvaluationConfig, harness_protocol, plan_episodes
from anyvla.evaluation.suites import FIRST_DEMONSTRATION_SEED
from anyvla_sim.base import Suite, Task
from tests.evaluation.toy_world import SUITE, SUITES

HALF_OPEN_LIKE = Suite(
    "s",
    (
        *(Task(f"{scene}-{way}", scene, ("a", "b", "c")) for scene in "xy" for way in ("open", "close")),
        Task("z-press", "z", ("a", "b")),
    ),
    horizon=9,
)
LANGUAGES = [parse(c) for c in ("original", "swapped", "unrelated")]


@hypothesis_settings(max_examples=40)
@given(episodes=st.integers(1, 30), unrelated=st.integers(1, 30), first=st.integers(0, 1000), more=st.integers(0, 10))
def test_plan(episodes: int, unrelated: int, first: int, more: int) -> None:
    config = EvaluationConfig(episodes=episodes, unrelated_episodes=unrelated, first_seed=first)
    plans = plan_episodes(HALF_OPEN_LIKE, config, LANGUAGES)
    assert plans == plan_episodes(HALF_OPEN_LIKE, config, LANGUAGES)
    assert Counter(p.condition.language for p in plans) == {
        "original": 5 * episodes,
        "swapped": 4 * episodes,
        "unrelated": 5 * unrelated,
    }
    assert len({p.key for p in plans}) == len(plans)
    tasks = {t.name: t for t in HALF_OPEN_LIKE.tasks}
    for p in plans:
        (stage,) = p.subtasks
        assert first <= p.seed < first + max(episodes, unrelated) < FIRST_DEMONSTRATION_SEED
        assert stage.instruction in tasks[stage.instructed].instructions
        same_scene = tasks[stage.instructed].scene == tasks[p.task].scene
        assert {
            "original": stage.instructed == p.task,
            "swapped": same_scene and stage.instructed != p.task,
            "unrelated": not same_scene,
        }[p.condition.language]
    # A longer evaluation, or one that begins elsewhere, has the same episodes where they overlap.
    longer = dataclasses.replace(config, episodes=episodes + more, first_seed=max(0, first - more))
    others = {p.key: p for p in plan_episodes(HALF_OPEN_LIKE, longer, LANGUAGES)}
    assert all(others[p.key] == p for p in plans if p.key in others)


def test_plan_visits_all_tasks_early() -> None:
    plans = plan_episodes(HALF_OPEN_LIKE, EvaluationConfig(), [Condition()])
    assert [p.task for p in plans[:5]] == [t.name for t in HALF_OPEN_LIKE.tasks]
    assert len(plans) == 5 * HALF_OPEN_LIKE.episodes


def test_plan_takes_the_counts_of_the_authors() -> None:
    suite = Suite("s", [Task("a", "a", ("a",), episodes=3), Task("b", "b", ("b",), ("bee",))], 9, episodes=2, starts=5)
    plans = plan_episodes(suite, EvaluationConfig(), [Condition()])
    assert [p.key for p in plans] == ["original-a-0", "original-b-0", "original-a-1", "original-b-1", "original-a-2"]
    assert [p.task for p in plan_episodes(suite, EvaluationConfig(tasks=("b",), episodes=1), [Condition()])] == ["b"]
    with pytest.raises(ConfigError, match=r"evaluation.tasks: suite 's' has no task 'c'"):
        plan_episodes(suite, EvaluationConfig(tasks=("c",)), [Condition()])
    with pytest.raises(
        ConfigError, match=r"s/b has 5 start states; 6 from number 0 on are requested: use at most --episodes 5"
    ):
        plan_episodes(suite, EvaluationConfig(tasks=("b",), episodes=6), [Condition()])
    with pytest.raises(ConfigError, match="seeds from 1000000 on belong to demonstrations"):
        plan_episodes(HALF_OPEN_LIKE, EvaluationConfig(first_seed=FIRST_DEMONSTRATION_SEED - 19), [Condition()])
    with pytest.raises(ConfigError, match="suite s has no episodes under swapped"):
        plan_episodes(suite, EvaluationConfig(), [parse("swapped")])


def test_languages() -> None:
    plans = {
        c: plan_episodes(SUITE, EvaluationConfig(episodes=2), [parse(c)]) for c in ("paraphrased", "empty", "swapped")
    }
    assert [p.subtasks[0].instruction for p in plans["paraphrased"]] == ["leftwards", "rightwards"] * 2  # up has none
    assert {p.subtasks[0].instruction for p in plans["empty"]} == {""}
    assert [(p.task, p.subtasks[0].instructed) for p in plans["swapped"][:2]] == [("left", "right"), ("right", "left")]
    chains = plan_episodes(SUITES["chains"], EvaluationConfig(episodes=2), [Condition()])
    assert [[s.task for s in p.subtasks] for p in chains] == [["left", "up"], ["right", "left", "up"]]
    with pytest.raises(ConfigError, match="chains has 2 chains; 3 from number 0 on are requested"):
        plan_episodes(SUITES["chains"], EvaluationConfig(episodes=3), [Condition()])


def written(suite: Suite, condition: str, **keys: object) -> list[str]:
    """Return a line per episode: its task, its seed, the instructed task and the instruction."""
    plans = plan_episodes(suite, EvaluationConfig(**keys), [parse(condition)])  # type: ignore[arg-type]
    return [f"{p.task} {p.seed}: {p.subtasks[0].instructed}, {p.subtasks[0].instruction}" for p in plans]


def test_the_seed_alone_chooses_the_instruction() -> None:
    """Phrases and other tasks take turns: the index is the seed modulo their number."""
    pair = Suite("s", HALF_OPEN_LIKE.tasks[:2] + HALF_OPEN_LIKE.tasks[4:], 9)  # x-open, x-close, z-press
    assert written(pair, "original", tasks=("x-open",), episodes=4, first_seed=7) == [
        "x-open 7: x-open, b", "x-open 8: x-open, c", "x-open 9: x-open, a", "x-open 10: x-open, b",
    ]  # fmt: skip
    assert written(pair, "unrelated", tasks=("z-press",), unrelated_episodes=4, first_seed=1) == [
        "z-press 1: x-close, b", "z-press 2: x-open, c", "z-press 3: x-close, a", "z-press 4: x-open, b",
    ]  # fmt: skip
    three = Suite("s", [Task(name, "x", (f"do {name}", f"{name} it")) for name in "abc"], 9)
    assert written(three, "swapped", tasks=("b",), episodes=3) == ["b 0: a, do a", "b 1: c, c it", "b 2: a, do a"]
    assert written(three, "swapped+light=dim", tasks=("c",), episodes=2) == ["c 0: a, do a", "c 1: b, b it"]


def test_a_task_without_instructions_is_never_swapped_in() -> None:
    """The environment would give the instruction of the played task."""
    tasks = [Task("a", "x", ("do a",)), Task("b", "x", ()), Task("c", "x", ("do c",)), Task("d", "y", ())]
    suite = Suite("s", tasks, 9)
    assert written(suite, "swapped", tasks=("a",), episodes=2) == ["a 0: c, do c", "a 1: c, do c"]
    assert written(suite, "unrelated", tasks=("d",), episodes=2) == ["d 0: a, do a", "d 1: c, do c"]
    assert written(suite, "original", tasks=("b",), episodes=1) == ["b 0: b, None"]


def test_a_chain_is_chosen_by_its_number() -> None:
    plans = plan_episodes(SUITES["chains"], EvaluationConfig(episodes=1, first_seed=1), [Condition()])
    assert [(s.task, s.instructed, s.instruction) for p in plans for s in p.subtasks] == [
        ("right", "right", "to the right"), ("left", "left", "to the left"), ("up", "up", "rise"),
    ]  # fmt: skip
    assert [p.key for p in plans] == ["original-chain-1"]
    with pytest.raises(ConfigError, match="no episodes under swapped"):  # only `up` has instructions
        plan_episodes(SUITES["chains"], EvaluationConfig(episodes=2), [parse("swapped")])


def test_swapped_instructs_the_alternative_of_each_task_of_a_chain() -> None:
    """Most other tasks would be done already, or impossible, in the state of that moment."""
    tasks = [Task(name, "table", (f"{name} it", f"do {name}")) for name in ("open", "close", "press")]
    chains, alternatives = [("open", "close"), ("press", "open")], [("press", "press"), ("close", "press")]
    suite = Suite("s", tasks, 9, chains=chains, alternatives=alternatives)
    plans = plan_episodes(suite, EvaluationConfig(episodes=2), [parse("swapped")])
    assert [[(s.task, s.instructed, s.instruction) for s in p.subtasks] for p in plans] == [
        [("open", "press", "press it"), ("close", "press", "press it")],
        [("press", "close", "do close"), ("open", "press", "do press")],
    ]
    first, _ = plan_episodes(suite, EvaluationConfig(episodes=2), [Condition()])
    assert [(s.task, s.instructed) for s in first.subtasks] == [("open", "open"), ("close", "close")]


def test_single_tasks_of_chains_cannot_be_chosen() -> None:
    for name, message in (("up", "plays whole chains; choose their number with episodes"), ("upp", "no task 'upp'")):
        with pytest.raises(ConfigError, match=f"evaluation.tasks: .*{message}"):
            plan_episodes(SUITES["chains"], EvaluationConfig(tasks=(name,), episodes=1), [Condition()])


@pytest.mark.parametrize(
    ("keys", "original", "unrelated"),
    [
        ({}, {"x-open": 3, "z-press": 20}, {"x-open": 3, "z-press": 20}),
        ({"episodes": 2}, {"x-open": 2, "z-press": 2}, {"x-open": 2, "z-press": 2}),
        ({"unrelated_episodes": 1}, {"x-open": 3, "z-press": 20}, {"x-open": 1, "z-press": 1}),
        ({"episodes": 2, "unrelated_episodes": 1}, {"x-open": 2, "z-press": 2}, {"x-open": 1, "z-press": 1}),
    ],
)
def test_requested_counts_win_over_the_tasks_and_these_over_the_suites(
    keys: dict[str, int], original: dict[str, int], unrelated: dict[str, int]
) -> None:
    suite = Suite("s", [Task("x-open", "x", ("a",), episodes=3), Task("z-press", "z", ("b",))], 9)
    for condition, counts in (("original", original), ("empty", original), ("unrelated", unrelated)):
        plans = plan_episodes(suite, EvaluationConfig(**keys), [parse(condition)])  # type: ignore[arg-type]
        assert Counter(p.task for p in plans) == counts


def test_start_states_beyond_the_last_are_refused() -> None:
    suite = Suite("s", [Task("a", "a", ("a",)), Task("b", "b", ("b",), episodes=2)], 9, starts=5)
    assert len(written(suite, "original", tasks=("a",), episodes=3, first_seed=2)) == 3
    assert len(written(suite, "original", tasks=("b",), first_seed=0)) == 2
    for keys in ({"tasks": ("a",), "episodes": 4, "first_seed": 2}, {"tasks": ("b",), "first_seed": 1}):
        with pytest.raises(ConfigError, match="are requested: use at most --episodes"):
            written(suite, "original", **keys)
    assert len(plan_episodes(SUITES["chains"], EvaluationConfig(episodes=1, first_seed=1), [Condition()])) == 1
    with pytest.raises(ConfigError, match="1 from number 2 on are requested"):
        plan_episodes(SUITES["chains"], EvaluationConfig(episodes=1, first_seed=2), [Condition()])
    assert FIRST_DEMONSTRATION_SEED == 1_000_000  # published evaluations use lower seeds
    assert len(written(HALF_OPEN_LIKE, "original", first_seed=999_980)) == 5 * 20
    with pytest.raises(ConfigError, match="belong to demonstrations"):
        written(HALF_OPEN_LIKE, "original", first_seed=999_981)


def test_the_protocol_has_the_settings_that_comparable_scores_share() -> None:
    tasks = [Task("a", "a", ("a",)), Task("b", "b", ("b",), horizon=5)]
    suite = Suite("s", tasks, 9, episodes=50, groups={"easy": ("a", "b")}, success_rule="end")
    theirs = {
        "harness": 1, "horizon": {"b": 5}, "judged": "end", "tasks": 2, "groups": {"easy": ["a", "b"]},
        "episodes": 50, "first_seed": 0,
    }  # fmt: skip
    assert harness_protocol(suite, EvaluationConfig()) == theirs
    asked = EvaluationConfig(horizon=7, episodes=3, first_seed=11)
    assert harness_protocol(suite, asked) == theirs | {"horizon": 7, "episodes": 3, "first_seed": 11}
    assert harness_protocol(HALF_OPEN_LIKE, EvaluationConfig())["horizon"] == 9


def test_a_suite_with_a_chance_level_declares_it_with_its_pairs_and_its_curve() -> None:
    assert not {"chance", "pairs", "curve"} & set(harness_protocol(HALF_OPEN_LIKE, EvaluationConfig()))
    found = harness_protocol(SUITES["cued"], EvaluationConfig())
    assert (found["chance"], found["pairs"]) == (0.5, [["left", "right"]])
    assert found["curve"] == {"axis": "delay, actions", "groups": {"near": 3}}


@pytest.mark.parametrize("condition", ["swapped", "unrelated"])
def test_tasks_with_one_instruction_have_no_other_to_give(condition: str) -> None:
    """An instruction of another task would be the task's own."""
    apart = dataclasses.replace(SUITES["cued"], tasks=[Task(name, name, ("go",)) for name in ("left", "right")])
    for suite in (SUITES["cued"], apart):
        with pytest.raises(ConfigError, match=f"cued has no episodes under {condition}: .* the same instruction"):
            plan_episodes(suite, EvaluationConfig(), [parse(condition)])
    plans = plan_episodes(apart, EvaluationConfig(episodes=1), LANGUAGES)  # the default conditions
    assert [p.key for p in plans] == ["original-left-0", "original-right-0"]


def test_the_defaults_of_an_evaluation() -> None:
    assert dataclasses.asdict(EvaluationConfig()) == {
        "conditions": ("original", "swapped", "unrelated"),
        "tasks": (),
        "episodes": None,
        "unrelated_episodes": None,
        "first_seed": 0,
        "horizon": None,
        "execute": None,
        "ensemble": "none",
        "implausible": None,
        "processes": None,
        "slots": 3,
        "hang_s": 180.0,
        "memory_gb": 8.0,
        "failure_videos": 6,
    }
