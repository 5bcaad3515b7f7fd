"""Meta-World's scripted experts for the suite `chains`, from wherever the last task left the hand.

The stock experts expect a free way from the hand to the object. Here the hand first rises above all objects, then moves
over the one to act on, and there the stock expert takes over. The action depends on the current state only.
"""

from __future__ import annotations

from typing import Any, Mapping

import numpy as np

from anyvla_sim.metaworld.chain_tasks import GOALS

TRAVEL_M = 0.42  # height of the hand above all objects; the button is 0.31 high
_NEAR_M = 0.12  # horizontal distance from the object up to which the hand need not rise above all others
_CLEAR_M = 0.1  # height above the object's point at which the hand can move over it
_GAIN = 25.0  # of Meta-World's experts: actions per m
# Where the stock expert takes over: a point (m, from the object's own) and the largest horizontal distance from it.
_BEGINNINGS = {
    "drawer-open": ((0.0, 0.0), 0.06),
    "drawer-close": ((0.0, -0.075), 0.1),
    "window-open": ((-0.03, -0.03), 0.04),
    "window-close": ((0.03, -0.03), 0.04),
    "button-press": ((0.0, 0.0), 0.04),
}


def act(task: str, sim: Any, hand: np.ndarray, policies: Mapping[str, Any]) -> np.ndarray:
    """Return the expert's action (4,). `hand`: position and gripper opening (4,); `policies`: Meta-World's experts."""
    offset, radius = _BEGINNINGS[task]
    target = locate(task, sim)
    aside = target[:2] + offset - hand[:2]
    distance, clear = np.linalg.norm(aside), target[2] + _CLEAR_M
    grip = -1.0 if task == "drawer-open" else 1.0
    if distance > radius:
        height = clear if distance < _NEAR_M else TRAVEL_M
        across = aside if hand[2] > height - 0.03 else np.zeros(2)
        return _GAIN * np.array([*across, max(height - hand[2], 0.0), grip / _GAIN])
    if hand[2] > clear + 0.02:
        return _GAIN * np.array([*aside, clear - hand[2], grip / _GAIN])
    seen = np.zeros(39)
    seen[:4], seen[4:7] = hand, target
    return np.asarray(policies[f"{GOALS[task].stock}-v3"]().get_action(seen))


def locate(task: str, sim: Any) -> np.ndarray:
    """Return the point (3,) of the object that the stock expert of a task is given (m)."""
    if task == "drawer-open":
        return sim.data.body("drawer_link").xpos + (0.0, -0.16, 0.0)
    if task == "drawer-close":
        return sim.data.body("drawer_link").xpos + (0.0, -0.16, 0.05)
    if task == "button-press":
        return sim.data.body("button").xpos + (0.0, 0.0, 0.193)
    return sim._get_site_pos("handleOpenStart" if task == "window-open" else "handleCloseStart")
