from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from anyvla.evaluation.results import EpisodeResult
from anyvla.evaluation.statistics import summarize
from anyvla_sim.simpler.motion import (
    DOWN,
    StickyGripper,
    euler_to_axis_angle,
    matrix_to_euler,
    matrix_to_quaternion,
    quaternion_to_matrix,
    yaw_to_quaternion,
)
from anyvla_sim.simpler.suites import DRAWERS, NAMES, POSES, load_tasks, make_suite

angle = st.floats(-np.pi, np.pi)
CANS, DOORS = (
    [f"pick-coke-can-{pose}" for pose in POSES],
    [f"{v}-{d}-drawer" for v in ("open", "close") for d in DRAWERS],
)


def test_counts_are_those_of_the_authors_scripts() -> None:
    """Each task has variants times placements episodes."""
    counts = {name: {task.name: task.episodes for task in make_suite(name).tasks} for name in NAMES}
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
def test_start_states_differ(name: str) -> None:
    for one in load_tasks(name).values():
        starts = [one.start(seed) for seed in range(one.count)]
        assert len({repr(start) for start in starts}) == one.count
        share = Counter(repr(variant) for variant, _ in starts)
        assert set(share.values()) == {len(one.places)}  # each variant equally often
        first = {repr(variant) for variant, _ in starts[: len(one.variants)]}
        assert len(first) == len(one.variants)  # the first episodes cover them all


def get_placements(suite: str, task: str) -> tuple[set[object], list[object]]:
    """Return the robot's positions, and the object's positions or the numbers of its arrangements."""
    found = load_tasks(suite)[task].places
    return {(p.robot, p.yaw, p.overlay) for p in found}, [p.episode if p.object is None else p.object for p in found]


def make_grid(low: tuple[float, float], high: tuple[float, float], count: tuple[int, int]) -> list[tuple[float, float]]:
    return [(x, y) for x in np.linspace(low[0], high[0], count[0]) for y in np.linspace(low[1], high[1], count[1])]


def test_placements_of_widowx() -> None:
    """As in scripts/octo_bridge.sh and others: two set-ups with 24 arrangements of the objects each."""
    table = {((0.147, 0.028), 0.0, "bridge_real_eval_1.png")}
    for task in ("spoon-on-towel", "carrot-on-plate", "stack-cubes"):
        assert get_placements("widowx", task) == (table, list(range(24)))
    assert get_placements("widowx", "eggplant-in-basket") == (
        {((0.127, 0.06), 0.0, "bridge_sink.png")},
        list(range(24)),
    )


def test_placements_of_cans_and_near() -> None:
    """As in scripts/rt1_pick_coke_can_visual_matching.sh, rt1_move_near_visual_matching.sh and *_variant_agg.sh."""
    cans = make_grid((-0.35, -0.02), (-0.12, 0.42), (5, 5))
    for name, overlays in (
        ("google-visual-matching", ("google_coke_can_real_eval_1.png", "google_move_near_real_eval_1.png")),
        ("google-variant-aggregation", (None, None)),
        ("google-cameras", (None, None)),
    ):
        for task in CANS:
            robots, objects = get_placements(name, task)
            assert robots == {((0.35, 0.20), 0.0, overlays[0])}
            assert np.array(objects) == pytest.approx(np.array(cans))
        assert get_placements(name, "move-near") == ({((0.35, 0.21), -0.09, overlays[1])}, list(range(60)))


# scripts/rt1_drawer_visual_matching.sh: the photograph, and x, y and yaw of the robot.
BEFORE_DRAWERS = {
    "open_drawer_a0.png": (0.644, -0.179, -0.03),
    "open_drawer_a1.png": (0.765, -0.182, -0.02),
    "open_drawer_a2.png": (0.889, -0.203, -0.06),
    "open_drawer_b0.png": (0.652, 0.009, 0.0),
    "open_drawer_b1.png": (0.752, 0.009, 0.0),
    "open_drawer_b2.png": (0.851, 0.035, 0.0),
    "open_drawer_c0.png": (0.665, 0.224, 0.0),
    "open_drawer_c1.png": (0.765, 0.222, -0.025),
    "open_drawer_c2.png": (0.865, 0.222, -0.025),
}


