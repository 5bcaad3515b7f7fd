"""A second robot in Meta-World's scenes, `robot: side-arm`, to study transfer from one robot to another.

It is the same Sawyer arm and the same physics, but to a policy another robot: a camera on the other side of the table
and none behind the hand, half the actions per second, and vectors that begin with the gripper. Its gripper commands go
from 0 (closed) to 1 (open), those of the stock robot from -1 (open) to 1 (closed).
"""

from __future__ import annotations

from typing import Any, Mapping

import numpy as np

from anyvla_sim.rendering import View

NAME = "side-arm"
REPEAT = 4  # control steps per action; the stock robot has 2
VIEWS = {
    "corner": View("corner3", (0.1, 0.8, 0.1, 0.8), 96, 96, oversample=2),
    "wrist": View("gripperPOV", (0.1, 0.9, 0.1, 0.9), 96, 96),
}
LIMITS = (np.array([0, -1, -1, -1], np.float32), np.ones(4, np.float32))


def make_embodiment(stock: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the embodiment, given that of the stock robot at the same rate."""
    motion, _ = stock["action"]["groups"]
    position, opening = stock["proprio"]["groups"]
    return {
        **stock,
        "name": "side-arm-metaworld",
        "proprio": {"groups": [opening, position]},
        "action": {
            "groups": [{"name": "gripper", "size": 1, "kind": "gripper", "low": 0, "high": 1, "open": 1}, motion]
        },
    }


def to_stock(action: np.ndarray) -> np.ndarray:
    """Return the action of the stock robot that does the same: position, then gripper."""
    return np.concatenate([action[1:], 1 - 2 * action[:1]]).astype(np.float32)


def from_stock(action: np.ndarray) -> np.ndarray:
    """Return the action that does the same as one of the stock robot."""
    return np.concatenate([(1 - action[-1:]) / 2, action[:-1]]).astype(np.float32)


def order_proprio(stock: np.ndarray) -> np.ndarray:
    """Return the proprio of the stock robot with the gripper first."""
    return np.concatenate([stock[-1:], stock[:-1]])
