from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from anyvla.data.episode import conventions, steady_timestamps
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.space import ActionSpace
from tests.data.demonstrations import ROBOT, Counted, demonstration

FRAMES = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)  # step t shows t


def steps(frames: np.ndarray) -> list[int]:
    return frames[:, 0, 0, 0].tolist()


def test_steady_times_are_steps_over_the_rate() -> None:
    assert steady_timestamps(4, 8).tolist() == [0.0, 0.125, 0.25, 0.375]
    assert steady_timestamps(0, 8).tolist() == []


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (slice(1, 4), [1, 2, 3]),
        (slice(None), [0, 1, 2, 3, 4]),
        (slice(-2, None), [3, 4]),
        (slice(None, None, -2), [4, 2, 0]),
        ([4, 0, 4], [4, 0, 4]),
        (np.array([2, 1]), [2, 1]),
        ([], []),
    ],
)
def test_frames_come_in_the_order_asked_for(asked: Any, expected: list[int]) -> None:
    frames = Counted(FRAMES)
    assert steps(frames[asked]) == expected
    assert frames.decoded == len(expected)
    assert frames[asked].dtype == np.uint8


def test_one_frame_and_all_of_them() -> None:
    frames = Counted(FRAMES)
    assert frames[3].shape == (2, 2, 3)
    assert frames[3][0, 0, 0] == 3
    assert np.array_equal(np.asarray(frames), FRAMES)
    for outside in (5, -1, [0, 5]):
        with pytest.raises(IndexError, match="the episode has 5 steps; no step"):
            frames[outside]


def test_an_instruction_is_the_first_of_several() -> None:
    episode = demonstration(3, instructions=(" open  it ", "pull"))
    assert episode.instructions == ("open it", "pull")
    assert episode.instruction == "open it"
    assert demonstration(3, instructions=()).instruction == ""


def group_changed(part: str, **changes: Any) -> Embodiment:
    first, *rest = getattr(ROBOT, part).groups
    space = ActionSpace(groups=(dataclasses.replace(first, **changes), *rest))
    return dataclasses.replace(ROBOT, **{part: space})


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(ROBOT, name="leg"),
        dataclasses.replace(ROBOT, cameras=("wrist", "corner")),
        dataclasses.replace(ROBOT, control_hz=20),
        *(group_changed(part, kind="other") for part in ("proprio", "action")),
        *(group_changed(part, unit="mm") for part in ("proprio", "action")),
        *(group_changed(part, frame="tool") for part in ("proprio", "action")),
        group_changed("action", mode="absolute"),
        group_changed("action", low=-1, high=1),
    ],
)
def test_a_fingerprint_depends_on_every_convention(other: Embodiment) -> None:
    assert conventions(other) != conventions(ROBOT)


def test_a_fingerprint_leaves_out_the_names_of_dims() -> None:
    assert conventions(group_changed("action", names=("x", "y", "z"))) == conventions(ROBOT)
