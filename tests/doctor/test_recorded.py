from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from anyvla.doctor.recorded import GroupAgreement, compare_with_recorded
from anyvla.robot.space import ActionSpace, Group

SPACE = ActionSpace(
    groups=(
        Group(name="position", size=3, kind="position", mode="delta"),
        Group(name="joints", size=2, kind="joints", unit="rad"),
        Group(name="gripper", size=1, kind="gripper", low=-1, high=1),
    )
)


def record(count: int = 3, length: int = 60) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    smooth = [
        np.stack([np.convolve(rng.normal(size=length + 4), np.ones(5) / 5, "valid") for _ in range(5)], 1)
        for _ in range(count)
    ]
    joints = [np.cumsum(s[:, 3:], 0) for s in smooth]
    grasps = [np.sign(rng.normal(size=(length, 1))) for _ in range(count)]
    return [
        np.concatenate([s[:, :3], j, g], 1).astype(np.float32) for s, j, g in zip(smooth, joints, grasps, strict=True)
    ]


def compare(change: Callable[[np.ndarray], np.ndarray]) -> dict[str, GroupAgreement]:
    recorded = record()
    noise = np.random.default_rng(1)
    predicted = [change(r.copy()) + noise.normal(size=r.shape).astype(np.float32) * 0.01 for r in recorded]
    return {g.group: g for g in compare_with_recorded(SPACE, predicted, recorded)}


def test_good_predictions_get_no_remark() -> None:
    found = compare(lambda a: a)
    assert [g.remarks for g in found.values()] == [(), (), ()]
    assert [g.delay for g in found.values()] == [0, 0, 0]
    assert found["gripper"].gripper == 1
    assert found["position"].dims[0].correlation == pytest.approx(1, abs=0.01)
    assert [d.name for d in found["position"].dims] == ["x", "y", "z"]


@pytest.mark.parametrize("late", [3, -2])
def test_a_delay_is_found_in_deltas_and_in_absolute_values(late: int) -> None:
    found = compare(lambda a: np.roll(a, late, 0))
    assert (found["position"].delay, found["joints"].delay) == (late, late)
    word = "3 control steps late" if late > 0 else "2 control steps early"
    assert word in found["position"].remarks[0]


def test_a_mirrored_dim_and_a_wrong_scale_are_named() -> None:
    found = compare(lambda a: a * np.array([-1, 1, 4, 1, 0.2, 1], np.float32))
    assert found["position"].remarks == (
        f"x is mirrored (correlation {found['position'].dims[0].correlation:.2f})",
        "z moves 4 times as much as recorded",
    )
    assert found["joints"].remarks == ("1 moves 0.2 times as much as recorded",)
    assert found["position"].delay == 0


def test_an_opposite_gripper_is_named() -> None:
    found = compare(lambda a: a * np.array([1, 1, 1, 1, 1, -1], np.float32))
    assert found["gripper"].gripper == 0
    assert found["gripper"].remarks == ("the gripper does the opposite on 100 % of the steps",)


def test_a_policy_that_follows_nothing_is_named() -> None:
    rng = np.random.default_rng(2)
    found = compare(lambda a: rng.normal(size=a.shape).astype(np.float32))
    assert "follows the recorded motion little" in found["position"].remarks[0]
    assert found["position"].delay == 0


def test_constant_and_short_recordings_have_no_correlation() -> None:
    still = [np.zeros((60, 6), np.float32)]
    assert compare_with_recorded(SPACE, still, still)[0].correlation is None
    short = [r[:5] for r in record(1)]
    assert compare_with_recorded(SPACE, short, short)[0].correlation is None


def test_an_episode_shorter_than_the_largest_delay_is_compared() -> None:
    recorded = [*record(), record(1, 5)[0]]
    found = {g.group: g for g in compare_with_recorded(SPACE, recorded, recorded)}
    assert (found["position"].delay, found["position"].correlation) == (0, pytest.approx(1))
