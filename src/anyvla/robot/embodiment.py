"""A robot: the meaning of its proprio and its actions, its cameras, and its control rate."""

from __future__ import annotations

from pydantic import Field
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT
from anyvla.limits import CAMERAS, HZ
from anyvla.robot.space import ActionSpace


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Embodiment:
    """A robot: its cameras, the meaning of its proprio and actions, and its control rate."""

    name: str = Field(min_length=1)  # of the robot, recorded with data and results
    cameras: tuple[str, ...] = Field(max_length=CAMERAS)  # names of its cameras, in order
    proprio: ActionSpace
    action: ActionSpace
    control_hz: float = Field(gt=0, le=HZ)  # actions per second

    def __post_init__(self) -> None:
        if len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f"camera names must differ: {list(self.cameras)}")