def test_placements_before_drawers() -> None:
    matching = {((x, y), yaw, photograph) for photograph, (x, y, yaw) in BEFORE_DRAWERS.items()}
    simulated = {((x, y), 0.0, None) for x, y in make_grid((0.65, -0.2), (0.85, 0.2), (3, 3))}
    for task in DOORS:
        for name, expected in (("google-visual-matching", matching), ("google-variant-aggregation", simulated)):
            robots, objects = get_placements(name, task)
            assert sorted(map(repr, _rounded(robots))) == sorted(map(repr, _rounded(expected)))
            assert objects == [(0.0, 0.0)] * 9
    apples = make_grid((-0.08, -0.02), (-0.02, 0.08), (3, 3))
    for name, expected in (
        ("google-visual-matching", {found for found in matching if str(found[2])[-5] == "0"}),
        ("google-variant-aggregation", {((0.65, y), 0.0, None) for y in (-0.2, 0.0, 0.2)}),
    ):
        robots, objects = get_placements(name, "place-apple-in-drawer")
        assert sorted(map(repr, _rounded(robots))) == sorted(map(repr, _rounded(expected)))
        assert np.array(objects) == pytest.approx(np.array(3 * apples))


def _rounded(robots: set[object]) -> list[object]:
    return [(round(float(x), 6), round(float(y), 6), yaw, overlay) for (x, y), yaw, overlay in robots]  # type: ignore


COUNTER, CABINET = "google_pick_coke_can_1_v4", "frl_apartment_stage_simple"
PAINTED = (
    None,
    "recolor_tabletop_visual_matching_1",
    "recolor_tabletop_visual_matching_2",
    "recolor_cabinet_visual_matching_1",
)


def get_variants(suite: str, task: str) -> list[tuple[str, str, dict[str, object]]]:
    return [(v.environment, v.scene, dict(v.settings)) for v in load_tasks(suite)[task].variants]


def test_scenes_of_widowx() -> None:
    assert {task: get_variants("widowx", task) for task in load_tasks("widowx")} == {
        "spoon-on-towel": [("PutSpoonOnTableClothInScene-v0", "bridge_table_1_v1", {})],
        "carrot-on-plate": [("PutCarrotOnPlateInScene-v0", "bridge_table_1_v1", {})],
        "stack-cubes": [("StackGreenCubeOnYellowCubeBakedTexInScene-v0", "bridge_table_1_v1", {})],
        "eggplant-in-basket": [("PutEggplantInBasketScene-v0", "bridge_table_1_v2", {})],
    }
    robots = {task: one.robot for task, one in load_tasks("widowx").items()}
    assert robots == {**dict.fromkeys(robots, "widowx"), "eggplant-in-basket": "widowx_sink_camera_setup"}


CAN_POSES = {
    "pick-coke-can-horizontal": {"lr_switch": True},
    "pick-coke-can-standing": {"upright": True},
    "pick-coke-can-vertical": {"laid_vertically": True},
}


def test_scenes_of_visual_matching() -> None:
    """The scripts *_visual_matching.sh: four paints of arm and table."""
    for task, pose in CAN_POSES.items():
        assert get_variants("google-visual-matching", task) == [
            ("GraspSingleOpenedCokeCanInScene-v0", COUNTER, {**pose, "urdf_version": paint}) for paint in PAINTED
        ]
    assert get_variants("google-visual-matching", "move-near") == [
        ("MoveNearGoogleBakedTexInScene-v0", COUNTER, {"urdf_version": paint}) for paint in PAINTED
    ]
    look = {"shader_dir": "rt", "station_name": "mk_station_recolor", "light_mode": "simple"}
    look = {**look, "disable_bad_material": True}
    for verb in ("Open", "Close"):
        for drawer in ("Top", "Middle", "Bottom"):
            task = f"{verb}-{drawer}-drawer".lower()
            assert get_variants("google-visual-matching", task) == [
                (f"{verb}{drawer}DrawerCustomInScene-v0", "dummy_drawer", {**look, "urdf_version": paint})
                for paint in PAINTED
            ]
    apple = {**look, "model_ids": "baked_apple_v2"}
    assert get_variants("google-visual-matching", "place-apple-in-drawer") == [
        ("PlaceIntoClosedTopDrawerCustomInScene-v0", "dummy_drawer", {**apple, "urdf_version": paint})
        for paint in PAINTED
    ]


