"""Changes to MuJoCo scenes and disturbances of episodes, shared by LIBERO and Meta-World.

Every change follows from the episode's seed. Distractors are only rendered; nothing collides with them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Iterable, Mapping, Sequence

import numpy as np

from anyvla_sim.names import check_factors, check_name
from anyvla_sim.rendering import Ornament

DISTURBANCES = ("push", "open")  # move the object, or knock the gripper open
SHIFT_M = {"small": 0.02, "large": 0.06}  # of a camera, in a random direction
PUSH_M = (0.04, 0.06)  # how far an object is pushed
_DISTRACTORS = {"one": 1, "three": 3}


class SceneFactors(ABC):
    """The changeable looks and start states of one simulator's scene."""

    def __init__(self, benchmark: str, levels: Mapping[str, Sequence[str]], model: Any) -> None:
        """`levels` maps each factor of the benchmark to its levels."""
        self._benchmark, self._levels, self._model = benchmark, levels, model
        fields = ("light_diffuse", "light_ambient", "light_specular", "geom_matid", "geom_rgba", "cam_pos")
        self._stock = {field: getattr(model, field).copy() for field in fields}
        self._headlight = {f: np.array(getattr(model.vis.headlight, f)) for f in ("ambient", "diffuse")}
        self.ornaments: list[Ornament] = []

    def reset(self) -> None:
        """Restore the stock look."""
        for field, value in self._stock.items():
            getattr(self._model, field)[:] = value
        for field, value in self._headlight.items():
            getattr(self._model.vis.headlight, field)[:] = value
        self.ornaments = []

    def apply(self, factors: Mapping[str, str], seed: int) -> None:
        """Change a scene of stock look. Raises ValueError for an unknown factor or level."""
        check_factors(self._benchmark, self._levels, factors)
        changes = {
            "light": self._change_light,
            "texture": self._change_texture,
            "camera": self._move_cameras,
            "distractor": self._add_distractors,
            "position": self._change_position,
        }
        for number, factor in enumerate(self._levels):  # a generator for each, so that factors do not affect each other
            if factor in factors:
                changes[factor](factors[factor], np.random.default_rng((seed, number)))

    def _change_light(self, level: str, rng: np.random.Generator) -> None:
        color = rng.permutation([1.0, 0.75, 0.45])
        gain = {"dim": np.full(3, 0.4), "bright": np.full(3, 1.8), "colored": color}[level]
        model = self._model
        for lights in (model.light_diffuse, model.light_ambient, model.light_specular):
            lights[:] = np.clip(lights * gain, 0, 1)
        for field, value in self._headlight.items():
            getattr(model.vis.headlight, field)[:] = np.clip(value * gain, 0, 1)

    @abstractmethod
    def _change_texture(self, level: str, rng: np.random.Generator) -> None:
        """Repaint surfaces. The GL context holds a material's texture, so geoms get another material, or none."""

    def _move_cameras(self, level: str, rng: np.random.Generator) -> None:
        for camera in self._fixed_cameras():
            direction = rng.normal(size=3)
            self._model.cam_pos[camera] += SHIFT_M[level] * direction / np.linalg.norm(direction)

    @abstractmethod
    def _fixed_cameras(self) -> Iterable[int]:
        """Return the ids of the cameras that a shift applies to."""

    def _add_distractors(self, level: str, rng: np.random.Generator) -> None:
        for _ in range(_DISTRACTORS[level]):
            size = rng.uniform(0.015, 0.03, 3)
            position = self._sample_distractor_position(size, rng)
            shape = str(rng.choice(("sphere", "box", "cylinder")))
            color = tuple(rng.uniform(0.05, 0.95, 3).tolist())
            self.ornaments.append(Ornament(shape, tuple(size.tolist()), position, color))

    @abstractmethod
    def _sample_distractor_position(self, size: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
        """Return a position (m) beside the objects for a distractor with half extents `size` (3,)."""

    @abstractmethod
    def _change_position(self, level: str, rng: np.random.Generator) -> None:
        """Move the start positions of objects, or the ranges that they are sampled from."""


class Disturber(ABC):
    """Disturbances of a running episode."""

    def __init__(self, benchmark: str, knock: int) -> None:
        """`knock` is the number of actions for which a gripper stays open after it is knocked."""
        self._benchmark, self._knock = benchmark, knock
        self._open_left = 0  # actions for which the gripper still stays open

    def disturb(self, kind: str, seed: int) -> bool:
        """Disturb the episode. Return False if there is nothing to move. Raises ValueError for an unknown kind."""
        check_name(kind, DISTURBANCES, f"{self._benchmark} has no disturbance")
        if kind == "open":
            self._open_left = self._knock
            return True
        return self._push(np.random.default_rng(seed))

    @abstractmethod
    def _push(self, rng: np.random.Generator) -> bool:
        """Move the objects of the task. Return False if none could be moved."""

    def alter(self, action: np.ndarray) -> np.ndarray:
        """Return the action (A,) to execute instead of `action`; the gripper is its last dimension, -1 is open."""
        if self._open_left:
            self._open_left -= 1
            action = action.copy()
            action[-1] = -1.0
        return action
