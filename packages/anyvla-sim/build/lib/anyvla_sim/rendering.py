"""Off-screen MuJoCo pictures: finds a GL driver that works and renders just the part of an image that is needed.

On a CPU, shadows, reflections and multisampling cost ten times more than the rest. There are therefore two render
settings: `fast` leaves them out, `native` draws the model as its authors made it. Their pixels differ, so a policy must
be trained and evaluated with the same setting, and every result records it.
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Sequence

import numpy as np

from anyvla_sim.base import BenchmarkUnusable
from anyvla_sim.names import check_name
from anyvla_sim.workers.trial import TrialFailed, run_trial

if TYPE_CHECKING:
    import mujoco

RENDER_SETTINGS = ("fast", "native")
LARGEST = 640  # pixels a side of the off-screen buffer
HIDDEN = 5  # the geom group (of 0..5) that MuJoCo draws only on request


class RendererMissing(BenchmarkUnusable, RuntimeError):
    """No GL driver can draw without a screen here; the message says what to install."""


def choose_render_setting(name: str | None, default: str = "fast") -> str:
    """Return the render setting: `name`, else $ANYVLA_RENDER, else `default`. Raises ValueError for others."""
    name = name or os.environ.get("ANYVLA_RENDER") or default
    check_name(name, RENDER_SETTINGS, "there is no render setting")
    return name


@dataclass(frozen=True)
class View:
    """A part of a camera's image, at a size in pixels."""

    camera: str
    box: tuple[float, float, float, float]  # left, right, top, bottom: fractions of the upright square image
    height: int  # pixels
    width: int
    turned: bool = False  # turn the image by 180 degrees, as the camera is mounted upside down
    oversample: int = 1  # render this many times larger, then average


@dataclass(frozen=True)
class Ornament:
    """A body that is only drawn and takes no part in physics."""

    shape: str  # "sphere" | "box" | "cylinder"
    size: tuple[float, float, float]  # half extents, m
    position: tuple[float, float, float]  # m, in the world
    color: tuple[float, float, float]


@lru_cache(maxsize=None)
def find_driver() -> str:
    """Return `egl` or `osmesa`: the driver that MUJOCO_GL names, else the first that works here.

    MUJOCO_GL is set to it, so that worker processes do not search again. Raises RendererMissing.
    """
    asked = os.environ.get("MUJOCO_GL", "").lower().strip()
    if asked or not sys.platform.startswith("linux"):
        return asked
    faults = []
    for driver in ("egl", "osmesa"):
        # In another process: PyOpenGL stays bound to a driver that failed, and some drivers crash.
        environment = {**{k: v for k, v in os.environ.items() if k != "PYOPENGL_PLATFORM"}, "MUJOCO_GL": driver}
        probe = f"from mujoco.{driver} import GLContext; c = GLContext(8, 8); c.make_current(); c.free()"
        try:
            run_trial(probe, environment)
        except TrialFailed as fault:
            faults.append(f"{driver}: {fault}")
            continue
        os.environ["MUJOCO_GL"] = driver
        return driver
    raise RendererMissing(_advise("; ".join(faults)))


def explain_driver_error(error: Exception) -> RendererMissing:
    """Return the error to raise when the driver that MUJOCO_GL names fails."""
    return RendererMissing(_advise(f"MUJOCO_GL={os.environ.get('MUJOCO_GL') or 'unset'}: {error!r}"))


def _advise(fault: str) -> str:
    return (
        f"MuJoCo cannot draw here, no GL driver works ({fault}). On Debian or Ubuntu: "
        "sudo apt-get install -y libegl1 libgl1-mesa-dri libgles2 libosmesa6"
    )


class _SharedContext:
    """The one GL context of this process, in which pictures of all models are drawn."""

    _context: Any = None
    users = 0

    @classmethod
    def acquire(cls) -> None:
        if cls._context is None:
            driver = find_driver()
            try:
                module = f"mujoco.{driver}" if driver in ("egl", "osmesa") else "mujoco"
                cls._context = importlib.import_module(module).GLContext(LARGEST, LARGEST)
                cls._context.make_current()
            except Exception as error:  # PyOpenGL raises errors of many types, such as AttributeError
                cls._context = None
                raise explain_driver_error(error) from error
        cls.make_current()
        cls.users += 1

    @classmethod
    def make_current(cls) -> None:
        cls._context.make_current()  # another library's renderer may have made its own current

    @classmethod
    def release(cls) -> None:
        cls.users -= 1
        if cls.users == 0:
            cls._context.free()
            cls._context = None


