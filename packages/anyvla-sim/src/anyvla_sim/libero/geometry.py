"""What a scripted expert of LIBERO knows of a scene: collision geometry as points, the hand, and what touches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterable

import numpy as np

SPACING = 0.005  # m between points on a surface, and the width of a cell of a height map
LARGE = 0.25  # m; a box with half sizes beyond it (a table, a floor) enters a height map as a level
SPAN = (1.2, 1.4)  # m; the part of the world in front of the robot that a height map covers, x and y
_PLANE, _SLIDE = 0, 2  # mjGEOM_PLANE, mjJNT_SLIDE
ROBOT = ("robot0", "gripper0", "mount0")

# The Panda hand in its own frame (x: fingers close, y: across, z: out of the palm; origin between the finger tips), m.
TIP = 0.0125  # how far fingers reach beyond the origin
PALM = -0.031  # where the palm begins
PALM_HALF = (0.101, 0.022)
FINGER_THICK = (0.018, 0.026)  # at the tip and at the palm
FINGER_HALF = 0.0105
OPENING = 0.077  # between open fingers
WRIST, WRIST_RADIUS = -0.15, 0.056  # where the link that carries the hand begins, how far it is around the hand's z


def box_surface(half: np.ndarray, spacing: float = SPACING) -> np.ndarray:
    """Points on the surface of a box with half sizes `half` (3,), (N, 3), at most `spacing` apart (40 an edge)."""
    axes = [np.linspace(-h, h, int(np.clip(np.ceil(2 * h / spacing) + 1, 2, 40))) for h in half]
    faces = []
    for fixed in range(3):
        first, second = [k for k in range(3) if k != fixed]
        a, b = (x.ravel() for x in np.meshgrid(axes[first], axes[second]))
        for side in (-half[fixed], half[fixed]):
            face = np.empty((len(a), 3))
            face[:, first], face[:, second], face[:, fixed] = a, b, side
            faces.append(face)
    return np.concatenate(faces)


@dataclass(frozen=True)
class Joint:
    """Of a drawer, a knob or a door, now."""

    value: float  # m or rad
    axis: np.ndarray  # (3,), in the world: where positive motion goes, or what it turns about
    anchor: np.ndarray  # (3,), in the world
    slides: bool
    body: str  # what it moves


class Scene:
    """The privileged state of a LIBERO environment (robosuite 1.4, one Panda)."""

    def __init__(self, env: Any) -> None:
        """`env`: a `BDDLBaseDomain` after reset."""
        self.env = env
        self.model = env.sim.model._model
        self.data = env.sim.data._data
        self._site = env.robots[0].eef_site_id
        self._parent = np.asarray(self.model.body_parentid)
        self._fingers = [
            {self.model.geom(name).id for name in env.robots[0].gripper.important_geoms[side]}
            for side in ("left_finger", "right_finger")
        ]
        self._finger_joints = [self.model.joint(name).qposadr[0] for name in env.robots[0].gripper.joints]
        self.base = np.asarray(env.robots[0].base_pos)[:2]  # where the robot stands, (2,)
        self._origin = self.base - (0.0, SPAN[1] / 2)
        local, owner, self._levels = [], [], []
        for geom in range(self.model.ngeom):
            body = self.model.body(self._root(self.model.geom_bodyid[geom])).name
            if not (self.model.geom_contype[geom] or self.model.geom_conaffinity[geom]) or body.startswith(ROBOT):
                continue
            bounds = np.asarray(self.model.geom_aabb[geom])
            if self.model.geom_type[geom] == _PLANE or np.sort(bounds[3:])[1] > LARGE:
                self._levels.append(geom)
                continue
            points = bounds[:3] + box_surface(bounds[3:])
            local.append(points)
            owner.append(np.full(len(points), geom))
        self._local = np.concatenate(local)
        self._geom = np.concatenate(owner)
        self._body = np.asarray(self.model.geom_bodyid)[self._geom]

    def _root(self, body: int) -> int:
        while self._parent[body]:
            body = int(self._parent[body])
        return body

    def bodies(self, name: str) -> set[int]:
        """The bodies of an object or fixture, or of a moving part by the name of its body."""
        top = self.env.obj_body_id[name] if name in self.env.obj_body_id else self.model.body(name).id
        found = {int(top)}
        for body in range(self.model.nbody):  # parents come before their children
            if self._parent[body] in found:
                found.add(body)
        return found

    def points(self, bodies: Iterable[int]) -> np.ndarray:
        """Points on the surfaces of bodies now, (N, 3), in the world."""
        return self._world(np.isin(self._body, list(bodies)))

    def around(self, center: np.ndarray, radius: float, without: Iterable[int] = ()) -> np.ndarray:
        """Points of everything (but the robot, tables, and the bodies `without`) around `center` (3,), (N, 3)."""
        points = self._world(~np.isin(self._body, list(without)))
        return points[np.abs(points - center).max(1) < radius]

    def _world(self, which: Any) -> np.ndarray:
        geom = self._geom[which]
        turn = self.data.geom_xmat.reshape(-1, 3, 3)[geom]
        return np.einsum("nij,nj->ni", turn, self._local[which]) + self.data.geom_xpos[geom]

    def floor(self, at: np.ndarray) -> float:
        """The height of the table (or floor) below the point `at`."""
        heights = [-np.inf]
        for geom in self._levels:
            bounds, turn = self.model.geom_aabb[geom], np.abs(self.data.geom_xmat[geom].reshape(3, 3))
            if self.model.geom_type[geom] == _PLANE:
                top, inside = self.data.geom_xpos[geom][2], turn[2, 2] > 0.9
            else:
                half, middle = turn @ bounds[3:], self.data.geom_xpos[geom] + bounds[:3]
                top, inside = middle[2] + half[2], bool(np.all(np.abs(at[:2] - middle[:2]) < half[:2]))
            if inside and top < at[2]:
                heights.append(float(top))
        return max(heights)

    def heights(self, without: Iterable[int] = (), above: np.ndarray | None = None) -> HeightMap:
        """The tops of everything but the robot and the bodies `without`; `above` (3,): a point over the table."""
        field = HeightMap(self._origin, self.floor(self.hand()[0] if above is None else above))
        field.raise_to(self._world(~np.isin(self._body, list(without))))
        return field

    def pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Position (3,) and rotation (3, 3) of an object, a body or a site of a goal."""
        if name in self.env.object_sites_dict:
            return self.env.sim.data.get_site_xpos(name).copy(), self.env.sim.data.get_site_xmat(name).copy()
        body = self.env.obj_body_id[name] if name in self.env.obj_body_id else self.model.body(name).id
        return self.data.xpos[body].copy(), self.data.xmat[body].reshape(3, 3).copy()

    def hand(self) -> tuple[np.ndarray, np.ndarray]:
        """Position (3,) between the finger tips and rotation (3, 3) of the hand, its z out of the palm."""
        return self.data.site_xpos[self._site].copy(), self.data.site_xmat[self._site].reshape(3, 3).copy()

    def velocity(self) -> np.ndarray:
        """Of the hand, (3,), m/s."""
        return np.array(self.env.robots[0].controller.ee_pos_vel)

    def opening(self) -> float:
        """The distance between the fingers, m."""
        return float(np.abs(self.data.qpos[self._finger_joints]).sum())

    def held(self, bodies: set[int]) -> bool:
        """Whether both fingers touch one of `bodies`."""
        contact = self.data.contact
        owner = np.asarray(self.model.geom_bodyid)
        touched: set[int] = set()
        for a, b in zip(np.asarray(contact.geom1), np.asarray(contact.geom2)):
            for one, other in ((a, b), (b, a)):
                if int(owner[other]) in bodies:
                    touched.update(k for k, geoms in enumerate(self._fingers) if int(one) in geoms)
        return len(touched) == 2

    def joint(self, name: str) -> Joint:
        """A slide or hinge joint of a fixture."""
        joint = self.model.joint(name)
        return Joint(
            value=float(self.data.qpos[joint.qposadr[0]]),
            axis=self.data.xaxis[joint.id].copy(),
            anchor=self.data.xanchor[joint.id].copy(),
            slides=int(self.model.jnt_type[joint.id]) == _SLIDE,
            body=self.model.body(self.model.jnt_bodyid[joint.id]).name,
        )


