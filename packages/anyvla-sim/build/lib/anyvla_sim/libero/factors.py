"""Factors and disturbances of LIBERO's scenes."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Sequence

import numpy as np

from anyvla_sim.factors import PUSH_M, Disturber, SceneFactors

FACTORS: Mapping[str, Sequence[str]] = {
    "light": ("dim", "bright", "colored"),
    "texture": ("plain", "dark"),  # of table, floor and walls
    "camera": ("small", "large"),  # the fixed camera moves by 2 cm, or by 6 cm
    "distractor": ("one", "three"),
    "position": ("near", "far"),  # the task's objects start up to 2 cm, or 2 to 5 cm, from their stock position
}
_BEYOND_M = {"near": (0.005, 0.02), "far": (0.02, 0.05)}
_KNOCK = 10  # actions for which the gripper stays open once it is knocked
_TRIES = 40  # positions that are tried for an object
_SURFACES = ("table", "floor", "wall")  # parts of the names of geoms and bodies of an arena
_OBJECT_JOINT = 7  # the size of a free joint's position


class LiberoFactors(SceneFactors):
    """The changeable looks and start states of one of LIBERO's simulators."""

    def __init__(self, env: Any, model: Any, data: Any) -> None:
        super().__init__("libero", FACTORS, model)
        self._env, self._data = env, data

    def _change_texture(self, level: str, rng: np.random.Generator) -> None:
        model = self._model
        for geom in range(model.ngeom):
            body = model.body(model.geom_bodyid[geom])
            name = f"{model.geom(geom).name} {body.name}"
            arena = model.body_dofnum[body.rootid[0]] == 0  # objects can move
            if arena and any(part in name for part in _SURFACES) and model.geom_matid[geom] >= 0:
                model.geom_matid[geom] = -1
                model.geom_rgba[geom, :3] = {"plain": (0.6, 0.6, 0.58), "dark": (0.16, 0.17, 0.2)}[level]

    def _fixed_cameras(self) -> Iterable[int]:
        return (self._model.camera("agentview").id,)

    def _sample_distractor_position(self, size: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
        """Return a position beside the objects, on the height of the lowest, where the fixed camera sees it."""
        objects = np.array([self._data.qpos[j.qposadr[0] : j.qposadr[0] + 3] for j in find_free_joints(self._model)])
        ground, middle = objects[:, 2].min(), objects[:, :2].mean(0)
        position = (0.0, 0.0, 0.0)
        for _ in range(_TRIES):
            at = middle + rng.uniform((-0.25, -0.35), (0.25, 0.35))
            position = (float(at[0]), float(at[1]), float(ground + size[2] - 0.01))
            if np.linalg.norm(objects[:, :2] - at, axis=1).min() > 0.08 and self._is_visible(np.array(position)):
                break
        return position

    def _is_visible(self, point: np.ndarray) -> bool:
        """Return whether the fixed camera sees a point (3,)."""
        import mujoco

        camera = self._model.camera("agentview").id
        eye, axes = self._data.cam_xpos[camera], self._data.cam_xmat[camera].reshape(3, 3)
        x, y, z = (point - eye) @ axes  # the camera looks along -z
        slope = np.tan(np.radians(self._model.cam_fovy[camera]) / 2)
        if z >= 0 or max(abs(x), abs(y)) > -0.9 * z * slope:
            return False
        toward, hit = point - eye, np.zeros(1, np.int32)
        share = mujoco.mj_ray(self._model, self._data, eye, toward, None, 1, -1, hit)  # of the way; -1: no hit
        return bool(share < 0 or share > 0.97)

    def _change_position(self, level: str, rng: np.random.Generator) -> None:
        for name in self._env.obj_of_interest:
            joint = _find_free_joint(self._model, name)
            if joint is not None:
                move_object(self._model, self._data, joint, rng, _BEYOND_M[level])


def find_free_joints(model: Any) -> list[Any]:
    """Return the joints of the loose objects."""
    return [joint for joint in (model.joint(i) for i in range(model.njnt)) if len(joint.qpos0) == _OBJECT_JOINT]


def _find_free_joint(model: Any, name: str) -> Any:
    """Return the free joint of the named object, or None if it is fixed."""
    found = [joint for joint in find_free_joints(model) if joint.name.startswith(f"{name}_joint")]
    return found[0] if found else None


def move_object(model: Any, data: Any, joint: Any, rng: np.random.Generator, far: tuple[float, float]) -> bool:
    """Move an object over the table by a distance from the range `far` (m), to where it overlaps nothing.

    Return False, and leave it, if no such position was found.
    """
    import mujoco

    at = int(joint.qposadr[0])
    before, depth = data.qpos[at : at + 2].copy(), _measure_overlap(model, data, joint)
    for _ in range(_TRIES):
        angle = rng.uniform(0, 2 * np.pi)
        data.qpos[at : at + 2] = before + rng.uniform(*far) * np.array([np.cos(angle), np.sin(angle)])
        mujoco.mj_forward(model, data)
        if _measure_overlap(model, data, joint) <= depth + 1e-3:
            return True
    data.qpos[at : at + 2] = before
    mujoco.mj_forward(model, data)
    return False


def _measure_overlap(model: Any, data: Any, joint: Any) -> float:
    """Return how deep (m) an object penetrates others, 0 if it touches none."""
    body = model.body_rootid[joint.bodyid[0]]
    depth = 0.0
    for contact in data.contact[: data.ncon]:
        if body in (
            model.body_rootid[model.geom_bodyid[contact.geom1]],
            model.body_rootid[model.geom_bodyid[contact.geom2]],
        ):
            depth = max(depth, -float(contact.dist))
    return depth


class LiberoDisturber(Disturber):
    """Disturbances of an episode of LIBERO."""

    def __init__(self, env: Any, model: Any, data: Any) -> None:
        super().__init__("libero", _KNOCK)
        self._env, self._model, self._data = env, model, data

    def _push(self, rng: np.random.Generator) -> bool:
        """Move the first object of the task."""
        joint = next((_find_free_joint(self._model, name) for name in self._env.obj_of_interest), None)
        if joint is None:
            return False
        moved = move_object(self._model, self._data, joint, rng, PUSH_M)
        at = int(joint.dofadr[0])
        self._data.qvel[at : at + 6] = 0
        return moved
