"""Answers of a worker to its commands, without a process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anyvla_sim.workers.worker import SlotEnvironments
from tests.evaluation.toy_world import SUITES, Cart, Toy

RIGHT = np.array([1, 0, 0, 0], np.float32)


class Player:
    """Sends commands to the environments of one suite."""

    def __init__(self, suite: str = "line") -> None:
        self.environments, self.suite = SlotEnvironments(Toy()), suite

    def __call__(self, verb: str, slot: int = 0, **command: Any) -> dict[str, Any]:
        return self.environments.answer({"verb": verb, "slot": slot, "suite": self.suite, **command})

    def reset(self, slot: int = 0, seed: int = 1, task: str = "right", **factors: str) -> dict[str, Any]:
        return self("reset", slot, task=task, seed=seed, factors=factors)

    def execute(self, actions: Any, slot: int = 0, until_goal: bool = True) -> dict[str, Any]:
        return self("execute", slot, actions=np.asarray(actions, np.float32), until_goal=until_goal)


def start(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.1, 0.1, 3).astype(np.float32)


def test_steps_and_clipped_actions_count_from_the_reset() -> None:
    player = Player()
    assert player.reset()["steps"] == 0
    answer = player.execute([RIGHT, 2 * RIGHT, -3 * RIGHT])
    assert (answer["steps"], answer["clipped"]) == (3, 2)
    answer = player.execute([RIGHT, [0, 0, 0, 1.5]])
    assert (answer["steps"], answer["clipped"]) == (5, 3)
    answer = player.reset()
    assert (answer["steps"], answer["clipped"]) == (0, 0)


def test_only_actions_beyond_a_limit_count_as_clipped() -> None:
    """The limits are -1 and 1; a thousandth of their distance is tolerated, as float32 rounds."""
    player = Player()
    player.reset()
    inside = [[1, 0, 0, 0], [-1, 0, 0, 0], [1.0015, 0, 0, 0], [-1.0015, 0, 0, 0]]
    assert player.execute(inside)["clipped"] == 0
    assert player.execute([[1.003, 0, 0, 0]])["clipped"] == 1
    assert player.execute([[0, 0, -1.003, 0]])["clipped"] == 2
    assert player.execute([[2, -2, 2, -2]])["clipped"] == 3  # one action, whatever the number of its dimensions


def test_steps_count_from_the_task_of_a_chain_and_clipped_actions_from_the_reset() -> None:
    player = Player()
    player.reset()
    player.execute([2 * RIGHT, RIGHT])
    assert player("begin", task="up")["steps"] == 0
    answer = player.execute([[0, 0, 3, 0]])
    assert (answer["steps"], answer["clipped"], answer["goals"]) == (1, 2, {"up": False})


def test_a_command_of_another_version_is_refused() -> None:
    player = Player()
    player.reset()
    with pytest.raises(ValueError, match="unknown command 'pause': both interpreters need the same version"):
        player("pause", task="up")


def test_a_chunk_ends_at_its_goal_without_an_observation() -> None:
    player = Player()
    player.reset()
    answer = player.execute([RIGHT] * 12)  # 0.2 a step: beyond 1 after five or six
    assert 5 <= answer["steps"] <= 6
    assert (answer["goals"], answer["observation"]) == ({"left": False, "right": True}, None)


def test_a_goal_of_another_task_of_the_scene_ends_it_too() -> None:
    player = Player()
    player.reset(task="right")
    answer = player.execute([-RIGHT] * 12)
    assert 5 <= answer["steps"] <= 6
    assert answer["goals"] == {"left": True, "right": False}


def test_a_goal_that_must_hold_to_the_end_does_not_end_a_chunk() -> None:
    player = Player("kept")
    player.reset()
    answer = player.execute([RIGHT] * 12, until_goal=False)
    assert (answer["steps"], answer["goals"]["right"]) == (12, True)
    assert answer["observation"]["proprio"][0] == pytest.approx(start(1)[0] + 12 * 0.2, abs=1e-5)


def test_slots_have_an_environment_each() -> None:
    player = Player()
    player.reset(0, seed=1)
    player.reset(1, seed=2)
    player.execute([RIGHT] * 2, slot=0)
    answer = player.execute([RIGHT], slot=1)
    assert (answer["steps"], answer["clipped"]) == (1, 0)
    assert answer["observation"]["proprio"] == pytest.approx(start(2) + (0.2, 0, 0), abs=1e-6)
    failed = player.environments._slots[1]
    player.environments.drop(1)
    player.reset(1, seed=3)
    assert player.environments._slots[1] is not failed
    assert player.execute([RIGHT], slot=0)["steps"] == 3


def test_seeds_and_factors_reach_the_environment() -> None:
    player = Player()
    assert player.reset(seed=7)["observation"]["proprio"] == pytest.approx(start(7))
    player.reset(seed=7, load="heavy")
    assert player.execute([RIGHT])["observation"]["proprio"] == pytest.approx(start(7) + (0.1, 0, 0), abs=1e-6)


def test_the_answer_has_the_current_instruction() -> None:
    player = Player("spoken")
    assert player.reset(seed=3, task="left")["instruction"] == "go left, 3"
    assert player.execute([-RIGHT] * 4)["instruction"] == "go right, 3"  # it changes during the episode
    assert player.reset(seed=2, task="left")["instruction"] == "go left, 2"
    line = Player()
    assert line.reset()["instruction"] is None


def test_a_disturbance_reports_whether_it_changed_anything() -> None:
    player = Player()
    player.reset()
    assert player("disturb", kind="push", seed=0)["disturbed"] is False
    player.execute([RIGHT] * 3)
    answer = player("disturb", kind="push", seed=0)
    assert answer["disturbed"] is True
    assert answer["observation"]["proprio"].tolist() == [0, 0, 0]


def test_the_kind_and_the_seed_of_a_disturbance_reach_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(Cart, "disturb", lambda self, kind, seed: bool(asked.append((kind, seed))))
    player = Player()
    player.reset()
    player("disturb", kind="push", seed=41)
    assert asked == [("push", 41)]


def test_commands_of_remote_environments() -> None:
    player = Player()
    player.reset()
    assert player("expert", task="left")["action"].tolist() == [-1, 0, 0, -1]
    assert player("step", action=RIGHT)["goals"] == {"left": False, "right": False}
    seen = player("observe")
    assert seen["proprio"] == pytest.approx(start(1) + (0.2, 0, 0), abs=1e-6)
    assert sorted(seen["images"]) == ["corner", "wrist"]
    assert player("frame", height=4, width=6)["frame"].shape == (4, 6, 3)


def test_a_benchmark_describes_itself() -> None:
    player = Player()
    about = player("about")
    assert (about["name"], about["factors"], about["disturbances"]) == ("toy", {"load": ["light", "heavy"]}, ["push"])
    assert about["suites"] == list(SUITES)
    assert about["versions"]["toy"] == "1"
    described = player("describe")
    assert (described["suite"]["name"], described["protocol"]) == ("line", {"render": "fast"})
    assert described["embodiment"]["control_hz"] == 10
