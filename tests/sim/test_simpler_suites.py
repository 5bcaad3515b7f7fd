from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from anyvla.evaluation.results import EpisodeResult
from anyvla.evaluation.statistics import summarise
from anyvla_sim.simpler_motion import (
    DOWN,
    STICKY,
    StickyGripper,
    axis_angle,
    euler,
    matrix,
    quaternion_xyzw,
    turned,
)
from anyvla_sim.simpler_suites import DRAWERS, NAMES, POSES, played, suite

angle = st.floats(-np.pi, np.pi)
CANS, DOORS = (
    [f"pick-coke-can-{pose}" for pose in POSES],
    [f"{v}-{d}-drawer" for v in ("open", "close") for d in DRAWERS],
)


def test_counts_are_those_of_the_authors_scripts() -> None:
    """Episodes by suite and task: variants times places."""
    counts = {name: {task.name: task.episodes for task in suite(name).tasks} for name in NAMES}
    assert set(counts["widowx"].values()) == {24}
    assert len(counts["widowx"]) == 4
    matching, variants = counts["google-visual-matching"], counts["google-variant-aggregation"]
    apple = "place-apple-in-drawer"
    assert matching == {
        **dict.fromkeys(CANS, 4 * 25),
        "move-near": 4 * 60,
        **dict.fromkeys(DOORS, 4 * 9),
        apple: 4 * 27,
    }
    assert variants == {
        **dict.fromkeys(CANS, 9 * 25),
        "move-near": 8 * 60,
        **dict.fromkeys(DOORS, 7 * 9),
        apple: 7 * 27,
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_start_state_is_another(name: str) -> None:
    for one in played(name).values():
        starts = [one.start(seed) for seed in range(one.count)]
        assert len({repr(start) for start in starts}) == one.count
        share = Counter(repr(start.variant) for start in starts)
        assert set(share.values()) == {len(one.places)}  # as many of each variant
        first = {repr(start.variant) for start in starts[: len(one.variants)]}
        assert len(first) == len(one.variants)  # few episodes see them all


def test_places_are_those_of_the_scripts() -> None:
    cans = played("google-visual-matching")["pick-coke-can-horizontal"].places
    objects = np.array([place.object for place in cans])
    assert (objects.min(0).tolist(), objects.max(0).tolist()) == ([-0.35, -0.02], [-0.12, 0.42])
    assert {place.robot for place in cans} == {(0.35, 0.20)}
    home = played("google-variant-aggregation")["open-top-drawer"].places
    robots = np.array([place.robot for place in home])
    assert (robots.min(0).tolist(), robots.max(0).tolist()) == ([0.65, -0.2], [0.85, 0.2])
    assert [start.place.episode for start in map(played("widowx")["carrot-on-plate"].start, range(24))] == [*range(24)]


def test_limits_and_judgement() -> None:
    widowx = suite("widowx")
    assert {task.name: widowx.limit(task.name) for task in widowx.tasks} == {
        "spoon-on-towel": 60,
        "carrot-on-plate": 60,
        "stack-cubes": 60,
        "eggplant-in-basket": 120,
    }
    google = suite("google-visual-matching")
    limits = [google.limit(name) for name in ("move-near", "open-top-drawer", "place-apple-in-drawer")]
    assert limits == [80, 113, 200]
    assert all(suite(name).judged == "end" for name in NAMES)


def test_the_official_aggregation_follows_from_plain_means() -> None:
    """Mean over variants, then over poses or drawers: with made-up successes, computed both ways."""
    rng = np.random.default_rng(0)
    own = suite("google-variant-aggregation")
    groups = {name: list(tasks) for name, tasks in own.groups.items()}
    assert sorted(groups) == ["move-near", "open-close-drawer", "pick-coke-can", "place-apple-in-drawer"]
    lines, by_variant = [], {}
    for name, one in played(own.name).items():
        for seed in range(one.count):
            won = bool(rng.random() < 0.4)
            by_variant.setdefault(name, {}).setdefault(repr(one.start(seed).variant), []).append(won)
            lines.append(
                EpisodeResult(
                    benchmark=f"simpler/{own.name}", condition="told", task=name, told=name, instruction="x", seed=seed,
                    outcome="success" if won else "failure", reached=name if won else None, steps=1, latency_ms=1.0,
                    checkpoint="c", protocol={"groups": groups},
                )
            )  # fmt: skip
    told = summarise(lines).told
    assert told is not None
    for group, tasks in groups.items():
        official = np.mean([np.mean([np.mean(episodes) for episodes in by_variant[task].values()]) for task in tasks])
        assert told.groups[group].value == pytest.approx(official)
    assert told.group_mean is not None
    assert told.group_mean.value == pytest.approx(np.mean([told.groups[group].value for group in groups]))


@given(angle, angle, angle)
def test_rotations_against_scipy(roll: float, pitch: float, yaw: float) -> None:
    angles = np.array([roll, pitch, yaw])
    theirs = Rotation.from_euler("xyz", angles)
    assert np.allclose(Rotation.from_rotvec(axis_angle(angles)).as_matrix(), theirs.as_matrix(), atol=1e-7)
    assert np.linalg.norm(axis_angle(angles)) <= np.pi + 1e-9
    rotation = theirs.as_matrix()
    assert np.allclose(Rotation.from_euler("xyz", euler(rotation)).as_matrix(), rotation, atol=1e-6)
    back = quaternion_xyzw(rotation)
    assert back[3] >= 0
    assert np.allclose(Rotation.from_quat(back).as_matrix(), rotation, atol=1e-7)
    assert np.allclose(matrix(np.roll(back, 1)), rotation, atol=1e-7)


@pytest.mark.parametrize("pitch", [np.pi / 2, -np.pi / 2])
def test_a_gripper_that_points_up_or_down(pitch: float) -> None:
    rotation = Rotation.from_euler("xyz", [0.3, pitch, 0.2]).as_matrix()
    assert np.allclose(Rotation.from_euler("xyz", euler(rotation)).as_matrix(), rotation, atol=1e-6)
    assert np.allclose(euler(DOWN @ DOWN.T), 0)


def test_a_robot_stands_turned_by_half() -> None:
    for yaw in (0.0, -0.09, 0.3):
        stands = Rotation.from_quat(np.roll(turned(yaw), -1)).as_matrix()
        assert np.allclose(stands, Rotation.from_euler("z", np.pi + yaw).as_matrix(), atol=1e-9)


def test_the_sticky_gripper() -> None:
    gripper = StickyGripper()
    assert gripper(1.0) == 0  # nothing came before it
    assert [gripper(1.0) for _ in range(3)] == [0, 0, 0]
    closing = [gripper(0.0) for _ in range(STICKY)]
    assert closing == [1.0] * STICKY  # 1 closes; held though nothing changes any more
    assert gripper(0.0) == 0
    assert gripper(0.7) == pytest.approx(-0.7)
    held = [gripper(0.0) for _ in range(STICKY - 1)]  # asked to close meanwhile: lost
    assert held == pytest.approx([-0.7] * (STICKY - 1))
    assert gripper(0.2) == pytest.approx(-0.2)  # a small change passes as it is
