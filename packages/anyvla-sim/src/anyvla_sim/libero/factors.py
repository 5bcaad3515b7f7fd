"""What can be changed about a scene of LIBERO, as named factors with levels, and what can happen during an episode.

Every change follows from the episode's seed. Distractors are pictures only: nothing can touch them.
"""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import numpy as np

from anyvla_sim.names import suggest
from anyvla_sim.rendering import Ornament

FACTORS: Mapping[str, Sequence[str]] = {
    "light": ("dim", "bright", "colored"),
    "texture": ("plain", "dark"),  # of table, floor and walls
    "camera": ("small", "large"),  # the fixed camera moves by 2 cm, or by 6 cm
    "distractor": ("one", "three"),
    "position": ("near", "far"),  # the objects of the task stand up to 2 cm, or 2 to 5 cm, from where they would
}
DISTURBANCES = ("push", "open")
_SHIFT_M = {"small": 0.02, "large": 0.06}
_BEYOND_M = {"near": (0.005, 0.02), "far": (0.02, 0.05)}
_PUSH_M = (0.04, 0.06)
_KNOCK = 10  # actions for which the gripper stays open once it is knocked
_TRIES = 40  # places that are tried for an object before it stays where it is
_SURFACES = ("table", "floor", "wall")  # parts of the names of geoms and bodies of an arena
_OBJECT_JOINT = 7  # the size of a free joint's position


class Stage:
    """The changeable looks and start states of one simulator."""

    def __init__(self, env: Any, model: Any, data: Any) -> None:
        self._env, self._model, self._data = env, model, data
        fields = ("light_diffuse", "light_ambient", "light_specular", "geom_matid", "geom_rgba", "cam_pos")
        self._stock = {field: getattr(model, field).copy() for field in fields}
        self._headlight = {f: np.array(getattr(model.vis.headlight, f)) for f in ("ambient", "diffuse")}
        self.ornaments: list[Ornament] = []

    def clear(self) -> None:
        """Back to the stock look."""
        for field, value in self._stock.items():
            getattr(self._model, field)[:] = value
        for field, value in self._headlight.items():
            getattr(self._model.vis.headlight, field)[:] = value
        self.ornaments = []

    def set(self, factors: Mapping[str, str], seed: int) -> None:
        """Change the scene, which is at its start state. Raises ValueError for an unknown factor or level."""
        for factor, level in factors.items():
            if factor not in FACTORS:
                raise ValueError(f"libero has no factor {factor!r}: {suggest(factor, FACTORS)}")
            if level not in FACTORS[factor]:
                raise ValueError(f"the factor {factor} has no level {level!r}: {suggest(level, FACTORS[factor])}")
        for number, factor in enumerate(FACTORS):  # each has a source of chance of its own, whatever others are set
            if factor in factors:
                getattr(self, f"_{factor}")(factors[factor], np.random.default_rng((seed, number)))

    def _light(self, level: str, rng: np.random.Generator) -> None:
        gain = {"dim": np.full(3, 0.4), "bright": np.full(3, 1.8), "colored": rng.permutation([1.0, 0.75, 0.45])}[level]
        model = self._model
        for lights in (model.light_diffuse, model.light_ambient, model.light_specular):
            lights[:] = np.clip(lights * gain, 0, 1)
        for field, value in self._headlight.items():
            getattr(model.vis.headlight, field)[:] = np.clip(value * gain, 0, 1)

    def _texture(self, level: str, rng: np.random.Generator) -> None:
        """A material's texture is fixed in the GL context, so surfaces lose their material."""
        model = self._model
        for geom in range(model.ngeom):
            body = model.body(model.geom_bodyid[geom])
            name = f"{model.geom(geom).name} {body.name}"
            arena = model.body_dofnum[body.rootid[0]] == 0  # objects can move
            if arena and any(part in name for part in _SURFACES) and model.geom_matid[geom] >= 0:
                model.geom_matid[geom] = -1
                model.geom_rgba[geom, :3] = {"plain": (0.6, 0.6, 0.58), "dark": (0.16, 0.17, 0.2)}[level]

    def _camera(self, level: str, rng: np.random.Generator) -> None:
        direction = rng.normal(size=3)
        camera = self._model.camera("agentview").id
        self._model.cam_pos[camera] += _SHIFT_M[level] * direction / np.linalg.norm(direction)

    def _distractor(self, level: str, rng: np.random.Generator) -> None:
        """Beside the objects of the scene, as high as the lowest of them, where the fixed camera sees it."""
        places = np.array([self._data.qpos[j.qposadr[0] : j.qposadr[0] + 3] for j in free_joints(self._model)])
        ground, middle = places[:, 2].min(), places[:, :2].mean(0)
        for _ in range({"one": 1, "three": 3}[level]):
            size = rng.uniform(0.015, 0.03, 3)
            place = (0.0, 0.0, 0.0)
            for _ in range(_TRIES):
                at = middle + rng.uniform((-0.25, -0.35), (0.25, 0.35))
                place = (float(at[0]), float(at[1]), float(ground + size[2] - 0.01))
                if np.linalg.norm(places[:, :2] - at, axis=1).min() > 0.08 and self._sees(np.array(place)):
                    break
            shape = str(rng.choice(("sphere", "box", "cylinder")))
            self.ornaments.append(
                Ornament(shape, tuple(size.tolist()), place, tuple(rng.uniform(0.05, 0.95, 3).tolist()))
            )

    def _sees(self, point: np.ndarray) -> bool:
        """Whether a point (3,) lies in the picture of the fixed camera, behind nothing."""
        import mujoco

        camera = self._model.camera("agentview").id
        eye, axes = self._data.cam_xpos[camera], self._data.cam_xmat[camera].reshape(3, 3)
        x, y, z = (point - eye) @ axes  # the camera looks along -z
        slope = np.tan(np.radians(self._model.cam_fovy[camera]) / 2)
        if z >= 0 or max(abs(x), abs(y)) > -0.9 * z * slope:
            return False
        toward, hit = point - eye, np.zeros(1, np.int32)
        share = mujoco.mj_ray(self._model, self._data, eye, toward, None, 1, -1, hit)  # of the way, -1: nothing is hit
        return bool(share < 0 or share > 0.97)

    def _position(self, level: str, rng: np.random.Generator) -> None:
        for name in self._env.obj_of_interest:
            joint = _joint_of(self._model, name)
            if joint is not None:
                move(self._model, self._data, joint, rng, _BEYOND_M[level])


