"""Attempts of an expert in a world that records all calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from anyvla.data.episode import Episode
from anyvla.demonstrations.collect import CollectConfig, demonstrate
from anyvla_sim.base import ExpertStuck, Observation, Suite, Task
from tests.evaluation.toy_opened import EMBODIMENT
from tests.evaluation.toy_world import Toy

HORIZON = 40
TASKS = (Task("left", "cart", ("go left", "to the left", "leftwards")), Task("up", "lift", ("go up",), horizon=6))
SUITE = Suite("line", TASKS, HORIZON)


class World:
    """A world whose images and proprio count the actions since the reset; its expert always gives the same action."""

    def __init__(self, label: float = 0.0, reached: int = 5, other: int | None = None) -> None:
        """The goals of all tasks hold after `reached` actions, another goal after `other`."""
        self.label, self.reached, self.other = label, reached, other
        self.stuck: int | None = None  # the number of actions after which the expert gives up
        self.resets: list[tuple[str, int, Mapping[str, str]]] = []
        self.plays: list[list[np.ndarray]] = []

    def reset(self, task: str, seed: int, factors: Mapping[str, str]) -> None:
        self.resets.append((task, seed, dict(factors)))
        self.plays.append([])

    def observe(self) -> Observation:
        count = len(self.plays[-1])
        images = {
            "corner": np.full((4, 4, 3), count % 100, np.uint8),
            "wrist": np.full((4, 4, 3), 100 + count % 100, np.uint8),
        }
        return Observation(images, np.array([count, 0, -count], np.float32))

    def step(self, action: np.ndarray) -> dict[str, bool]:
        self.plays[-1].append(action)
        count = len(self.plays[-1])
        return {"left": count >= self.reached, "up": count >= self.reached, "other": count == self.other}

    def expert(self, task: str) -> np.ndarray:
        if len(self.plays[-1]) == self.stuck:
            raise ExpertStuck("the way is blocked")
        return np.full(4, self.label, np.float32)


def run_attempt(world: Any, number: int = 0, task: str = "left", **settings: Any) -> Episode | None:
    config = CollectConfig(**{"noise": (0.0,), "keep_after_success": 2, **settings})
    return demonstrate(world, EMBODIMENT, SUITE, config, task, number)


def make_episode(world: Any, *args: Any, **settings: Any) -> Episode:
    episode = run_attempt(world, *args, **settings)
    assert episode is not None
    return episode


def test_each_frame_shows_the_world_before_its_action() -> None:
    world = World(label=0.5)
    episode = make_episode(world, noise=(0.3,))
    assert len(episode) == 7  # 5 to the goal, 2 after it
    assert episode.images["corner"][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert episode.images["wrist"][:, 0, 0, 0].tolist() == [100, 101, 102, 103, 104, 105, 106]
    assert episode.proprio[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert episode.timestamps.tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])  # 10 Hz
    assert (episode.actions == 0.5).all()  # clean labels
    rehearsal, recorded = world.plays
    assert np.array_equal(rehearsal, recorded)
    assert np.abs(np.array(recorded) - 0.5).min() > 0  # noisy actions


def test_executed_actions_stay_within_their_range() -> None:
    world = World(label=0.9, reached=40)
    make_episode(world, noise=(2.0,))
    executed = np.array(world.plays[0])
    assert (executed.min(), executed.max()) == (-1, 1)
    assert executed.dtype == np.float32


def test_noise_has_its_standard_deviation_and_correlation() -> None:
    """It is an Ornstein-Uhlenbeck process around zero, independent in each dim, with the correlation `noise_memory`."""
    for sigma, memory in ((0.1, 0.85), (0.2, 0.5)):
        world = World(reached=8000)
        suite = Suite("line", TASKS, 8000)
        config = CollectConfig(noise=(sigma,), noise_memory=memory)
        assert demonstrate(world, EMBODIMENT, suite, config, "left", 0) is not None
        noise = np.array(world.plays[0])
        assert noise.std() == pytest.approx(sigma, rel=0.06)
        assert np.abs(noise.mean(0)).max() < 0.25 * sigma
        together = np.corrcoef(noise.T, noise.T)[:4, :4] - np.eye(4)
        assert np.abs(together).max() < 0.2
        later = [np.corrcoef(dim[:-1], dim[1:])[0, 1] for dim in noise.T]
        assert later == pytest.approx([memory] * 4, abs=0.04)


def test_noise_differs_with_the_seed_the_task_and_the_attempt() -> None:
    first = set()
    for seed in (0, 1):
        for task in ("left", "up"):
            for number in (0, 1):
                world = World()
                make_episode(world, number, task, seed=seed, noise=(0.2,))
                again = World()
                make_episode(again, number, task, seed=seed, noise=(0.2,))
                assert np.array_equal(world.plays, again.plays)
                first.add(world.plays[0][0].tobytes())
    assert len(first) == 8


def test_attempts_cycle_through_noises_scenes_and_phrases() -> None:
    """Each scene is played with every noise, at seeds beyond those of evaluations."""
    scenes = ("original", "light=dim+texture=dark")
    found = []
    for number in range(6):
        world = World()
        extra = make_episode(world, number, noise=(0.0, 0.2), scenes=scenes, seed=2).extra
        factors = {} if extra["factors"] == "original" else {"light": "dim", "texture": "dark"}
        assert world.resets == [("left", 3_000_000 + number, factors)] * 2
        assert extra == {
            "task": "left",
            "scene": "cart",
            "seed": 3_000_000 + number,
            "noise": extra["noise"],
            "factors": extra["factors"],
        }
        found.append((extra["noise"], extra["factors"]))
    turns = [(0.0, scenes[0]), (0.2, scenes[0]), (0.0, scenes[1]), (0.2, scenes[1])]
    assert found == turns + turns[:2]
    phrases = [make_episode(World(), number).instruction for number in range(4)]
    assert phrases == ["go left", "to the left", "leftwards", "go left"]
    assert make_episode(World(), 0).extra["seed"] == 1_000_000


@pytest.mark.parametrize(
    ("reached", "other", "task", "kept", "length"),
    [
        (5, None, "left", 0, 5),
        (5, None, "left", 4, 9),
        (38, None, "left", 4, 40),  # the horizon of the suite
        (40, None, "left", 4, 40),
        (41, None, "left", 4, None),
        (5, None, "up", 4, 6),  # the horizon of the task
        (7, None, "up", 4, None),
        (5, 3, "left", 4, None),  # another goal came first
        (5, 5, "left", 4, 9),
        (5, 7, "left", 4, 9),
    ],
)
def test_when_an_attempt_ends(reached: int, other: int | None, task: str, kept: int, length: int | None) -> None:
    world = World(reached=reached, other=other)
    episode = run_attempt(world, 0, task, keep_after_success=kept)
    assert (None if episode is None else len(episode)) == length
    assert len(world.resets) == (1 if length is None else 2)  # a failure is not rendered


@pytest.mark.parametrize("stuck", [0, 3, 5, 6])
def test_an_expert_that_gives_up_has_failed_after_the_goal_too(stuck: int) -> None:
    """The goal is reached with action 5; two more actions belong to the demonstration."""
    world = World(reached=5)
    world.stuck = stuck
    assert run_attempt(world) is None
    world.stuck = 7
    assert len(make_episode(world)) == 7


def test_the_defaults() -> None:
    """As in the recipes and the documentation: 40 demonstrations, a third of them clean."""
    config = CollectConfig()
    assert (config.demonstrations, config.noise, config.noise_memory) == (40, (0.0, 0.2, 0.4), 0.85)
    assert (config.keep_after_success, config.scenes, config.tasks, config.seed) == (4, ("original",), (), 0)


def test_a_factor_changes_both_runs() -> None:
    """A heavy load halves each step in the toy world."""
    cart = Toy().make("line")
    suite = Suite("line", (Task("up", "lift", ("go up",)),), 30)
    config = CollectConfig(noise=(0.0,), scenes=("load=light", "load=heavy"), keep_after_success=0)
    light, heavy = (demonstrate(cart, EMBODIMENT, suite, config, "up", number) for number in (0, 1))
    assert light is not None
    assert heavy is not None
    assert np.diff(light.proprio[:, 2]).max() == pytest.approx(0.2, abs=1e-5)
    assert np.diff(heavy.proprio[:, 2]).max() == pytest.approx(0.1, abs=1e-5)
