"""Make up the observation of a first prediction, which is slow and should not be a client's."""

from __future__ import annotations

import numpy as np

from anyvla.observing import ProprioChecker
from anyvla.policy import VLA
from anyvla.types import Observation

INSTRUCTION = "pick up the object"
_SIDE = 224  # of images, if the policy takes any size


def make_observation(vla: VLA, robot: str) -> Observation:
    """Return gray images, and proprio in the middle of the recorded range."""
    (trained,) = (r for r in vla.robots if r.embodiment.name == robot)
    height, width = vla.config.view.size or (_SIDE, _SIDE)
    images = {camera: np.full((height, width, 3), 128, np.uint8) for camera in trained.embodiment.cameras}
    ranges = ProprioChecker(trained)
    known = np.isfinite(ranges.low) & np.isfinite(ranges.high)
    middle = np.where(known, (np.where(known, ranges.low, 0) + np.where(known, ranges.high, 0)) / 2, 0)
    return Observation(images, middle.astype(np.float32))
