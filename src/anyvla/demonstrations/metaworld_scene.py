"""Label frames of Meta-World with ground truth: visible parts, positions, colors, and how far a joint is open.

Positions come from a rendering of geom ids, the gripper's from its projection through the camera. Poses, colors of
objects and the crop of the image vary, so that no answer follows from the scene alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, UInt8

from anyvla_sim.metaworld.benchmark import VIEWS, MetaWorld
from anyvla_sim.metaworld.environment import MetaWorldEnvironment
from anyvla_sim.rendering import HIDDEN, Renderer, View

COLORS = {
    "red": (0.75, 0.08, 0.08),
    "green": (0.15, 0.6, 0.2),
    "blue": (0.1, 0.25, 0.8),
    "yellow": (0.9, 0.75, 0.1),
    "orange": (0.95, 0.45, 0.05),
    "purple": (0.5, 0.15, 0.6),
    "white": (0.9, 0.9, 0.9),
    "black": (0.06, 0.06, 0.06),
}
JITTER = 0.12  # maximum shift of the view in each direction, as a fraction of the camera's image
MOVES = 25  # maximum number of actions before a frame


@dataclass(frozen=True)
class _NamedPart:
    """A part with a name: the geoms of some materials, restricted to a body or to meshes if given."""

    materials: tuple[str, ...]
    body: str | None = None
    meshes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _SceneObject:
    """The object of a scene."""

    task: str  # any task of the scene
    parts: Mapping[str, _NamedPart]
    painted: tuple[str, ...]  # parts whose color varies
    joint: str
    full: float  # the joint's position when it is fully open (the button: pressed)


SCENES = {
    "drawer": _SceneObject(
        "drawer-open",
        {
            "cabinet": _NamedPart(("drawer_beige",)),
            "drawer": _NamedPart(("drawer_beige",), "drawer_link"),
            "handle": _NamedPart(("drawer_white",)),
        },
        ("cabinet",),
        "goal_slidey",
        -0.16,
    ),
    "window": _SceneObject(
        "window-open",
        {"window": _NamedPart(("window_red",)), "handle": _NamedPart(("window_white",))},
        ("window",),
        "window_slide",
        0.2,
    ),
    "door": _SceneObject(
        "door-open",
        {
            "cabinet": _NamedPart(("dl_metal2",)),
            "door": _NamedPart(("dl_metal2",), "door_link"),
            "handle": _NamedPart(("dl_metal",), meshes=("door_handle", "handle_base")),  # hinges share the metal
        },
        ("cabinet",),
        "doorjoint",
        -1.5,
    ),
    "button": _SceneObject(
        "button-press-topdown",
        {"box": _NamedPart(("btn_yellow", "btn_black"), "buttonbox"), "button": _NamedPart(("btn_red",))},
        ("box", "button"),
        "btnbox_joint",
        -0.06,
    ),
}
_PADS = ("rightpad", "leftpad")


@dataclass(frozen=True)
class VisiblePart:
    """A part that is visible in a picture."""

    x: float  # fraction of the width, 0 left
    y: float  # fraction of the height, 0 top
    area: float  # fraction of the pixels
    whole: bool  # the picture's edge does not cut it
    clear: float = 1.0  # fraction of its area within the picture that the robot does not hide
    color: str | None = None  # one of COLORS; None for parts with their stock color


@dataclass(frozen=True)
class FrameLabels:
    """The ground truth of one frame."""

    scene: str
    things: Mapping[str, VisiblePart]  # visible parts by name, "gripper" included
    opened: float  # fraction of the way from closed to open; of the button, from released to pressed
    gripper: float  # opening, 0 closed to 1 open


class SceneLabeler:
    """Makes frames with labels."""

    def __init__(self, size: int = 128, render: str | None = None) -> None:
        """`size` is in pixels a side. Raises ImportError without Meta-World."""
        self._benchmark = MetaWorld(render)
        self.environment: MetaWorldEnvironment = self._benchmark.make("half-open")
        self.size = size

    def frame(self, scene: str, rng: np.random.Generator) -> tuple[UInt8[np.ndarray, "H W 3"], FrameLabels]:
        """Return a frame of `scene` with its labels; `rng` determines pose, joint, colors and view."""
        self.environment.reset(SCENES[scene].task, int(rng.integers(2**31)))
        colors = self.paint(scene, rng)
        self.set_joint(scene, _sample_share(rng))
        action = np.append(rng.uniform(-1, 1, 3), rng.choice((-1.0, 1.0))).astype(np.float32)
        for _ in range(int(rng.integers(2, MOVES + 1))):
            self.environment.step(action)
        if scene == "button":  # as its spring has released it
            self.set_joint(scene, float(rng.choice((0.0, 1.0))))
        return self.look(scene, self.view(rng), colors)

    def view(self, rng: np.random.Generator | None = None) -> View:
        """Return the view of the corner camera, shifted at random if `rng` is given."""
        view = VIEWS["corner"]
        dx, dy = (0.0, 0.0) if rng is None else rng.uniform(-JITTER, JITTER, 2)
        left, right, top, bottom = view.box
        box = (left + dx, right + dx, top + dy, bottom + dy)
        return replace(view, box=box, height=self.size, width=self.size)

    def paint(self, scene: str, rng: np.random.Generator) -> dict[str, str]:
        """Paint parts in different random colors. Return the color of each material."""
        model = self._sim.model
        parts = [SCENES[scene].parts[name] for name in SCENES[scene].painted]
        names = rng.choice(list(COLORS), len(parts), replace=False)
        colors = {m: str(name) for part, name in zip(parts, names, strict=True) for m in part.materials}
        for material, name in colors.items():
            number = model.material(material).id
            model.mat_texid[number] = -1  # a texture would tint the color
            model.mat_rgba[number, :3] = COLORS[name]
        return colors

    def set_joint(self, scene: str, share: float) -> None:
        """Open the scene's joint to a fraction of its range."""
        joint = self._sim.data.joint(SCENES[scene].joint)
        joint.qpos, joint.qvel = share * SCENES[scene].full, 0.0
        self.environment.simulation.update()

    def look(self, scene: str, view: View, colors: Mapping[str, str]) -> tuple[UInt8[np.ndarray, "H W 3"], FrameLabels]:
        """Return the current picture and its labels. `colors` has the color of each material, from `paint`."""
        model, data = self._sim.model, self._sim.data
        renderer = self._benchmark.renderer(self.environment.simulation.scene, model)
        pixels = renderer.draw(model, data, view)
        pads = [i for i in range(model.ngeom) if model.body(model.geom_bodyid[i]).name in _PADS]
        view = replace(view, oversample=1)
        ids = render_geom_ids(renderer, model, data, view)
        robot = model.body_rootid[model.geom_bodyid] == model.body_rootid[model.geom_bodyid[pads[0]]]
        groups = model.geom_group.copy()
        model.geom_group[robot] = HIDDEN
        behind = render_geom_ids(renderer, model, data, view)  # the picture without the robot
        model.geom_group[:] = groups
        things: dict[str, VisiblePart] = {}
        for name, part in SCENES[scene].parts.items():
            geoms = self.geoms(part)
            seen = _measure_part(np.isin(ids, geoms), np.isin(behind, geoms), colors.get(part.materials[0]))
            if seen is not None:
                things[name] = seen
        shown = np.isin(ids, pads)
        gripper = _measure_part(shown, shown, None)
        if gripper is not None:
            x, y = project_points(model, data, view, data.site("endEffector").xpos[None])[0]
            if 0 <= x <= 1 and 0 <= y <= 1:
                things["gripper"] = replace(gripper, x=float(x), y=float(y))
        opened = float(data.joint(SCENES[scene].joint).qpos[0]) / SCENES[scene].full
        # Read it again: the observation of the last step is older than a joint that was set since.
        gap = float(np.clip(self._sim._get_obs()[3], 0, 1))
        return pixels, FrameLabels(scene, things, min(max(opened, 0.0), 1.0), gap)

    def geoms(self, part: _NamedPart) -> Int64[np.ndarray, "n"]:
        """Return the ids of a part's geoms."""
        import mujoco

        model = self._sim.model
        chosen = np.isin(model.geom_matid, [model.material(name).id for name in part.materials])
        if part.body is not None:
            chosen &= model.geom_bodyid == model.body(part.body).id
        if part.meshes:
            meshes = [model.mesh(name).id for name in part.meshes]
            chosen &= (model.geom_type == mujoco.mjtGeom.mjGEOM_MESH) & np.isin(model.geom_dataid, meshes)
        return np.flatnonzero(chosen)

    @property
    def _sim(self) -> Any:
        return self.environment.simulation.sim

    def close(self) -> None:
        """Free the renderers."""
        self._benchmark.close()


