"""Between the numbers that policies read and write and those of SimplerEnv: rotations, poses, grippers.

The conventions are those of SimplerEnv's own policies (simpler_env/policies/octo) and of its replay of Bridge
demonstrations (simpler_env/utils/debug): Euler angles are roll, pitch, yaw about the fixed x, y, z.
"""

from __future__ import annotations

import math

import numpy as np

# Bridge writes orientations relative to a gripper that points down; the simulator's gripper looks along its x.
DOWN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
STICKY = 15  # control steps for which a Google robot goes on opening or closing, as Octo's real policy does
SMALL = 1e-12


def axis_angle(euler: np.ndarray) -> np.ndarray:
    """The axis of a rotation, as long as its angle (0 to pi), float64 (3,). `euler`: roll, pitch, yaw (rad), (3,)."""
    r, p, y = (0.5 * float(angle) for angle in euler)
    cr, sr, cp, sp, cy, sy = math.cos(r), math.sin(r), math.cos(p), math.sin(p), math.cos(y), math.sin(y)
    real = cr * cp * cy + sr * sp * sy
    imaginary = np.array([sr * cp * cy - cr * sp * sy, cr * sp * cy + sr * cp * sy, cr * cp * sy - sr * sp * cy])
    if real < 0:  # q and -q are one rotation; this one has the smaller angle
        real, imaginary = -real, -imaginary
    length = float(np.linalg.norm(imaginary))
    if length < SMALL:
        return 2.0 * imaginary
    return imaginary * (2.0 * math.atan2(length, real) / length)


def matrix(wxyz: np.ndarray) -> np.ndarray:
    """The rotation matrix of a quaternion (4,) with the real part first, float64 (3, 3)."""
    w, x, y, z = np.asarray(wxyz, np.float64) / np.linalg.norm(wxyz)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def euler(rotation: np.ndarray) -> np.ndarray:
    """Roll, pitch, yaw (rad) of a rotation matrix (3, 3), float64 (3,). At a pitch of +-90 degrees the yaw is 0."""
    across = math.hypot(rotation[0, 0], rotation[1, 0])
    pitch = math.atan2(-rotation[2, 0], across)
    if across < 1e-9:
        return np.array([math.atan2(-rotation[1, 2], rotation[1, 1]), pitch, 0.0])
    return np.array([math.atan2(rotation[2, 1], rotation[2, 2]), pitch, math.atan2(rotation[1, 0], rotation[0, 0])])


def quaternion_xyzw(rotation: np.ndarray) -> np.ndarray:
    """The quaternion of a rotation matrix (3, 3), the real part last and >= 0, float64 (4,)."""
    # The eigenvector of the largest eigenvalue (Bar-Itzhack, 2000): no case is worse conditioned than another.
    m = rotation
    k = np.array(
        [
            [m[0, 0] - m[1, 1] - m[2, 2], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0], m[2, 1] - m[1, 2]],
            [m[0, 1] + m[1, 0], m[1, 1] - m[0, 0] - m[2, 2], m[1, 2] + m[2, 1], m[0, 2] - m[2, 0]],
            [m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], m[2, 2] - m[0, 0] - m[1, 1], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], m[0, 0] + m[1, 1] + m[2, 2]],
        ]
    )
    found = np.linalg.eigh(k)[1][:, -1]
    return -found if found[3] < 0 else found


def turned(yaw: float) -> np.ndarray:
    """How the authors' scripts stand a robot: half a turn about z, then by `yaw` (rad). Real part first, (4,)."""
    return np.array([-math.sin(yaw / 2), 0.0, 0.0, math.cos(yaw / 2)])


class StickyGripper:
    """How far the Google robot's gripper is told to move, from how far it is to be open.

    Its controller takes changes, 1: close, -1: open. A command that differs from the one before by more than 0.5 is
    held for 15 control steps, so that the fingers have the time to arrive; a change asked for meanwhile is lost.
    """

    def __init__(self) -> None:
        self._before: float | None = None
        self._held = 0.0
        self._left = 0  # steps for which it is held still

    def __call__(self, opened: float) -> float:
        """The change to ask for now. `opened`: 1 open, 0 closed."""
        change = 0.0 if self._before is None else self._before - opened
        self._before = opened
        if self._left == 0 and abs(change) > 0.5:
            self._held, self._left = change, STICKY
        if self._left == 0:
            return change
        self._left -= 1
        return self._held
