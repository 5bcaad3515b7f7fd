"""The checks of observations: images and proprio must have the right form, be finite, and be like the training data.
The same holds for actions that a caller has committed to.

Each fault is a ValueError that names the observation, the robot, the group, the dim and the value.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from anyvla.robot.shared_layout import Robot, SharedLayout
from anyvla.robot.space import ActionSpace
from anyvla.robot.views import ViewConfig, camera_views
from anyvla.session import Session
from anyvla.types import Observation

log = logging.getLogger(__name__)

# How to treat proprio and committed actions that are finite but far from the training data: they come in other units,
# or of another robot.
Implausible = Literal["error", "warn"]
FAR = 3.0  # scales of a dim beyond its recorded range, see `ProprioChecker`
_OF_GROUP = 0.3  # fraction of the largest scale of a group that each of its dims has at least
_AND_MORE = 3  # dims that a message names


class VectorChecker:
    """Checks the vectors of one robot: its proprio or its actions.

    A value is implausible if it is more than `FAR` scales outside of the recorded and declared range. The scale of a
    dim is the largest of its range, its largest magnitude, and `_OF_GROUP` of the same of its group. So noise on a dim
    that is constant in the data passes, and degrees for radians, millimeters for meters or 0..255 for a gripper do not.
    """

    what = "vector"

    def __init__(self, robot: str, space: ActionSpace, recorded: Mapping[str, Sequence[float]]) -> None:
        """`recorded`: statistics of the training data."""
        self.robot, self.space = robot, space
        self.low, self.high = _find_ranges(space, recorded)
        self._margin = FAR * _compute_scales(space, self.low, self.high)

    def find_implausible(self, vector: Float32[np.ndarray, "... P"]) -> Bool[np.ndarray, "... P"]:
        """Return which dims are far outside of the training data."""
        x = vector.astype(np.float64)
        return (x < self.low - self._margin) | (x > self.high + self._margin)

    def check_plausible(
        self, vector: Float32[np.ndarray, "P"], row: int, warned: set[tuple[str, int]], setting: Implausible
    ) -> None:
        """Raise ValueError for an implausible vector or, if the setting is "warn", log each dim once.

        `warned`: the dims that a warning has named already, to which new ones are added.
        """
        far = self.find_implausible(vector)
        if setting != "warn" and far.any():
            raise ValueError(
                f"observation {row}: {self.describe(vector, far)} If they are, let it act with "
                "implausible: warn (a key of model:, an attribute of the VLA, --implausible of anyvla eval, serve)"
            )
        far[[dim for what, dim in warned if what == self.what]] = False
        if far.any():
            log.warning("observation %d: %s", row, self.describe(vector, far))
            warned |= {(self.what, dim) for dim in np.flatnonzero(far).tolist()}

    def describe(self, vector: Float32[np.ndarray, "P"], dims: Bool[np.ndarray, "P"]) -> str:
        """Return the sentence about these implausible dims."""
        return (
            f"{self.what} of robot {self.robot!r} is far outside of the training data: "
            f"{self._name_dims(vector, dims)}. "
            "Are its units the same (radians or degrees, meters or millimeters, the range of the gripper)?"
        )

    def _name_dims(self, vector: np.ndarray, dims: Bool[np.ndarray, "P"]) -> str:
        found = []
        for at in np.flatnonzero(dims).tolist():
            known = f" (recorded {self.low[at]:.4g} to {self.high[at]:.4g})" if np.isfinite(self.low[at]) else ""
            found.append(f"{self.space.locate(at)} is {vector[at]:.6g}{known}")
        more = f", and {len(found) - _AND_MORE} more dims" if len(found) > _AND_MORE else ""
        return ", ".join(found[:_AND_MORE]) + more


class ProprioChecker(VectorChecker):
    """Checks the proprio vectors of one robot."""

    what = "proprio"

    def __init__(self, robot: Robot) -> None:
        super().__init__(robot.embodiment.name, robot.embodiment.proprio, robot.statistics.proprio)

    def read(self, given: Any, row: int) -> Float32[np.ndarray, "P"]:
        """Return the vector as float32. Raises ValueError for a wrong type, a wrong size and numbers not finite."""
        where = f"observation {row}"
        if not isinstance(given, np.ndarray) or given.dtype.kind not in "fiu":
            got = f"an array of {given.dtype}" if isinstance(given, np.ndarray) else type(given).__name__
            raise ValueError(f"{where}: proprio must be an array of float32, got {got}: give np.asarray(x, np.float32)")
        if given.shape != (self.space.size,):
            raise ValueError(
                f"{where}: proprio has shape {given.shape}, this policy was trained with "
                f"({self.space.size},): {[g.name for g in self.space.groups]}"
            )
        with np.errstate(over="ignore"):
            vector = given.astype(np.float32)
        wrong = ~np.isfinite(vector)
        if wrong.any():
            raise ValueError(f"{where}: proprio of robot {self.robot!r} is not finite: {self._name_dims(given, wrong)}")
        return vector


class ActionChecker(VectorChecker):
    """Checks the actions that one robot has committed to."""

    what = "a committed action"

    def __init__(self, robot: Robot) -> None:
        super().__init__(robot.embodiment.name, robot.embodiment.action, robot.statistics.action)

    def read(self, given: Any, row: int, chunk: int) -> Float32[np.ndarray, "K A"]:
        """Return the actions as float32. Raises ValueError for a wrong form, and numbers not finite."""
        where = f"observation {row}: the committed actions"
        if not isinstance(given, np.ndarray) or given.dtype.kind not in "fiu":
            got = f"an array of {given.dtype}" if isinstance(given, np.ndarray) else type(given).__name__
            raise ValueError(f"{where} must be an array of float32, got {got}")
        if given.ndim != 2 or given.shape[1] != self.space.size or len(given) > chunk:
            groups = ", ".join(f"{g.name} {g.size}" for g in self.space.groups)
            raise ValueError(
                f"{where} have the shape {given.shape}; (K, {self.space.size}) is needed, with at most the {chunk} "
                f"actions of a chunk, each of {groups}"
            )
        with np.errstate(over="ignore"):
            actions = given.astype(np.float32)
        for action in actions:
            wrong = ~np.isfinite(action)
            if wrong.any():
                raise ValueError(f"{where} of robot {self.robot!r} are not finite: {self._name_dims(action, wrong)}")
        return actions


class Observer:
    """Reads the observations of a policy's robots into the layout that they share."""

    def __init__(self, robots: Sequence[Robot], layout: SharedLayout, view: ViewConfig) -> None:
        self.robots = [ProprioChecker(robot) for robot in robots]
        self._actions = [ActionChecker(robot) for robot in robots]
        self._embodiments = [robot.embodiment for robot in robots]
        self._indices = [layout.robots[robot.embodiment.name] for robot in robots]
        self._whole, self._view = layout.embodiment, view

    def read_proprio(self, observations: Sequence[Observation], robots: Sequence[int]) -> Float32[np.ndarray, "B P"]:
        """Return the proprio of each observation. Raises ValueError, see `ProprioChecker.read`."""
        proprio = np.zeros((len(robots), self._whole.proprio.size), np.float32)
        for row, (observation, robot) in enumerate(zip(observations, robots, strict=True)):
            proprio[row, self._indices[robot].proprio] = self.robots[robot].read(observation.proprio, row)
        return proprio

    def read_committed(
        self, committed: Sequence[Any], sessions: Sequence[Session], chunk: int, setting: Implausible
    ) -> tuple[Float32[np.ndarray, "B N A"], Bool[np.ndarray, "B N"]]:
        """Return the actions that rows have committed to, and which of a chunk's these are. None: a row has none.

        Raises ValueError, see `ActionChecker.read` and `VectorChecker.check_plausible`.
        """
        actions = np.zeros((len(sessions), chunk, self._whole.action.size), np.float32)
        mask = np.zeros((len(sessions), chunk), bool)
        for row, (given, session) in enumerate(zip(committed, sessions, strict=True)):
            if given is not None:
                checker = self._actions[session.robot]
                own = checker.read(given, row, chunk)
                for action in own:
                    checker.check_plausible(action, row, session.warned, setting)
                dims = self._indices[session.robot].action
                actions[row, : len(own), dims] = own.T  # (Ar, K): an index moves its axis first
                mask[row, : len(own)] = True
        return actions, mask

    def check_plausible(
        self, observations: Sequence[Observation], sessions: Sequence[Session], setting: Implausible
    ) -> None:
        """Raise ValueError for implausible proprio or, if the setting is "warn", log each dim once per session."""
        for row, (observation, session) in enumerate(zip(observations, sessions, strict=True)):
            self.robots[session.robot].check_plausible(observation.proprio, row, session.warned, setting)

    def read_images(self, observations: Sequence[Observation], robots: Sequence[int]) -> UInt8[np.ndarray, "B V H W 3"]:
        """Return the images of each observation. Raises ValueError for images of another form or size."""
        count = len(self._whole.cameras)
        images = []
        for row, (observation, robot) in enumerate(zip(observations, robots, strict=True)):
            try:
                images.append(
                    camera_views(observation, self._embodiments[robot], self._indices[robot], count, self._view)
                )
            except ValueError as error:
                raise ValueError(f"observation {row}: {error}") from None
        sizes = {i.shape[1:3] for i in images}
        if len(sizes) > 1:
            raise ValueError(
                f"the images of all observations of a call must have one size, got {sorted(sizes)}: act on them in "
                "calls of their own, or train with model.view.size"
            )
        return np.stack(images)