def test_scenes_of_variant_aggregation_and_cameras() -> None:
    """The scripts *_variant_agg.sh: backgrounds, table tops, light, distractors; and *_alt_camera ones."""
    can, near = "GraspSingleOpenedCokeCanInScene-v0", "MoveNearGoogleInScene-v0"
    crowded = "GraspSingleOpenedCokeCanDistractorInScene-v0"
    counters = [COUNTER, f"{COUNTER}_alt_background", f"{COUNTER}_alt_background_2"]
    counters += ["Baked_sc1_staging_objaverse_cabinet1_h870", "Baked_sc1_staging_objaverse_cabinet2_h870"]
    lights = [{"slightly_darker_lighting": True}, {"slightly_brighter_lighting": True}]
    for task, pose in CAN_POSES.items():
        assert get_variants("google-variant-aggregation", task) == [
            *((can, counter, pose) for counter in counters),
            *((can, COUNTER, {**pose, **light}) for light in lights),
            (crowded, COUNTER, pose),
            (crowded, COUNTER, {**pose, "distractor_config": "more"}),
        ]
        assert get_variants("google-cameras", task) == [
            (f"GraspSingleOpenedCokeCan{camera}InScene-v0", COUNTER, pose)
            for camera in ("AltGoogleCamera", "AltGoogleCamera2")
        ]
    assert get_variants("google-variant-aggregation", "move-near") == [
        *((near, counter, {}) for counter in counters),
        *((near, COUNTER, light) for light in lights),
        (near, COUNTER, {"no_distractor": True}),
    ]
    traced: dict[str, object] = {"shader_dir": "rt"}
    homes = [
        (CABINET, traced),
        ("modern_bedroom_no_roof", traced),
        ("modern_office_no_roof", traced),
        (CABINET, {**traced, "light_mode": "brighter"}),
        (CABINET, {**traced, "light_mode": "darker"}),
        (CABINET, {**traced, "station_name": "mk_station2"}),
        (CABINET, {**traced, "station_name": "mk_station3"}),
    ]
    assert get_variants("google-variant-aggregation", "close-middle-drawer") == [
        ("CloseMiddleDrawerCustomInScene-v0", home, settings) for home, settings in homes
    ]
    assert get_variants("google-variant-aggregation", "place-apple-in-drawer") == [
        ("PlaceIntoClosedTopDrawerCustomInScene-v0", home, {**settings, "model_ids": "apple"})
        for home, settings in homes
    ]


def test_instructions_equal_those_of_the_environments() -> None:
    """As in get_language_instruction of ManiSkill2_real2sim; two tasks have instructions that depend on the scene."""
    instructions = {task.name: list(task.instructions) for name in NAMES for task in make_suite(name).tasks}
    assert instructions == {
        "spoon-on-towel": ["put the spoon on the towel"],
        "carrot-on-plate": ["put carrot on plate"],
        "stack-cubes": ["stack the green block on the yellow block"],
        "eggplant-in-basket": ["put eggplant into yellow basket"],
        **{can: ["pick coke can"] for can in CANS},
        "move-near": [],
        **{f"{verb}-{drawer}-drawer": [f"{verb} {drawer} drawer"] for verb in ("open", "close") for drawer in DRAWERS},
        "place-apple-in-drawer": [],
    }
    assert DRAWERS == ("top", "middle", "bottom")


def test_limits_and_judgment() -> None:
    widowx = make_suite("widowx")
    assert {task.name: widowx.limit(task.name) for task in widowx.tasks} == {
        "spoon-on-towel": 60,
        "carrot-on-plate": 60,
        "stack-cubes": 60,
        "eggplant-in-basket": 120,
    }
    for name in ("google-visual-matching", "google-variant-aggregation"):
        google = make_suite(name)
        assert {task.name: google.limit(task.name) for task in google.tasks} == {
            **dict.fromkeys((*CANS, "move-near"), 80),
            **dict.fromkeys(DOORS, 113),
            "place-apple-in-drawer": 200,
        }
    assert all(make_suite(name).success_rule == "end" for name in NAMES)
    assert {name: (make_suite(name).horizon, make_suite(name).episodes, make_suite(name).starts) for name in NAMES} == {
        "widowx": (120, 24, None),
        "google-visual-matching": (200, 240, None),
        "google-variant-aggregation": (200, 480, None),
        "google-cameras": (80, 120, None),
    }


def test_groups_are_those_of_the_published_table() -> None:
    """tools/calc_metrics_evaluation_videos.py: opening and closing are one number."""
    both = {"pick-coke-can": CANS, "move-near": ["move-near"], "open-close-drawer": DOORS}
    apple = {"place-apple-in-drawer": ["place-apple-in-drawer"]}
    assert make_suite("google-visual-matching").groups == {**both, **apple}
    assert make_suite("google-variant-aggregation").groups == {**both, **apple}
    assert make_suite("google-cameras").groups == {"pick-coke-can": CANS, "move-near": ["move-near"]}
    assert make_suite("widowx").groups == {}


