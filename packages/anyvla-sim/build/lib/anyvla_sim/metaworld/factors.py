"""Factors and disturbances of Meta-World's scenes."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Sequence

import numpy as np

from anyvla_sim.factors import PUSH_M, Disturber, SceneFactors

FACTORS: Mapping[str, Sequence[str]] = {
    "light": ("dim", "bright", "colored"),
    "texture": ("plain", "dark", "tiles"),  # of the table
    "camera": ("small", "large"),  # every fixed camera moves by 2 cm, or by 6 cm, in its own direction
    "distractor": ("one", "three"),
    "position": ("near", "far"),  # an object or goal starts up to 2 cm, or 2 to 5 cm, beyond its range
}
_BEYOND_M = {"near": (0.0, 0.02), "far": (0.02, 0.05)}
_KNOCK = 6  # actions for which the gripper stays open once it is knocked
_MOVED = 1e-3  # rad or m; a joint that moved less counts as not moved


def find_object_joints(sim: Any) -> list[Any]:
    """Return the joints of everything but the arm."""
    model = sim.model
    arm = model.body_rootid[model.body("hand").id]
    found = [model.joint(i) for i in range(model.njnt)]
    return [joint for joint in found if model.body_rootid[joint.bodyid[0]] != arm]


class MetaWorldFactors(SceneFactors):
    """The changeable looks and start states of one of Meta-World's simulators."""

    def __init__(self, sim: Any) -> None:
        super().__init__("metaworld", FACTORS, sim.model)
        self._sim = sim
        self._space = sim._random_reset_space

    def reset(self) -> None:
        """Restore the stock look and the stock range of start states."""
        super().reset()
        self._sim._random_reset_space = self._space

    def _change_texture(self, level: str, rng: np.random.Generator) -> None:
        model = self._model
        boards = model.geom_matid == model.material("table_wood").id
        if level == "tiles":
            model.geom_matid[boards] = model.material("basic_floor").id
        else:
            model.geom_matid[boards] = -1
            model.geom_rgba[boards, :3] = {"plain": (0.45, 0.45, 0.43), "dark": (0.1, 0.11, 0.14)}[level]

    def _fixed_cameras(self) -> Iterable[int]:
        return np.flatnonzero(self._model.cam_bodyid == 0)  # the others move with the arm

    def _sample_distractor_position(self, size: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
        side = rng.choice((-1.0, 1.0))  # beside the middle of the table, where objects and goals are
        return (side * rng.uniform(0.2, 0.35), rng.uniform(0.45, 0.9), size[2])

    def _change_position(self, level: str, rng: np.random.Generator) -> None:
        """Sample one horizontal coordinate from beyond its range; the coordinate and the side are random."""
        low, high = self._space.low.copy(), self._space.high.copy()
        free = [i for i in range(len(low)) if i % 3 < 2 and high[i] - low[i] > 1e-6]
        dim = int(rng.choice(free))
        near, far = _BEYOND_M[level]
        if rng.random() < 0.5:
            low[dim], high[dim] = high[dim] + near, high[dim] + far
        else:
            low[dim], high[dim] = low[dim] - far, low[dim] - near
        self._sim._random_reset_space = type(self._space)(low, high, dtype=self._space.dtype)


class MetaWorldDisturber(Disturber):
    """Disturbances of an episode of Meta-World."""

    def __init__(self, sim: Any) -> None:
        """Create it just after the reset of `sim`, which is the state that joints are pushed back to."""
        super().__init__("metaworld", _KNOCK)
        self._sim = sim
        self._start = sim.data.qpos.copy()

    def _push(self, rng: np.random.Generator) -> bool:
        moved = False
        for joint in find_object_joints(self._sim):
            moved |= self._push_free(joint, rng) if len(joint.qpos0) == 7 else self._push_back(joint)
        return moved

    def _push_free(self, joint: Any, rng: np.random.Generator) -> bool:
        """Move an object over the table, or out of the hand that holds it."""
        at, angle = int(joint.qposadr[0]), rng.uniform(0, 2 * np.pi)
        self._sim.data.qpos[at : at + 2] += rng.uniform(*PUSH_M) * np.array([np.cos(angle), np.sin(angle)])
        velocity = int(joint.dofadr[0])
        self._sim.data.qvel[velocity : velocity + 6] = 0
        return True

    def _push_back(self, joint: Any) -> bool:
        """Return a drawer, a door or a button to its start position."""
        at = int(joint.qposadr[0])
        if abs(self._sim.data.qpos[at] - self._start[at]) < _MOVED:
            return False
        self._sim.data.qpos[at] = self._start[at]
        self._sim.data.qvel[int(joint.dofadr[0])] = 0
        return True