def free_joints(model: Any) -> list[Any]:
    """Those of the objects that lie loose."""
    return [joint for joint in (model.joint(i) for i in range(model.njnt)) if len(joint.qpos0) == _OBJECT_JOINT]


def _joint_of(model: Any, name: str) -> Any:
    """The free joint of an object by its name; None if it is fixed."""
    found = [joint for joint in free_joints(model) if joint.name.startswith(f"{name}_joint")]
    return found[0] if found else None


def move(model: Any, data: Any, joint: Any, rng: np.random.Generator, far: tuple[float, float]) -> bool:
    """Move an object over the table by `far` (m, from, to), to where it lies in nothing; False: no such place."""
    import mujoco

    at = int(joint.qposadr[0])
    before, touched = data.qpos[at : at + 2].copy(), _deep(model, data, joint)
    for _ in range(_TRIES):
        angle = rng.uniform(0, 2 * np.pi)
        data.qpos[at : at + 2] = before + rng.uniform(*far) * np.array([np.cos(angle), np.sin(angle)])
        mujoco.mj_forward(model, data)
        if _deep(model, data, joint) <= touched + 1e-3:
            return True
    data.qpos[at : at + 2] = before
    mujoco.mj_forward(model, data)
    return False


def _deep(model: Any, data: Any, joint: Any) -> float:
    """How deep an object lies in others (m), 0 if it touches none."""
    body = model.body_rootid[joint.bodyid[0]]
    depth = 0.0
    for contact in data.contact[: data.ncon]:
        if body in (
            model.body_rootid[model.geom_bodyid[contact.geom1]],
            model.body_rootid[model.geom_bodyid[contact.geom2]],
        ):
            depth = max(depth, -float(contact.dist))
    return depth


class Disturber:
    """What can happen to a running episode."""

    def __init__(self, env: Any, model: Any, data: Any) -> None:
        self._env, self._model, self._data = env, model, data
        self._open = 0  # actions that the gripper is held open for

    def disturb(self, kind: str, seed: int) -> bool:
        """False if there is nothing that could be moved."""
        if kind == "open":
            self._open = _KNOCK
            return True
        rng = np.random.default_rng(seed)
        joints = [_joint_of(self._model, name) for name in self._env.obj_of_interest]
        moved = [move(self._model, self._data, joint, rng, _PUSH_M) for joint in joints[:1] if joint is not None]
        for joint in joints[:1]:
            if joint is not None:
                at = int(joint.dofadr[0])
                self._data.qvel[at : at + 6] = 0
        return any(moved)

    def alter(self, action: np.ndarray) -> np.ndarray:
        """The action (7,) that is executed in place of this one."""
        if self._open:
            self._open -= 1
            action = action.copy()
            action[6] = -1.0
        return action
