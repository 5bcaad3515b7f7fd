from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyvla.config import ConfigError
from anyvla.data.episode import steady_timestamps
from anyvla.data.formats.lerobot.writer import write_dataset
from anyvla.data.training.mixture import Mixture
from anyvla.doctor.clients import FunctionClient, RefusedError, load_function, replay_through
from anyvla.doctor.played import Answers, Played, choose_episodes, read_episodes
from anyvla.types import Observation
from tests import small
from tests.doctor import recordings


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> list[Played]:
    mixture = recordings.write(tmp_path_factory.mktemp("data"), (9, 8, 7, 12), (*recordings.INSTRUCTIONS, "wait"))
    return read_episodes(choose_episodes([recordings.embodiment()], mixture, 3), 8, 3)


def test_the_second_episode_has_the_instruction_of_the_first_if_there_is_one(tmp_path: Path) -> None:
    for order in (("a", "b", "a"), ("b", "a", "a"), ("a", "a", "b")):
        mixture = recordings.write(tmp_path / "".join(order), (6, 6, 6), order)
        texts = [r.read(None)[1] for r in choose_episodes([recordings.embodiment()], mixture, 3)]
        if texts[0] == "a":
            assert texts == ["a", "a", "b"]
        else:
            assert texts[0] == "b"


def test_a_client_of_chunks_is_asked_when_its_chunk_is_used_up(episodes: list[Played]) -> None:
    asked: list[tuple[int, str]] = []

    def ask(seen: dict[str, Any]) -> np.ndarray:
        asked.append((seen["step"], seen["instruction"]))
        return np.full((4, 4), seen["step"], np.float32)

    answers = replay_through(FunctionClient(ask, "ask"), episodes[:1], 3, 4)
    assert asked == [(step, episodes[0].instruction) for step in range(0, len(episodes[0]), 3)]
    executed = answers[0].executed(len(episodes[0]))
    np.testing.assert_array_equal(executed[:, 0], [t // 3 * 3 for t in range(len(episodes[0]))])


def test_a_client_of_actions_is_asked_at_every_step(episodes: list[Played]) -> None:
    client = FunctionClient(lambda seen: np.full(4, seen["step"]), "ask")
    answers = replay_through(client, episodes, 3, 4)
    assert [len(a.steps) for a in answers] == [len(e) for e in episodes]
    np.testing.assert_array_equal(answers[0].executed(len(episodes[0]))[:, 0], np.arange(len(episodes[0])))


def test_a_client_cannot_change_the_recording(episodes: list[Played]) -> None:
    before = episodes[0].observe(0)
    kept = Observation({c: i.copy() for c, i in before.images.items()}, before.proprio.copy())

    def ask(seen: dict[str, Any]) -> np.ndarray:
        for image in seen["images"].values():
            image[:] = 0
        seen["proprio"][:] = 0
        return np.zeros(4)

    replay_through(FunctionClient(ask, "ask"), episodes[:1], 3, 4)
    np.testing.assert_array_equal(episodes[0].observe(0).proprio, kept.proprio)
    np.testing.assert_array_equal(episodes[0].observe(0).images["front"], kept.images["front"])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.zeros(3), "an action has 3 numbers, the robot's has 4"),
        (np.zeros((2, 4)), "a chunk has 2 actions, 3 are executed"),
        (np.zeros((1, 4, 4)), "return a chunk"),
        (5.0, "return a chunk"),
        ({"actions": np.zeros((4, 4))}, "ask returned a dict of actions: return a chunk"),
        ([np.zeros(4), np.zeros(3)], "ask returned a list: return a chunk"),
    ],
)
def test_an_answer_of_a_wrong_form_is_named(episodes: list[Played], answer: Any, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        replay_through(FunctionClient(lambda seen: answer, "ask"), episodes, 3, 4)


def test_an_error_of_the_clients_code_is_quoted_with_its_place(episodes: list[Played]) -> None:
    def ask(seen: dict[str, Any]) -> np.ndarray:
        if seen["step"] == 3:
            raise KeyError("cam_high")
        return np.zeros((4, 4))

    with pytest.raises(RefusedError, match="step 3: ask failed: KeyError: 'cam_high'") as caught:
        replay_through(FunctionClient(ask, "ask"), episodes, 3, 4)
    assert (caught.value.episode, caught.value.step) == (0, 3)


def test_a_name_that_is_no_function_is_refused() -> None:
    for name, message in (
        ("numpy", "give module:function"),
        ("numpy:no_such", "has no 'no_such'"),
        ("numpy:pi", "it must be a function"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_function(name)


def test_answers_that_overlap_are_executed_until_the_next_one() -> None:
    answers = Answers(np.array([0, 2]), np.arange(8, dtype=np.float32).reshape(2, 4, 1))
    np.testing.assert_array_equal(answers.executed(5)[:, 0], [0, 1, 4, 5, 6])


def test_episodes_of_the_robot_that_was_asked_for_are_chosen(tmp_path: Path) -> None:
    """Even if most of the data is of another robot."""
    robots = [recordings.embodiment(), recordings.embodiment(name="leg", control_hz=20)]
    mixture = recordings.write(tmp_path / "arm")
    walk = replace(recordings.episode(8, 5, "walk"), embodiment=robots[1], timestamps=steady_timestamps(8, 20))
    write_dataset(tmp_path / "leg", robots[1], [walk])
    both = Mixture([*mixture.datasets, *small.mixture(tmp_path / "leg").datasets], [1.0, 1.0], [None, None])
    for name, count in (("arm", 3), ("leg", 1)):
        assert [r.robot for r in choose_episodes(robots, both, 3, name)] == [name] * count
    assert len({r.robot for r in choose_episodes(robots, both, 3)}) == 1
    with pytest.raises(ConfigError, match="the data shows arm, not the robot leg"):
        choose_episodes(robots, mixture, 3, "leg")
