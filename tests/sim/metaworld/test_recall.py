"""The suite recall: what an episode shows, and that nothing but the cue tells the tasks of a pair apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from anyvla.recipe import read
from anyvla_sim.base import Observation
from anyvla_sim.metaworld.benchmark import MetaWorld
from anyvla_sim.metaworld.recall import CUE, MOST_EXECUTED, PAIRS, Pair, make_suite, make_trial
from anyvla_sim.metaworld.recall_environment import HAND, HOLD, PLACES, PRESSED, WRIST, RecallEnvironment
from tests.sim.metaworld.test_benchmark import get_state

pytestmark = pytest.mark.simulator("metaworld")

SUITE = make_suite(2)
SHORT = [pair for pair in PAIRS if pair.name in ("d0", "d12", "press")]
Act = Callable[[Observation], np.ndarray]


@pytest.fixture(scope="module")
def world() -> Iterator[RecallEnvironment]:
    benchmark = MetaWorld("fast")
    made = benchmark.make("recall")
    assert isinstance(made, RecallEnvironment)
    yield made
    benchmark.close()


def play(world: RecallEnvironment, task: str, seed: int, act: Act, execute: int = 2) -> str | None:
    """Return the task whose goal was reached by a policy that acts on the present observation only."""
    world.reset(task, seed)
    for step in range(SUITE.limit(task)):
        if step % execute == 0:
            action = act(world.observe())
        goals = world.step(action)
        if any(goals.values()):
            return next(name for name, holds in goals.items() if holds)
    return None


@pytest.mark.parametrize("pair", SHORT, ids=lambda pair: pair.name)
@pytest.mark.parametrize("seed", [0, 5])
def test_only_the_cue_tells_the_tasks_of_a_pair_apart(world: RecallEnvironment, pair: Pair, seed: int) -> None:
    """Under equal actions, also before the go sign, pictures and proprio are equal, bit for bit, after the cue."""
    seen = []
    for task in pair.tasks:
        rng = np.random.default_rng(seed)
        world.reset(task, seed)
        observations = [world.observe()]
        for _ in range(make_trial(task, seed).go + 20):
            world.step(rng.uniform(-1, 1, 4).astype(np.float32))
            observations.append(world.observe())
        seen.append(observations)
    differing = []
    for time, (one, other) in enumerate(zip(*seen, strict=True)):
        assert np.array_equal(one.proprio, other.proprio)
        if not np.array_equal(one.images["corner"], other.images["corner"]):
            differing.append(time)
    assert differing == list(range(2 * CUE, 3 * CUE) if pair.scene == "press" else range(CUE))


@pytest.mark.parametrize("pair", SHORT, ids=lambda pair: pair.name)
def test_equal_actions_give_equal_answers_so_one_of_a_pair_fails(world: RecallEnvironment, pair: Pair) -> None:
    """Whatever a policy without a memory does after the cue, it does in both tasks, as the test above shows."""
    for seed, answer in ((1, 0), (2, 1)):
        actions: list[np.ndarray] = []
        world.reset(pair.tasks[answer], seed)
        while not any(goals := world.step(actions[-1] if actions else HOLD).values()):
            actions.append(world.expert(pair.tasks[answer]))
        assert goals
        ends = []
        for task in pair.tasks:
            world.reset(task, seed)
            for action in [HOLD, *actions]:
                goals = world.step(action)
            ends.append([name for name, holds in goals.items() if holds])
        assert ends == [[pair.tasks[answer]]] * 2


def move_to(seen: Observation, number: int) -> np.ndarray:
    goal = np.array(PLACES[number]) + (0, 0, WRIST)
    return np.array([*np.clip(20 * (goal - seen.proprio[:3]), -1, 1), 1], np.float32)


def move_left(seen: Observation) -> np.ndarray:
    return move_to(seen, 0)


def move_right(seen: Observation) -> np.ndarray:
    return move_to(seen, 1)


def move_by_the_picture(seen: Observation) -> np.ndarray:
    """Choose a place by the colors of the present picture, as a policy may do that was trained without a history."""
    image = seen.images["corner"].astype(int)
    blue = ((image[..., 2] > 150) & (image[..., 0] < 80)).any()
    return move_to(seen, 0 if blue else int(image.sum()) % 2)


def press_while_high(seen: Observation) -> np.ndarray:
    """Move down where the hand is high, and up where it is low: this presses the button again and again."""
    return np.array([0, 0, -1 if seen.proprio[2] > 0.34 else 1, 1], np.float32)


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("d0", move_left),
        ("d0", move_right),
        ("d12", move_right),
        ("d12", move_by_the_picture),
        ("press", press_while_high),
    ],
)
def test_a_policy_without_a_memory_succeeds_in_exactly_one_of_each_pair(
    world: RecallEnvironment, name: str, act: Act
) -> None:
    tasks = SUITE.groups[name]
    for seed in range(3):
        reached = [play(world, task, seed, act) for task in tasks]
        assert reached[0] == reached[1]
        assert reached[0] in tasks


@pytest.mark.parametrize("pair", SHORT, ids=lambda pair: pair.name)
def test_motion_before_the_go_sign_is_ignored(world: RecallEnvironment, pair: Pair) -> None:
    task, rng, ends = pair.tasks[0], np.random.default_rng(0), []
    go = make_trial(task, 3).go
    for moves in (False, True):
        world.reset(task, 3)
        for _ in range(go):
            assert not any(world.step(rng.uniform(-1, 1, 4) if moves else HOLD).values())
        ends.append(get_state(world))
        world.step(np.array([1, 1, 1, 1], np.float32))
        assert np.abs(get_state(world) - ends[-1]).max() > 0.01  # the next action counts
    assert np.array_equal(*ends)


@pytest.mark.parametrize("task", [task.name for task in SUITE.tasks])
def test_the_expert_waits_and_gives_the_right_answer(world: RecallEnvironment, task: str) -> None:
    for seed in (1_000_000, 1_000_001):
        trial = make_trial(task, seed)
        world.reset(task, seed)
        for step in range(SUITE.limit(task)):
            action = world.expert(task)
            assert np.array_equal(action, HOLD) == (step < trial.go)
            goals = world.step(action)
            if any(goals.values()):
                break
        assert goals == {name: name == task for name in trial.pair.tasks}
        assert step - trial.go < 25


@pytest.mark.parametrize("name", ["d0", "press"])
def test_the_wrong_answer_ends_the_episode_as_a_failure(world: RecallEnvironment, name: str) -> None:
    """The harness ends an episode at the first goal that holds, and it is a success for that task only."""
    for number, task in enumerate(SUITE.groups[name]):
        world.reset(task, 0)
        for _ in range(SUITE.limit(task)):
            motion = world._stage.act(1 - number)
            goals = world.step(np.array([*np.clip(30 * motion, -1, 1), 1], np.float32))
            if any(goals.values()):
                break
        assert goals == {name: name != task for name in SUITE.groups[name]}


def test_a_press_counts_once_until_the_button_is_released(world: RecallEnvironment) -> None:
    world.reset("press-twice", 0)
    for _ in range(make_trial("press-twice", 0).go):
        world.step(HOLD)
    joint = world.simulation.sim.data.joint("btnbox_joint")
    down, up = np.array([0, 0, -1, 1], np.float32), np.array([0, 0, 1, 1], np.float32)
    for action, times in ((down, 12), (up, 2), (down, 4)):  # the button stays down in between
        for _ in range(times):
            assert not any(world.step(action).values())
    assert joint.qpos[0] < PRESSED


def test_an_episode_follows_from_task_and_seed(world: RecallEnvironment) -> None:
    def record() -> list[np.ndarray]:
        world.reset("d12-green", 7)
        seen = []
        for _ in range(30):
            world.step(world.expert("d12-green"))
            seen += [get_state(world), world.observe().images["corner"]]
        return seen

    first = record()
    for task, seed in (("press-once", 7), ("d12-blue", 7), ("d12-green", 8)):
        world.reset(task, seed)
        for _ in range(30):
            world.step(world.expert(task))
        assert not np.array_equal(get_state(world), first[-2])
    assert all(np.array_equal(one, other) for one, other in zip(first, record(), strict=True))


def test_delays_are_sampled_by_the_seed_and_equal_in_a_pair() -> None:
    for pair in PAIRS:
        delays = [{make_trial(task, seed).delay for task in pair.tasks} for seed in range(60)]
        assert all(len(both) == 1 for both in delays)
        low, high = pair.delay
        assert set.union(*delays) == set(range(low, high + 1))
    assert {pair.name: pair.delay for pair in PAIRS if pair.scene == "reach"} == {
        "d0": (0, 0),
        "d12": (12, 15),
        "d24": (24, 24),
        "d48": (48, 51),
    }


def test_no_chunk_lasts_as_long_as_a_delay() -> None:
    """Executing a longer chunk open loop solves the tasks without a history: the chunk is the memory."""
    assert min(pair.delay[0] for pair in PAIRS if pair.scene == "reach" and pair.name != "d0") > MOST_EXECUTED
    assert MOST_EXECUTED == SUITE.most_executed == 11
    assert read("recall").model.execute <= CUE


def test_the_suite_declares_its_chance_level() -> None:
    assert SUITE.chance == 0.5
    assert list(SUITE.pairs) == list(SUITE.groups.values())
    assert SUITE.curve is not None
    assert SUITE.curve.groups == {"d0": 0, "d12": 12, "d24": 24, "d48": 48}
    assert {tuple(task.instructions) for task in SUITE.tasks} == {("go",)}
    assert len({task.scene for task in SUITE.tasks}) == len(SUITE.tasks)  # equal scene and seed: an equal start
    assert {pair.name: SUITE.limit(pair.tasks[0]) for pair in PAIRS} == {
        "d0": 8 + 40, "d12": 8 + 15 + 40, "d24": 8 + 24 + 40, "d48": 8 + 51 + 40, "press": 24 + 7 + 60,
    }  # fmt: skip


def test_the_side_arm_has_no_recall() -> None:
    benchmark = MetaWorld("fast", robot="side-arm")
    assert "recall" not in benchmark.suites()
    with pytest.raises(ValueError, match="metaworld with the robot side-arm has no suite 'recall'"):
        benchmark.make("recall")


def act_by_window(window: list[Observation], scene: str) -> np.ndarray:
    """Act on the colors and heights in a window of observations. It needs no go sign, as earlier motion is ignored."""
    images = [seen.images["corner"].astype(int) for seen in window]
    blue = any(((i[..., 2] > 150) & (i[..., :2] < 80).all(-1)).any() for i in images)
    if scene == "reach":
        green = any(((i[..., 1] > 120) & (i[..., 0] < 80) & (i[..., 2] < 80)).any() for i in images)
        return move_to(window[-1], 0 if blue else 1 if green else int(window[-1].proprio[1] > HAND[1]))
    height, pressed = window[-1].proprio[2], min(seen.proprio[2] for seen in window) < 0.33
    down = not pressed or (height > 0.35 and blue)
    return np.array([0, 0, -1 if down else 1, 1], np.float32)


@pytest.mark.parametrize(
    ("name", "window", "solved"),
    [("d12", 8, True), ("d24", 8, True), ("d24", 4, False), ("d48", 8, False), ("press", 8, True), ("press", 4, False)],
)
def test_a_window_of_observations_solves_exactly_the_delays_that_it_spans(
    world: RecallEnvironment, name: str, window: int, solved: bool
) -> None:
    """Observations are 4 actions apart, so 8 of them reach back 28 actions."""
    [pair] = (pair for pair in PAIRS if pair.name == name)
    for seed in range(2):
        reached = []
        for task in pair.tasks:
            seen: list[Observation] = []

            def act(now: Observation, seen: list[Observation] = seen) -> np.ndarray:
                seen.append(now)
                return act_by_window(seen[-window:], pair.scene)

            reached.append(play(world, task, seed, act, execute=4))
        assert (reached == list(pair.tasks)) == solved, reached