def test_the_official_aggregation_follows_from_plain_means() -> None:
    """Compute the mean over variants, then over poses or drawers, both ways from made-up successes."""
    rng = np.random.default_rng(0)
    own = make_suite("google-variant-aggregation")
    groups = {name: list(tasks) for name, tasks in own.groups.items()}
    assert sorted(groups) == ["move-near", "open-close-drawer", "pick-coke-can", "place-apple-in-drawer"]
    lines, by_variant = [], {}
    for name, one in load_tasks(own.name).items():
        for seed in range(one.count):
            won = bool(rng.random() < 0.4)
            by_variant.setdefault(name, {}).setdefault(repr(one.start(seed)[0]), []).append(won)
            lines.append(
                EpisodeResult(
                    benchmark=f"simpler/{own.name}", condition="original", task=name, instructed=name,
                    instruction="x", seed=seed,
                    outcome="success" if won else "failure", reached=name if won else None, steps=1, latency_ms=1.0,
                    checkpoint="c", protocol={"groups": groups},
                )
            )  # fmt: skip
    summary = summarize(lines).original
    assert summary is not None
    for group, tasks in groups.items():
        official = np.mean([np.mean([np.mean(episodes) for episodes in by_variant[task].values()]) for task in tasks])
        assert summary.groups[group].value == pytest.approx(official)
    assert summary.mean_over_groups is not None
    assert summary.mean_over_groups.value == pytest.approx(np.mean([summary.groups[group].value for group in groups]))


@given(angle, angle, angle)
def test_rotations_against_scipy(roll: float, pitch: float, yaw: float) -> None:
    angles = np.array([roll, pitch, yaw])
    theirs = Rotation.from_euler("xyz", angles)
    assert np.allclose(Rotation.from_rotvec(euler_to_axis_angle(angles)).as_matrix(), theirs.as_matrix(), atol=1e-7)
    assert np.linalg.norm(euler_to_axis_angle(angles)) <= np.pi + 1e-9
    rotation = theirs.as_matrix()
    assert np.allclose(Rotation.from_euler("xyz", matrix_to_euler(rotation)).as_matrix(), rotation, atol=1e-6)
    back = matrix_to_quaternion(rotation)
    assert back[3] >= 0
    assert np.allclose(Rotation.from_quat(back).as_matrix(), rotation, atol=1e-7)
    assert np.allclose(quaternion_to_matrix(np.roll(back, 1)), rotation, atol=1e-7)


@pytest.mark.parametrize("pitch", [np.pi / 2, -np.pi / 2])
def test_a_gripper_that_points_up_or_down(pitch: float) -> None:
    rotation = Rotation.from_euler("xyz", [0.3, pitch, 0.2]).as_matrix()
    assert np.allclose(Rotation.from_euler("xyz", matrix_to_euler(rotation)).as_matrix(), rotation, atol=1e-6)
    assert np.allclose(matrix_to_euler(DOWN @ DOWN.T), 0)


def test_a_robot_starts_turned_by_half_a_turn() -> None:
    for yaw in (0.0, -0.09, 0.3):
        turned = Rotation.from_quat(np.roll(yaw_to_quaternion(yaw), -1)).as_matrix()
        assert np.allclose(turned, Rotation.from_euler("z", np.pi + yaw).as_matrix(), atol=1e-9)


def test_the_sticky_gripper() -> None:
    gripper = StickyGripper()
    assert gripper(1.0) == 0  # the first command is no change
    assert [gripper(1.0) for _ in range(3)] == [0, 0, 0]
    closing = [gripper(0.0) for _ in range(15)]  # sticky_gripper_num_repeat of simpler_env/policies/octo
    assert closing == [1.0] * 15  # 1 closes; held though nothing changes any more
    assert gripper(0.0) == 0
    assert gripper(0.7) == pytest.approx(-0.7)
    held = [gripper(0.0) for _ in range(14)]  # asked to close meanwhile: lost
    assert held == pytest.approx([-0.7] * 14)
    assert gripper(0.5) == -0.5  # a change of no more than a half passes as it is, and is not repeated
    assert gripper(0.5) == 0
