"""Conversions of rotations, poses and gripper commands between policies and SimplerEnv.

The conventions are those of SimplerEnv's own policies (simpler_env/policies/octo) and of its replay of Bridge
demonstrations (simpler_env/utils/debug): Euler angles are roll, pitch, yaw about the fixed x, y, z.
"""

from __future__ import annotations

import math

import numpy as np

# Bridge's orientations are relative to a gripper that points down; the simulator's gripper points along its x.
DOWN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
STICKY = 15  # control steps for which a Google robot continues to open or close, as in Octo's policy for the real robot
SMALL = 1e-12


def euler_to_axis_angle(euler: np.ndarray) -> np.ndarray:
    """Return the axis times the angle (0 to pi), float64 (3,), of `euler`: roll, pitch, yaw (rad), (3,)."""
    r, p, y = (0.5 * float(angle) for angle in euler)
    cr, sr, cp, sp, cy, sy = math.cos(r), math.sin(r), math.cos(p), math.sin(p), math.cos(y), math.sin(y)
    real = cr * cp * cy + sr * sp * sy
    imaginary = np.array([sr * cp * cy - cr * sp * sy, cr * sp * cy + sr * cp * sy, cr * cp * sy - sr * sp * cy])
    if real < 0:  # q and -q are one rotation; take the smaller angle
        real, imaginary = -real, -imaginary
    length = float(np.linalg.norm(imaginary))
    if length < SMALL:
        return 2.0 * imaginary
    return imaginary * (2.0 * math.atan2(length, real) / length)


def quaternion_to_matrix(wxyz: np.ndarray) -> np.ndarray:
    """Return the rotation matrix, float64 (3, 3), of a quaternion (4,) with the real part first."""
    w, x, y, z = np.asarray(wxyz, np.float64) / np.linalg.norm(wxyz)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def matrix_to_euler(rotation: np.ndarray) -> np.ndarray:
    """Return roll, pitch, yaw (rad), float64 (3,), of a rotation matrix (3, 3). At a pitch of +-90 degrees yaw is 0."""
    across = math.hypot(rotation[0, 0], rotation[1, 0])
    pitch = math.atan2(-rotation[2, 0], across)
    if across < 1e-9:
        return np.array([math.atan2(-rotation[1, 2], rotation[1, 1]), pitch, 0.0])
    return np.array([math.atan2(rotation[2, 1], rotation[2, 2]), pitch, math.atan2(rotation[1, 0], rotation[0, 0])])


def matrix_to_quaternion(rotation: np.ndarray) -> np.ndarray:
    """Return the quaternion, float64 (4,), of a rotation matrix (3, 3), the real part last and >= 0."""
    # The eigenvector of the largest eigenvalue (Bar-Itzhack, 2000), which is well conditioned for every rotation.
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


def yaw_to_quaternion(yaw: float) -> np.ndarray:
    """Return the robot's start orientation, as in the authors' scripts: half a turn about z, then by `yaw` (rad).

    The quaternion (4,) has its real part first.
    """
    return np.array([-math.sin(yaw / 2), 0.0, 0.0, math.cos(yaw / 2)])


class StickyGripper:
    """Turns the wanted opening of the Google robot's gripper into the change that its controller takes.

    A change of 1 closes and -1 opens. A change of more than 0.5 is repeated for 15 control steps, so that the fingers
    have time to arrive; other changes meanwhile are dropped.
    """

    def __init__(self) -> None:
        self._before: float | None = None
        self._held = 0.0
        self._left = 0  # steps for which the change is still repeated

    def __call__(self, opened: float) -> float:
        """Return the change to command. `opened` is 1 for open, 0 for closed."""
        change = 0.0 if self._before is None else self._before - opened
        self._before = opened
        if self._left == 0 and abs(change) > 0.5:
            self._held, self._left = change, STICKY
        if self._left == 0:
            return change
        self._left -= 1
        return self._held
