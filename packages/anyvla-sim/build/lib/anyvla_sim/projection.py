"""Convert between points of a MuJoCo scene and positions in a picture of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anyvla_sim.rendering import View

if TYPE_CHECKING:
    import mujoco


class Projection:
    """The geometry of one picture. Positions in it are fractions of its width and height, from the upper left."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, view: View) -> None:
        """`data` must be up to date (`mj_forward`)."""
        camera = model.camera(view.camera).id
        self._eye = data.cam_xpos[camera].copy()
        self._axes = data.cam_xmat[camera].reshape(3, 3).copy()  # columns: right, up, backwards
        self._slope = float(np.tan(np.radians(model.cam_fovy[camera]) / 2))
        self._view = view

    def project(self, points: np.ndarray) -> np.ndarray:
        """Return the positions (n, 2) of points (n, 3) in the world (m). Points behind the camera become NaN."""
        right, up, back = ((np.asarray(points) - self._eye) @ self._axes).T
        depth = np.where(back < 0, -back, np.nan)
        square = np.stack([1 + right / depth / self._slope, 1 - up / depth / self._slope], 1) / 2
        left, right_edge, top, bottom = self._view.box
        square = 1 - square if self._view.turned else square
        return (square - [left, top]) / [right_edge - left, bottom - top]

    def unproject(self, position: np.ndarray, height: float) -> np.ndarray:
        """Return the point (3,) at `height` (m) above the floor that is at a position (2,) of the picture."""
        left, right, top, bottom = self._view.box
        square = np.asarray(position) * [right - left, bottom - top] + [left, top]
        square = 1 - square if self._view.turned else square
        ray = self._axes @ [(2 * square[0] - 1) * self._slope, (1 - 2 * square[1]) * self._slope, -1.0]
        return self._eye + ray * (height - self._eye[2]) / ray[2]
