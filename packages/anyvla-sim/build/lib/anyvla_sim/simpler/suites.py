"""The suites of SimplerEnv (arXiv 2405.05941): scenes, start states and number of episodes.

They follow the authors' scripts (scripts/*_bridge.sh, *_visual_matching.sh, *_variant_agg.sh of
simpler-env/SimplerEnv). Poses of an object are separate tasks. The start states of a task are all variants of its scene
times all placements. Each variant has equally many placements, so the mean over a task's episodes is the authors' mean
over variants, and the mean over the tasks of a group is their mean over poses, or over drawers, opening and closing
(tools/calc_metrics_evaluation_videos.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Mapping, Sequence

import numpy as np

from anyvla_sim.base import Suite, Task

NAMES = ("widowx", "google-visual-matching", "google-variant-aggregation", "google-cameras")


@dataclass(frozen=True)
class Variant:
    """A way to build a scene."""

    environment: str  # the id of the simulator's environment
    scene: str  # its stage
    settings: Mapping[str, Any] = field(default_factory=dict)  # further arguments of the environment


@dataclass(frozen=True)
class Placement:
    """The start positions of robot and object."""

    robot: tuple[float, float]  # x, y (m)
    yaw: float = 0.0  # of the robot, relative to facing the table (rad)
    overlay: str | None = None  # a photograph as background; None: everything is simulated
    object: tuple[float, float] | None = None  # x, y (m)
    episode: int | None = None  # the number of one of the environment's own arrangements of objects


@dataclass(frozen=True)
class TaskStarts:
    """A task and its start states."""

    name: str
    instruction: str | None  # None: the environment has it
    horizon: int
    variants: Sequence[Variant]
    places: Sequence[Placement]
    robot: str = "google_robot_static"  # the simulator's name
    scene: str | None = None  # None: the task's name

    @property
    def task(self) -> Task:
        """The task, as the suite lists it. The authors play each start state once."""
        instructions = () if self.instruction is None else (self.instruction,)
        return Task(self.name, self.scene or self.name, instructions, horizon=self.horizon, episodes=self.count)

    @property
    def count(self) -> int:
        """The number of start states."""
        return len(self.variants) * len(self.places)

    def start(self, seed: int) -> tuple[Variant, Placement]:
        """Return start state number `seed`, 0 .. count - 1. Variants alternate, so a few episodes cover them all."""
        return self.variants[seed % len(self.variants)], self.places[seed // len(self.variants)]


def _make_grid(low: Sequence[float], high: Sequence[float], count: Sequence[int]) -> list[tuple[float, float]]:
    """Return a grid of (x, y) that includes both ends of each axis."""
    xs, ys = (np.linspace(a, b, n).tolist() for a, b, n in zip(low, high, count))
    return [(x, y) for x in xs for y in ys]


# WidowX: in front of a table, or of a sink with another camera.

_TABLE = ("widowx", (0.147, 0.028), "bridge_table_1_v1", "bridge_real_eval_1.png")
_SINK = ("widowx_sink_camera_setup", (0.127, 0.06), "bridge_table_1_v2", "bridge_sink.png")
_STACK = "StackGreenCubeOnYellowCubeBakedTex"
_WIDOWX = (
    ("spoon-on-towel", "PutSpoonOnTableClothInScene-v0", "put the spoon on the towel", 60, _TABLE),
    ("carrot-on-plate", "PutCarrotOnPlateInScene-v0", "put carrot on plate", 60, _TABLE),
    ("stack-cubes", f"{_STACK}InScene-v0", "stack the green block on the yellow block", 60, _TABLE),
    ("eggplant-in-basket", "PutEggplantInBasketScene-v0", "put eggplant into yellow basket", 120, _SINK),
)


def _make_widowx() -> list[TaskStarts]:
    played = []
    for name, environment, instruction, horizon, (robot, xy, scene, overlay) in _WIDOWX:
        places = [Placement(xy, overlay=overlay, episode=episode) for episode in range(24)]
        played.append(TaskStarts(name, instruction, horizon, [Variant(environment, scene)], places, robot))
    return played


# The Google robot. Its arm and the table's top were painted in four ways to match the photographs.

URDFS = (
    None,
    "recolor_tabletop_visual_matching_1",
    "recolor_tabletop_visual_matching_2",
    "recolor_cabinet_visual_matching_1",
)
POSES = {"horizontal": "lr_switch", "standing": "upright", "vertical": "laid_vertically"}  # of the can
DRAWERS = ("top", "middle", "bottom")
_COUNTER, _CAN = "google_pick_coke_can_1_v4", "GraspSingleOpenedCokeCan{}InScene-v0"
_BEFORE_DRAWERS = {  # photograph: x, y, yaw of the robot
    "a0": (0.644, -0.179, -0.03),
    "a1": (0.765, -0.182, -0.02),
    "a2": (0.889, -0.203, -0.06),
    "b0": (0.652, 0.009, 0.0),
    "b1": (0.752, 0.009, 0.0),
    "b2": (0.851, 0.035, 0.0),
    "c0": (0.665, 0.224, 0.0),
    "c1": (0.765, 0.222, -0.025),
    "c2": (0.865, 0.222, -0.025),
}
_APPLES = _make_grid((-0.08, -0.02), (-0.02, 0.08), (3, 3))


def _make_pick_can(variants: Sequence[Variant], overlay: str | None = None) -> list[TaskStarts]:
    """Return a task for each pose of the can, from `variants` of the counter."""
    cans = _make_grid((-0.35, -0.02), (-0.12, 0.42), (5, 5))
    places = [Placement((0.35, 0.20), overlay=overlay, object=xy) for xy in cans]
    tasks = []
    for pose, option in POSES.items():
        posed = [Variant(v.environment, v.scene, {option: True, **v.settings}) for v in variants]
        tasks.append(TaskStarts(f"pick-coke-can-{pose}", "pick coke can", 80, posed, places))
    return tasks


def _make_move_near(variants: Sequence[Variant], overlay: str | None = None) -> list[TaskStarts]:
    places = [Placement((0.35, 0.21), -0.09, overlay, episode=episode) for episode in range(60)]
    return [TaskStarts("move-near", None, 80, variants, places)]


def _make_drawers(variants: Sequence[Variant], places: Sequence[Placement]) -> list[TaskStarts]:
    """Return a task for each drawer, to open and to close. `variants` have no environment name yet."""
    tasks = []
    for verb, scene in (("open", "closed-drawers"), ("close", None)):  # to open, all drawers start closed
        for drawer in DRAWERS:
            name = f"{verb.title()}{drawer.title()}DrawerCustomInScene-v0"
            named = [Variant(name, v.scene, v.settings) for v in variants]
            instruction = f"{verb} {drawer} drawer"
            tasks.append(TaskStarts(f"{verb}-{drawer}-drawer", instruction, 113, named, places, scene=scene))
    return tasks


def _make_place_apple(variants: Sequence[Variant], places: Sequence[Placement], model: str) -> list[TaskStarts]:
    """Return the task with two instructions in a row: "open top drawer", then "place apple into top drawer"."""
    name = "PlaceIntoClosedTopDrawerCustomInScene-v0"
    variants = [Variant(name, v.scene, {**v.settings, "model_ids": model}) for v in variants]
    return [TaskStarts("place-apple-in-drawer", None, 200, variants, places)]


def _make_visual_matching() -> list[TaskStarts]:
    counter = [Variant(_CAN.format(""), _COUNTER, {"urdf_version": urdf}) for urdf in URDFS]
    near = [Variant("MoveNearGoogleBakedTexInScene-v0", _COUNTER, {"urdf_version": urdf}) for urdf in URDFS]
    look = {"shader_dir": "rt", "station_name": "mk_station_recolor", "light_mode": "simple"}
    cabinet = [
        Variant("", "dummy_drawer", {**look, "disable_bad_material": True, "urdf_version": urdf}) for urdf in URDFS
    ]
    before = {key: Placement((x, y), yaw, f"open_drawer_{key}.png") for key, (x, y, yaw) in _BEFORE_DRAWERS.items()}
    with_apple = [
        Placement(p.robot, p.yaw, p.overlay, object=xy)
        for p in (before[k] for k in ("a0", "b0", "c0"))
        for xy in _APPLES
    ]
    return [
        *_make_pick_can(counter, "google_coke_can_real_eval_1.png"),
        *_make_move_near(near, "google_move_near_real_eval_1.png"),
        *_make_drawers(cabinet, [Placement(p.robot, p.yaw, p.overlay, object=(0.0, 0.0)) for p in before.values()]),
        *_make_place_apple(cabinet, with_apple, "baked_apple_v2"),
    ]


def _make_variants(environment: str) -> list[Variant]:
    """Return the variants of the counter: the base scene, backgrounds, table tops, lights."""
    scenes = [_COUNTER, f"{_COUNTER}_alt_background", f"{_COUNTER}_alt_background_2"]
    scenes += [f"Baked_sc1_staging_objaverse_cabinet{number}_h870" for number in (1, 2)]
    lights = [{f"slightly_{light}_lighting": True} for light in ("darker", "brighter")]
    return [Variant(environment, s) for s in scenes] + [Variant(environment, _COUNTER, light) for light in lights]


def _make_variant_aggregation() -> list[TaskStarts]:
    can, near = _CAN.format(""), "MoveNearGoogleInScene-v0"
    crowd = _CAN.format("Distractor")
    crowded = [Variant(crowd, _COUNTER), Variant(crowd, _COUNTER, {"distractor_config": "more"})]
    home, light = "frl_apartment_stage_simple", {"shader_dir": "rt"}
    cabinet = [
        *(Variant("", scene, light) for scene in (home, "modern_bedroom_no_roof", "modern_office_no_roof")),
        *(Variant("", home, {**light, "light_mode": mode}) for mode in ("brighter", "darker")),
        *(Variant("", home, {**light, "station_name": name}) for name in ("mk_station2", "mk_station3")),
    ]
    standing = [Placement(xy, object=(0.0, 0.0)) for xy in _make_grid((0.65, -0.2), (0.85, 0.2), (3, 3))]
    with_apple = [Placement(xy, object=at) for xy in _make_grid((0.65, -0.2), (0.65, 0.2), (1, 3)) for at in _APPLES]
    return [
        *_make_pick_can(_make_variants(can) + crowded),
        *_make_move_near([*_make_variants(near), Variant(near, _COUNTER, {"no_distractor": True})]),
        *_make_drawers(cabinet, standing),
        *_make_place_apple(cabinet, with_apple, "apple"),
    ]


def _make_cameras() -> list[TaskStarts]:
    """Return the tasks with two other camera poses, which the authors leave out of the aggregation."""
    turned = ("AltGoogleCamera", "AltGoogleCamera2")
    return [
        *_make_pick_can([Variant(_CAN.format(camera), _COUNTER) for camera in turned]),
        *_make_move_near([Variant(f"MoveNear{camera}InScene-v0", _COUNTER) for camera in turned]),
    ]


_GROUPS = {  # first word of a task of the Google robot -> the group whose mean is reported
    "pick": "pick-coke-can",
    "move": "move-near",
    "open": "open-close-drawer",
    "close": "open-close-drawer",
    "place": "place-apple-in-drawer",
}
_PLAYED = dict(zip(NAMES, (_make_widowx, _make_visual_matching, _make_variant_aggregation, _make_cameras)))


def load_tasks(suite: str) -> Mapping[str, TaskStarts]:
    """Return the tasks of a suite of NAMES by name, with their start states."""
    return {starts.name: starts for starts in _PLAYED[suite]()}


def make_suite(name: str) -> Suite:
    """Return the suite `name`, one of NAMES. As for its authors, the goal must hold after the last action."""
    found = load_tasks(name)
    groups: dict[str, list[str]] = {}
    for task in found:
        group = _GROUPS.get(task.partition("-")[0])
        if group is not None:
            groups.setdefault(group, []).append(task)
    longest, most = (max(getattr(s, key) for s in found.values()) for key in ("horizon", "count"))
    return Suite(name, [s.task for s in found.values()], longest, episodes=most, groups=groups, success_rule="end")
