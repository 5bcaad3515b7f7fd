"""The scene as LIBERO's scripted expert reads it: collision geometry as points, the hand, and its contacts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterable

import numpy as np

SPACING = 0.005  # m between points on a surface, and the width of a cell of a height map
LARGE = 0.25  # m; a box with larger half sizes (a table, a floor) enters a height map as a level
SPAN = (1.2, 1.4)  # m; size of a height map in x and y, in front of the robot
_PLANE, _SLIDE = 0, 2  # mjGEOM_PLANE, mjJNT_SLIDE
ROBOT = ("robot0", "gripper0", "mount0")

# The Panda hand in its own frame (x: fingers close, y: across, z: out of the palm; origin between the finger tips), m.
TIP = 0.0125  # z of the finger tips
PALM = -0.031  # z of the palm
PALM_HALF = (0.101, 0.022)
FINGER_THICK = (0.018, 0.026)  # at the tip and at the palm
FINGER_HALF = 0.0105
OPENING = 0.077  # between open fingers
WRIST, WRIST_RADIUS = -0.15, 0.056  # z where the link that carries the hand begins, and its radius


def sample_box_surface(half: np.ndarray, spacing: float = SPACING) -> np.ndarray:
    """Return points (N, 3) on the surface of a box with half sizes `half` (3,), `spacing` apart, at most 40 an edge."""
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
    """The current state of the joint of a drawer, a knob or a door."""

    value: float  # m or rad
    axis: np.ndarray  # (3,), in the world: the direction of positive motion, or the axis of rotation
    anchor: np.ndarray  # (3,), in the world
    slides: bool
    body: str  # the name of the body that it moves


class SceneGeometry:
    """The privileged state of a LIBERO environment (robosuite 1.4, one Panda)."""

    def __init__(self, env: Any) -> None:
        """`env` is a `BDDLBaseDomain` after reset."""
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
        self.base = np.asarray(env.robots[0].base_pos)[:2]  # position of the robot, (2,)
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
            points = bounds[:3] + sample_box_surface(bounds[3:])
            local.append(points)
            owner.append(np.full(len(points), geom))
        self._local = np.concatenate(local)
        self._geom = np.concatenate(owner)
        self._body = np.asarray(self.model.geom_bodyid)[self._geom]

    def _root(self, body: int) -> int:
        while self._parent[body]:
            body = int(self._parent[body])
        return body

    def _body_id(self, name: str) -> int:
        return self.env.obj_body_id[name] if name in self.env.obj_body_id else self.model.body(name).id

    def body_ids(self, name: str) -> set[int]:
        """Return the ids of the bodies of an object, a fixture, or a moving part named by its body."""
        found = {int(self._body_id(name))}
        for body in range(self.model.nbody):  # parents come before their children
            if self._parent[body] in found:
                found.add(body)
        return found

    def points(self, bodies: Iterable[int]) -> np.ndarray:
        """Return points (N, 3) on the surfaces of bodies, in the world."""
        return self._world(np.isin(self._body, list(bodies)))

    def points_around(self, center: np.ndarray, radius: float, without: Iterable[int] = ()) -> np.ndarray:
        """Return points (N, 3) around `center` (3,) on everything but the robot, tables and the bodies `without`."""
        points = self._world(~np.isin(self._body, list(without)))
        return points[np.abs(points - center).max(1) < radius]

    def _world(self, which: Any) -> np.ndarray:
        geom = self._geom[which]
        turn = self.data.geom_xmat.reshape(-1, 3, 3)[geom]
        return np.einsum("nij,nj->ni", turn, self._local[which]) + self.data.geom_xpos[geom]

    def floor_height(self, at: np.ndarray) -> float:
        """Return the height of the table or floor below the point `at` (3,)."""
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

    def height_map(self, without: Iterable[int] = (), above: np.ndarray | None = None) -> HeightMap:
        """Return the heights of everything but the robot and the bodies `without`.

        `above` (3,) is a point over the table, by default the hand.
        """
        field = HeightMap(self._origin, self.floor_height(self.hand_pose()[0] if above is None else above))
        field.raise_to(self._world(~np.isin(self._body, list(without))))
        return field

    def pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return position (3,) and rotation (3, 3) of an object, a body or a site of a goal."""
        if name in self.env.object_sites_dict:
            return self.env.sim.data.get_site_xpos(name).copy(), self.env.sim.data.get_site_xmat(name).copy()
        body = self._body_id(name)
        return self.data.xpos[body].copy(), self.data.xmat[body].reshape(3, 3).copy()

    def hand_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the hand's position (3,) between the finger tips and its rotation (3, 3), z out of the palm."""
        return self.data.site_xpos[self._site].copy(), self.data.site_xmat[self._site].reshape(3, 3).copy()

    def hand_velocity(self) -> np.ndarray:
        """Return the velocity of the hand, (3,), m/s."""
        return np.array(self.env.robots[0].controller.ee_pos_vel)

    def finger_opening(self) -> float:
        """Return the distance between the fingers, m."""
        return float(np.abs(self.data.qpos[self._finger_joints]).sum())

    def is_held(self, bodies: set[int]) -> bool:
        """Return whether both fingers touch one of `bodies`."""
        contact = self.data.contact
        owner = np.asarray(self.model.geom_bodyid)
        touched: set[int] = set()
        for a, b in zip(np.asarray(contact.geom1), np.asarray(contact.geom2)):
            for one, other in ((a, b), (b, a)):
                if int(owner[other]) in bodies:
                    touched.update(k for k, geoms in enumerate(self._fingers) if int(one) in geoms)
        return len(touched) == 2

    def joint(self, name: str) -> Joint:
        """Return the state of a slide or hinge joint of a fixture."""
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
        """`origin` (2,) is the corner with the smallest x and y, `level` the height of empty cells."""
        self._origin = origin
        self._top = np.full([int(s / SPACING) for s in SPAN], level)
        self._low = np.full(self._top.shape, np.inf)  # the lowest point of the objects in a cell

    def _cells(self, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cell = ((xy - self._origin) / SPACING).astype(int)
        return np.clip(cell[..., 0], 0, self._top.shape[0] - 1), np.clip(cell[..., 1], 0, self._top.shape[1] - 1)

    def raise_to(self, points: np.ndarray) -> None:
        """Add points (N, 3)."""
        cells = self._cells(points[:, :2])
        np.maximum.at(self._top, cells, points[:, 2])
        np.minimum.at(self._low, cells, points[:, 2])

    def required_rise(self, points: np.ndarray, shifts: np.ndarray) -> np.ndarray:
        """Return how far (m) `points` (N, 3), moved by each of `shifts` (M, 2), must rise to clear everything, (M,).

        A negative value is how far they may sink.
        """
        at = points[None, :, :2] + shifts[:, None]
        return (self._top[self._cells(at)] - points[:, 2]).max(1)

    def is_under(self, points: np.ndarray) -> np.ndarray:
        """Return a mask (N,) of the `points` (N, 3) below something that blocks their rise, such as an open drawer."""
        found = np.zeros(len(points), bool)
        for shift in ((0.0, 0.0), (2 * SPACING, 0.0), (-2 * SPACING, 0.0), (0.0, 2 * SPACING), (0.0, -2 * SPACING)):
            low = self._low[self._cells(points[:, :2] + shift)]
            found |= np.isfinite(low) & (low > points[:, 2] + 0.02)
        return found


def sample_hand_points(rotation: np.ndarray, opening: float) -> np.ndarray:
    """Return points (N, 3) on the outside of a hand with a rotation (3, 3) and opening (m), relative to its origin."""
    parts = []
    for side in (-1, 1):
        for low, high, thick in ((-0.012, TIP, FINGER_THICK[0]), (PALM, -0.012, FINGER_THICK[1])):
            box = sample_box_surface(np.array([thick / 2, FINGER_HALF, (high - low) / 2]))
            parts.append(box + (side * (opening / 2 + thick / 2), 0.0, (low + high) / 2))
    palm = sample_box_surface(np.array([*PALM_HALF, 0.03]), 0.01)
    parts.append(palm + (0.0, 0.0, PALM - 0.03))
    return np.concatenate(parts) @ rotation.T