class Renderer:
    """Draws models that share their meshes and textures (loaded from one file), one at a time."""

    def __init__(self, model: mujoco.MjModel, render: str = "fast", hidden: Sequence[int] = ()) -> None:
        """`hidden` lists geom groups that are not drawn, in addition to the groups that MuJoCo hides."""
        import mujoco

        self.render = choose_render_setting(render)
        _SharedContext.acquire()
        quality = model.vis.quality
        if self.render == "fast":
            quality.offsamples = quality.shadowsize = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = LARGEST
        try:
            self._context: Any = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except mujoco.FatalError as error:  # glfw without a display returns an unusable context
            _SharedContext.release()
            raise explain_driver_error(error) from error
        self._scene = mujoco.MjvScene(model, maxgeom=4000)
        if self.render == "fast":
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._option = mujoco.MjvOption()
        for group in hidden:
            self._option.geomgroup[group] = 0
        self._perturb = mujoco.MjvPerturb()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def draw(
        self, model: mujoco.MjModel, data: mujoco.MjData, view: View, ornaments: Sequence[Ornament] = ()
    ) -> np.ndarray:
        """Return the picture of `view`, uint8 (H, W, 3), RGB, with `ornaments` drawn into the scene.

        `data` must be up to date (`mj_forward`). Raises ValueError if the picture is too large.
        """
        import mujoco

        height, width = view.height * view.oversample, view.width * view.oversample
        if max(height, width) > LARGEST or min(height, width) < 1:
            raise ValueError(
                f"pictures are 1 to {LARGEST} pixels a side, oversampling included; got {height} x {width}"
            )
        camera = model.camera(view.camera).id
        left, right, top, bottom = view.box
        if view.turned:
            left, right, top, bottom = 1 - right, 1 - left, 1 - bottom, 1 - top
        slope = np.tan(np.radians(model.cam_fovy[camera]) / 2)
        edges = slope * (2 * np.array([left, right, 1 - bottom, 1 - top]) - 1)  # left, right, bottom, top at depth 1

        self._camera.fixedcamid = camera
        groups = model.geom_group.copy()
        if self.render == "fast":
            model.geom_group[~_find_geoms_in_view(model, data, camera, edges)] = HIDDEN
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, self._option, self._perturb, self._camera, everything, self._scene)
        model.geom_group[:] = groups
        for ornament in ornaments:
            self._add(ornament)
        for eye in self._scene.camera:
            left, right, bottom, top = edges * eye.frustum_near
            eye.frustum_center, eye.frustum_width = (left + right) / 2, (right - left) / 2
            eye.frustum_bottom, eye.frustum_top = bottom, top

        _SharedContext.make_current()
        window = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)  # another buffer may be bound
        mujoco.mjr_render(window, self._scene, self._context)
        pixels = np.empty((height, width, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, window, self._context)
        pixels = pixels[:, ::-1] if view.turned else pixels[::-1]  # GL's rows go upwards
        if view.oversample > 1:
            k = view.oversample
            sums = pixels.reshape(view.height, k, view.width, k, 3).sum((1, 3), dtype=np.uint32)
            pixels = ((sums + k * k // 2) // (k * k)).astype(np.uint8)
        return np.ascontiguousarray(pixels)

    def _add(self, ornament: Ornament) -> None:
        import mujoco

        kind = getattr(mujoco.mjtGeom, f"mjGEOM_{ornament.shape.upper()}")
        geom = self._scene.geoms[self._scene.ngeom]
        color = np.array([*ornament.color, 1.0], np.float32)
        mujoco.mjv_initGeom(geom, kind, np.array(ornament.size), np.array(ornament.position), np.eye(3).ravel(), color)
        self._scene.ngeom += 1

    def close(self) -> None:
        """Free the driver's resources."""
        if self._context is not None:
            _SharedContext.make_current()
            self._context.free()
            self._context = None
            _SharedContext.release()


def _find_geoms_in_view(model: mujoco.MjModel, data: mujoco.MjData, camera: int, edges: np.ndarray) -> np.ndarray:
    """Return a mask of the geoms whose bounding sphere touches the view frustum. Most geoms of the arm do not."""
    radius = model.geom_rbound  # 0 for planes
    x, y, z = ((data.geom_xpos - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3)).T
    depth = -z  # cameras look along -z
    left, right, bottom, top = edges
    inside = depth > -radius
    for along, edge, sign in ((x, left, 1), (x, right, -1), (y, bottom, 1), (y, top, -1)):
        inside &= sign * (along - edge * depth) / np.hypot(1, edge) > -radius
    return inside | (radius == 0)
