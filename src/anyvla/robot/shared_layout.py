"""The layout of views, proprio and actions in which windows of several robots share a batch.

A camera that a robot lacks is a black image, a dim that it lacks is 0 and masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from anyvla.robot.embodiment import Embodiment
from anyvla.robot.normalize import Statistics
from anyvla.robot.shared_space import dim_indices, merge_spaces


@dataclass(frozen=True)
class Robot:
    """A robot of a policy, with the statistics of its data."""

    embodiment: Embodiment
    statistics: Statistics


@dataclass(frozen=True)
class RobotIndices:
    """The indices of a robot's views and dims in the shared layout."""

    views: Int64[np.ndarray, "Vr"]
    proprio: Int64[np.ndarray, "Pr"]
    action: Int64[np.ndarray, "Ar"]


class SharedLayout:
    """The layout that several robots share. `embodiment` describes it like one robot; for one robot it is its own.

    Raises ValueError for two robots of one name, and where the same group means different things (`merge_spaces`).
    """

    def __init__(self, robots: Sequence[Embodiment]) -> None:
        self.names = names = [r.name for r in robots]  # in the order of the indices of a batch
        if len(set(names)) != len(names) or not names:
            raise ValueError(f"the robots of a policy need different names, and one at least: got {names}")
        whole = robots[0]
        if len(robots) > 1:
            whole = Embodiment(
                name=" + ".join(names),
                cameras=tuple(dict.fromkeys(c for r in robots for c in r.cameras)),
                proprio=merge_spaces({r.name: r.proprio for r in robots}, "proprio"),
                action=merge_spaces({r.name: r.action for r in robots}, "action"),
                control_hz=max(r.control_hz for r in robots),
            )
        self.embodiment = whole
        self.robots = {
            r.name: RobotIndices(
                np.array([whole.cameras.index(c) for c in r.cameras], np.int64),
                dim_indices(r.proprio, whole.proprio),
                dim_indices(r.action, whole.action),
            )
            for r in robots
        }

    def find_robot(self, name: str | None) -> int:
        """Return the index of a robot; None: of the only one. Raises ValueError for an unknown or a missing name."""
        names = self.names
        if name is None and len(names) == 1:
            return 0
        if name not in names:
            asked = "say which robot acts" if name is None else f"there is no robot {name!r}"
            raise ValueError(
                f"{asked}: this policy was trained for {', '.join(names)}, as in start(text, robot={names[0]!r})"
            )
        return names.index(name)
