"""What can be changed about a scene of Meta-World, as named factors with levels, and what can happen during an episode.

Every change follows from the episode's seed. Distractors are pictures only: nothing can touch them.
"""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import numpy as np

from anyvla_sim.names import suggest
from anyvla_sim.rendering import Ornament

FACTORS: Mapping[str, Sequence[str]] = {
    "light": ("dim", "bright", "colored"),
    "texture": ("plain", "dark", "tiles"),  # of the table
    "camera": ("small", "large"),  # every fixed camera moves by 2 cm, or by 6 cm, in a direction of its own
    "distractor": ("one", "three"),
    "position": ("near", "far"),  # an object or goal starts up to 2 cm, or 2 to 5 cm, beyond its range
}
DISTURBANCES = ("push", "open")
_SHIFT_M = {"small": 0.02, "large": 0.06}
_BEYOND_M = {"near": (0.0, 0.02), "far": (0.02, 0.05)}
_PUSH_M = (0.04, 0.06)  # how far an object is pushed
_KNOCK = 6  # actions for which the gripper stays open once it is knocked
_MOVED = 1e-3  # rad or m: a joint that moved less has not been moved


def _check(factors: Mapping[str, str]) -> None:
    for factor, level in factors.items():
        if factor not in FACTORS:
            raise ValueError(f"metaworld has no factor {factor!r}: {suggest(factor, FACTORS)}")
        if level not in FACTORS[factor]:
            raise ValueError(f"the factor {factor} has no level {level!r}: {suggest(level, FACTORS[factor])}")


class Stage:
    """The changeable looks and start states of one simulator."""

    def __init__(self, sim: Any) -> None:
        self._sim = sim
        model = sim.model
        self._fields = ("light_diffuse", "light_ambient", "light_specular", "geom_matid", "geom_rgba", "cam_pos")
        self._stock = {field: getattr(model, field).copy() for field in self._fields}
        self._headlight = {f: np.array(getattr(model.vis.headlight, f)) for f in ("ambient", "diffuse")}
        self._space = sim._random_reset_space
        self.ornaments: list[Ornament] = []

    def set(self, factors: Mapping[str, str], seed: int) -> None:
        """Make the scene so, from its stock look. Raises ValueError for an unknown factor or level."""
        _check(factors)
        model = self._sim.model
        for field, value in self._stock.items():
            getattr(model, field)[:] = value
        for field, value in self._headlight.items():
            getattr(model.vis.headlight, field)[:] = value
        self._sim._random_reset_space = self._space
        self.ornaments = []
        for number, factor in enumerate(FACTORS):  # each has a source of chance of its own, whatever others are set
            if factor in factors:
                getattr(self, f"_{factor}")(factors[factor], np.random.default_rng((seed, number)))

    def _light(self, level: str, rng: np.random.Generator) -> None:
        color = rng.permutation([1.0, 0.75, 0.45])
        gain = {"dim": np.full(3, 0.4), "bright": np.full(3, 1.8), "colored": color}[level]
        model = self._sim.model
        for lights in (model.light_diffuse, model.light_ambient, model.light_specular):
            lights[:] = np.clip(lights * gain, 0, 1)
        for field, value in self._headlight.items():
            getattr(model.vis.headlight, field)[:] = np.clip(value * gain, 0, 1)

    def _texture(self, level: str, rng: np.random.Generator) -> None:
        """The table's boards in a color, or with the floor's tiles.

        A material's texture is fixed in the GL context, so the geoms get another material, or none.
        """
        model = self._sim.model
        boards = model.geom_matid == model.material("table_wood").id
        if level == "tiles":
            model.geom_matid[boards] = model.material("basic_floor").id
        else:
            model.geom_matid[boards] = -1
            model.geom_rgba[boards, :3] = {"plain": (0.45, 0.45, 0.43), "dark": (0.1, 0.11, 0.14)}[level]

    def _camera(self, level: str, rng: np.random.Generator) -> None:
        model = self._sim.model
        for camera in range(model.ncam):
            if model.cam_bodyid[camera] == 0:  # not on the arm
                direction = rng.normal(size=3)
                model.cam_pos[camera] += _SHIFT_M[level] * direction / np.linalg.norm(direction)

    def _distractor(self, level: str, rng: np.random.Generator) -> None:
        for _ in range({"one": 1, "three": 3}[level]):
            size = rng.uniform(0.015, 0.03, 3)
            side = rng.choice((-1.0, 1.0))  # beside the middle of the table, where objects and goals are
            place = (side * rng.uniform(0.2, 0.35), rng.uniform(0.45, 0.9), size[2])
            shape = str(rng.choice(("sphere", "box", "cylinder")))
            ornament = Ornament(shape, tuple(size.tolist()), place, tuple(rng.uniform(0.05, 0.95, 3).tolist()))
            self.ornaments.append(ornament)

    def _position(self, level: str, rng: np.random.Generator) -> None:
        """Draw one horizontal coordinate from beyond its range; which one, and on which side, is chance."""
        low, high = self._space.low.copy(), self._space.high.copy()
        free = [i for i in range(len(low)) if i % 3 < 2 and high[i] - low[i] > 1e-6]
        dim = int(rng.choice(free))
        near, far = _BEYOND_M[level]
        if rng.random() < 0.5:
            low[dim], high[dim] = high[dim] + near, high[dim] + far
        else:
            low[dim], high[dim] = low[dim] - far, low[dim] - near
        self._sim._random_reset_space = type(self._space)(low, high, dtype=self._space.dtype)