def _sample_share(rng: np.random.Generator) -> float:
    """Sample how far a joint is open: closed, half open or open, equally often."""
    low, high = ((0.0, 0.08), (0.3, 0.7), (0.9, 1.0))[rng.integers(3)]
    return float(rng.uniform(low, high))


def _measure_part(
    mask: Bool[np.ndarray, "H W"], unhidden: Bool[np.ndarray, "H W"], color: str | None
) -> VisiblePart | None:
    """Return the visible part with the pixels `mask`, None if it is empty. `unhidden` is its mask without the robot."""
    if not mask.any():
        return None
    rows, columns = np.nonzero(mask)
    height, width = mask.shape
    edge = unhidden[0].any() or unhidden[-1].any() or unhidden[:, 0].any() or unhidden[:, -1].any()
    x, y = (columns.mean() + 0.5) / width, (rows.mean() + 0.5) / height
    return VisiblePart(float(x), float(y), float(mask.mean()), not edge, float(mask.sum() / unhidden.sum()), color)


def project_points(model: Any, data: Any, view: View, points: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 2"]:
    """Project points of the world (m) to fractions of a picture's width and height; they may be outside of 0..1."""
    camera = model.camera(view.camera).id
    x, y, z = ((points - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3)).T
    slope = np.tan(np.radians(model.cam_fovy[camera]) / 2)
    across, down = (1 + x / (-z * slope)) / 2, (1 - y / (-z * slope)) / 2  # cameras look along -z
    if view.turned:
        across, down = 1 - across, 1 - down
    left, right, top, bottom = view.box
    return np.stack([(across - left) / (right - left), (down - top) / (bottom - top)], -1)


def render_geom_ids(renderer: Renderer, model: Any, data: Any, view: View) -> Int32[np.ndarray, "H W"]:
    """Render the id of each pixel's geom, -1 for none. `view` must not be oversampled, as ids have no average."""
    import mujoco

    scene = renderer._scene
    flags = scene.flags.copy()
    samples = (mujoco.mjtRndFlag.mjRND_SEGMENT, mujoco.mjtRndFlag.mjRND_IDCOLOR)
    for flag in samples:
        scene.flags[flag] = True
    try:
        coded = renderer.draw(model, data, view).astype(np.int32)
    finally:
        scene.flags[:] = flags
    numbers = coded[..., 0] + (coded[..., 1] << 8) + (coded[..., 2] << 16)  # 0: nothing; else segid + 1
    geoms = np.full(scene.ngeom + 1, -1, np.int32)
    for geom in scene.geoms[: scene.ngeom]:
        if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM and 0 <= geom.segid < scene.ngeom:
            geoms[geom.segid + 1] = geom.objid
    numbers[numbers > scene.ngeom] = 0  # a pixel that blends two ids
    return geoms[numbers]
