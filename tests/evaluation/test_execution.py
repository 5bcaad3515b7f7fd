from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyvla.config import ConfigError, build
from anyvla.data.episode import Embodiment
from anyvla.evaluation.execution import MEMORY, Execution
from anyvla.evaluation.rollout import grasps

GRIPPER = {"name": "gripper", "size": 1, "kind": "gripper", "low": -1, "high": 1, "open": -1}


def arm(mode: str = "delta", **gripper: object) -> Embodiment:
    groups = [{"name": "position", "size": 1, "kind": "position", "mode": mode}, {**GRIPPER, **gripper}]
    empty: dict[str, object] = {"groups": [{"name": "p", "size": 1}]}
    space = {"name": "arm", "cameras": ["c"], "control_hz": 10, "proprio": empty, "action": {"groups": groups}}
    return build(Embodiment, space)


def chunks(count: int, length: int) -> list[np.ndarray]:
    """Each action says which chunk it is of, and which of its actions."""
    return [np.array([[k + 1, i] for i in range(length)], np.float32) for k in range(count)]


@given(execute=st.integers(1, 5), delay=st.integers(0, 7), length=st.integers(1, 9), calls=st.integers(1, 6))
def test_every_action_is_of_the_newest_chunk_that_is_known(execute: int, delay: int, length: int, calls: int) -> None:
    if length < execute and not delay:
        return
    execution = Execution(arm(), execute, delay)
    told = chunks(calls, length)
    done = np.concatenate([execution(chunk) for chunk in told])
    assert len(done) == calls * execute
    for time, action in enumerate(done):
        known = [k for k in range(calls) if k * execute + delay <= time < k * execute + length and k * execute <= time]
        if known:
            assert action.tolist() == [known[-1] + 1, time - known[-1] * execute]
        else:  # holds still, and the gripper as it was
            assert action.tolist() == [0, done[time - 1][1] if time else -1]


def test_without_a_delay_a_chunk_begins_at_once() -> None:
    execution = Execution(arm(), 2)
    assert np.concatenate([execution(c) for c in chunks(3, 4)]).tolist() == [
        [1, 0],
        [1, 1],
        [2, 0],
        [2, 1],
        [3, 0],
        [3, 1],
    ]


def test_temporal_ensembling_averages_what_was_predicted_for_one_time() -> None:
    execution = Execution(arm(), 1, ensemble=True)
    told = chunks(3, 2)
    execution(told[0])
    second = execution(told[1])[0]
    weights = np.exp(-MEMORY * np.arange(2))  # the oldest weighs most
    assert np.allclose(second, (weights[0] * told[0][1] + weights[1] * told[1][0]) / weights.sum())
    third = execution(told[2])[0]  # the first chunk has ended
    assert np.allclose(third, (weights[0] * told[1][1] + weights[1] * told[2][0]) / weights.sum())


def test_a_robot_that_cannot_hold_still_is_refused() -> None:
    for embodiment in (arm("absolute"), arm(open=None)):
        with pytest.raises(ConfigError, match="cannot hold still before its first chunk"):
            Execution(embodiment, 2, delay=1)(chunks(1, 4)[0])
        Execution(embodiment, 2)(chunks(1, 4)[0])


def test_grasps_are_counted() -> None:
    closing = np.array([[0, c] for c in (-1, -1, 1, 1, -0.5, 0.2, 0.1, -1)], np.float32)
    assert grasps(closing, arm()) == 2
    assert grasps(-closing, arm(open=1)) == 2
    assert grasps(closing[2:], arm()) == 2  # closed from the start
    assert grasps(closing, arm(open=None)) is None
    assert grasps(closing[:0], arm()) is None