class HeightMap:
    """The highest point of a scene over each cell of a grid."""

    def __init__(self, origin: np.ndarray, level: float) -> None:
        """`origin` (2,): the corner with the smallest x and y. `level`: the height where nothing stands."""
        self._origin = origin
        self._top = np.full([int(s / SPACING) for s in SPAN], level)
        self._low = np.full(self._top.shape, np.inf)  # the lowest point of what stands or hangs there

    def _cells(self, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cell = ((xy - self._origin) / SPACING).astype(int)
        return np.clip(cell[..., 0], 0, self._top.shape[0] - 1), np.clip(cell[..., 1], 0, self._top.shape[1] - 1)

    def raise_to(self, points: np.ndarray) -> None:
        """Add points (N, 3)."""
        cells = self._cells(points[:, :2])
        np.maximum.at(self._top, cells, points[:, 2])
        np.minimum.at(self._low, cells, points[:, 2])

    def lift(self, points: np.ndarray, shifts: np.ndarray) -> np.ndarray:
        """How far `points` (N, 3), moved by each of `shifts` (M, 2), must rise to just clear everything, (M,).

        Negative: how far they may sink.
        """
        at = points[None, :, :2] + shifts[:, None]
        return (self._top[self._cells(at)] - points[:, 2]).max(1)

    def under(self, points: np.ndarray) -> np.ndarray:
        """Which of `points` (N, 3) are below something that they cannot pass by rising (an open drawer), (N,)."""
        found = np.zeros(len(points), bool)
        for shift in ((0.0, 0.0), (2 * SPACING, 0.0), (-2 * SPACING, 0.0), (0.0, 2 * SPACING), (0.0, -2 * SPACING)):
            low = self._low[self._cells(points[:, :2] + shift)]
            found |= np.isfinite(low) & (low > points[:, 2] + 0.02)
        return found


def hand_points(rotation: np.ndarray, opening: float) -> np.ndarray:
    """The outside of the hand relative to its origin, (N, 3), for a rotation (3, 3) and an opening in m."""
    parts = []
    for side in (-1, 1):
        for low, high, thick in ((-0.012, TIP, FINGER_THICK[0]), (PALM, -0.012, FINGER_THICK[1])):
            box = box_surface(np.array([thick / 2, FINGER_HALF, (high - low) / 2]))
            parts.append(box + (side * (opening / 2 + thick / 2), 0.0, (low + high) / 2))
    palm = box_surface(np.array([*PALM_HALF, 0.03]), 0.01)
    parts.append(palm + (0.0, 0.0, PALM - 0.03))
    return np.concatenate(parts) @ rotation.T