class Disturber:
    """What can happen to a running episode."""

    def __init__(self, sim: Any) -> None:
        """`sim` just after its reset: joints are pushed back to where they are now."""
        self._sim = sim
        self._start = sim.data.qpos.copy()
        self._open = 0  # actions that the gripper is held open for

    def disturb(self, kind: str, seed: int) -> bool:
        """False if there is nothing to disturb. Raises ValueError for another kind."""
        if kind not in DISTURBANCES:
            raise ValueError(f"metaworld has no disturbance {kind!r}: {suggest(kind, DISTURBANCES)}")
        if kind == "open":
            self._open = _KNOCK
            return True
        rng = np.random.default_rng(seed)
        moved = False
        for joint in self._joints():
            moved |= self._push_free(joint, rng) if len(joint.qpos0) == 7 else self._push_back(joint)
        return moved

    def _joints(self) -> list[Any]:
        """Those of objects: whatever does not hang on the arm."""
        model = self._sim.model
        arm = model.body_rootid[model.body("hand").id]
        found = [model.joint(i) for i in range(model.njnt)]
        return [joint for joint in found if model.body_rootid[joint.bodyid[0]] != arm]

    def _push_free(self, joint: Any, rng: np.random.Generator) -> bool:
        """Move it on the table; if it is held, out of the hand."""
        at, angle = int(joint.qposadr[0]), rng.uniform(0, 2 * np.pi)
        self._sim.data.qpos[at : at + 2] += rng.uniform(*_PUSH_M) * np.array([np.cos(angle), np.sin(angle)])
        velocity = int(joint.dofadr[0])
        self._sim.data.qvel[velocity : velocity + 6] = 0
        return True

    def _push_back(self, joint: Any) -> bool:
        """A drawer, a door, a button goes back to where it started."""
        at = int(joint.qposadr[0])
        if abs(self._sim.data.qpos[at] - self._start[at]) < _MOVED:
            return False
        self._sim.data.qpos[at] = self._start[at]
        self._sim.data.qvel[int(joint.dofadr[0])] = 0
        return True

    def alter(self, action: np.ndarray) -> np.ndarray:
        """The action (4,) that is executed in place of this one."""
        if self._open:
            self._open -= 1
            action = action.copy()
            action[3] = -1.0
        return action
