from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyvla.config import ConfigError, build
from anyvla.evaluation.execution import Execution
from anyvla.robot.embodiment import Embodiment

GRIPPER = {"name": "gripper", "size": 1, "kind": "gripper", "low": -1, "high": 1, "open": -1}


def arm(mode: str = "delta", **gripper: object) -> Embodiment:
    groups = [{"name": "position", "size": 1, "kind": "position", "mode": mode}, {**GRIPPER, **gripper}]
    empty: dict[str, object] = {"groups": [{"name": "p", "size": 1}]}
    space = {"name": "arm", "cameras": ["c"], "control_hz": 10, "proprio": empty, "action": {"groups": groups}}
    return build(Embodiment, space)


def chunks(count: int, length: int) -> list[np.ndarray]:
    """Return a chunk whose actions name the chunk and their index in it."""
    return [np.array([[k + 1, i] for i in range(length)], np.float32) for k in range(count)]


@given(execute=st.integers(1, 5), delay=st.integers(0, 7), length=st.integers(1, 9), calls=st.integers(1, 6))
def test_every_action_comes_from_the_newest_arrived_chunk(execute: int, delay: int, length: int, calls: int) -> None:
    if length < execute and not delay:
        return
    execution = Execution(arm(), execute, delay)
    predicted = chunks(calls, length)
    done = np.concatenate([execution(chunk) for chunk in predicted])
    assert len(done) == calls * execute
    for time, action in enumerate(done):
        known = [k for k in range(calls) if k * execute + delay <= time < k * execute + length and k * execute <= time]
        if known:
            assert action.tolist() == [known[-1] + 1, time - known[-1] * execute]
        else:  # the robot holds still and keeps its gripper
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


def test_temporal_ensembling_uses_the_weights_of_act() -> None:
    """ACT (arXiv 2304.13705) gives the i-th oldest prediction the weight exp(-0.01 i)."""
    execution = Execution(arm(), 1, ensemble=True)
    first, second, third = chunks(3, 3)
    assert execution(first).tolist() == [[1, 0]]
    one, two = 1 / 1.9900498337, 0.9900498337 / 1.9900498337
    assert np.allclose(execution(second), [[1 * one + 2 * two, 1 * one + 0 * two]], atol=1e-6)
    one, two, three = (np.array([1, 0.9900498337, 0.9801986733]) / 2.9702485070).tolist()
    assert np.allclose(execution(third), [[1 * one + 2 * two + 3 * three, 2 * one + 1 * two]], atol=1e-6)
    fourth = np.array([[4, 0]], np.float32)  # the first chunk has ended
    assert np.allclose(execution(fourth), [[2 * one + 3 * two + 4 * three, 2 * one + 1 * two]], atol=1e-6)


def test_ensembling_with_a_delay_averages_the_arrived_chunks() -> None:
    """Two actions of each chunk are executed; the chunk of time t arrives at t + 1."""
    execution = Execution(arm(), 2, delay=1, ensemble=True)
    one, two = 1 / 1.9900498337, 0.9900498337 / 1.9900498337
    done = np.concatenate([execution(chunk) for chunk in chunks(3, 4)])
    assert np.allclose(done[:, 0], [0, 1, 1, one + 2 * two, 2, 2 * one + 3 * two], atol=1e-6)
    assert np.allclose(done[:, 1], [-1, 1, 2, 3 * one + two, 2, 3 * one + two], atol=1e-6)


def test_a_waiting_robot_holds_still_and_keeps_its_gripper() -> None:
    """The gripper is open until the first chunk arrives, and then as last commanded."""
    for open in (-1, 1):
        execution = Execution(arm(open=open), 3, delay=2)
        done = np.concatenate([execution(np.array([[5, 0.25]] * 3, np.float32)) for _ in range(2)])
        assert done.tolist() == [[0, open], [0, open], [5, 0.25], [0, 0.25], [0, 0.25], [5, 0.25]]


def test_a_robot_that_cannot_hold_still_is_refused() -> None:
    for embodiment in (arm("absolute"), arm(open=None)):
        with pytest.raises(ConfigError, match="cannot hold still before its first chunk"):
            Execution(embodiment, 2, delay=1)(chunks(1, 4)[0])
        Execution(embodiment, 2)(chunks(1, 4)[0])