def _find_ranges(
    space: ActionSpace, recorded: Mapping[str, Sequence[float]]
) -> tuple[Float64[np.ndarray, "P"], Float64[np.ndarray, "P"]]:
    """Return the range of each dim, recorded or declared; infinite where nothing is known."""
    low, high = np.full(space.size, np.inf), np.full(space.size, -np.inf)
    for below, above in (("min", "max"), ("q01", "q99")):
        low = np.minimum(low, np.asarray(recorded.get(below, low), np.float64))
        high = np.maximum(high, np.asarray(recorded.get(above, high), np.float64))
    for group, place in zip(space.groups, space.slices().values(), strict=True):
        if group.low is not None and group.high is not None:
            low[place], high[place] = np.minimum(low[place], group.low), np.maximum(high[place], group.high)
    unknown = ~(low <= high)
    return np.where(unknown, -np.inf, low), np.where(unknown, np.inf, high)


def _compute_scales(space: ActionSpace, low: np.ndarray, high: np.ndarray) -> Float64[np.ndarray, "P"]:
    """Return how large a usual difference is in each dim."""
    known = np.isfinite(low) & np.isfinite(high)
    spread = np.where(known, np.maximum(high - low, np.maximum(np.abs(low), np.abs(high))), 0.0)
    scales = spread.copy()
    for place in space.slices().values():
        scales[place] = np.maximum(scales[place], _OF_GROUP * spread[place].max(initial=0))
    most = spread.max(initial=0)
    return np.where(scales > 0, scales, _OF_GROUP * most if most > 0 else 1.0)
