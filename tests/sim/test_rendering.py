"""MuJoCo pictures of small scenes with known colors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyvla_sim import rendering
from anyvla_sim.rendering import Ornament, Renderer, RendererMissing, View, choose_render_setting, find_driver
from anyvla_sim.workers.trial import TrialFailed

pytestmark = pytest.mark.simulator("mujoco")

RED, GREEN, BLUE, YELLOW, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 0, 0)
WHOLE = (0.0, 1.0, 0.0, 1.0)
# The camera looks down from 1 m with 90 degrees: it sees 2 m x 2 m, x to the right and y up. Light adds nothing.
FLAG = """
<mujoco>
  <visual>
    <headlight ambient="1 1 1" diffuse="0 0 0" specular="0 0 0"/>
    <quality offsamples="0" shadowsize="0"/>
    <map znear="0.01"/>
  </visual>
  <worldbody>
    <camera name="eye" pos="0 0 1" fovy="90"/>
    <geom type="box" size="0.5 0.5 0.01" pos="-0.5 0.5 -0.01" rgba="1 0 0 1"/>
    <geom type="box" size="0.5 0.5 0.01" pos="0.5 0.5 -0.01" rgba="0 1 0 1"/>
    <geom type="box" size="0.5 0.5 0.01" pos="-0.5 -0.5 -0.01" rgba="0 0 1 1"/>
    <geom type="box" size="0.5 0.5 0.01" pos="0.5 -0.5 -0.01" rgba="1 1 0 1"/>
    <geom type="box" size="0.1 0.1 0.01" pos="0 0 0.01" rgba="0 0 0 1" group="1"/>
  </worldbody>
</mujoco>
"""
SHADED = """
<mujoco>
  <visual>
    <headlight ambient="0.2 0.2 0.2" diffuse="0 0 0" specular="0 0 0"/>
    <quality offsamples="{samples}" shadowsize="{shadows}"/>
  </visual>
  <asset><material name="mirror" reflectance="{reflectance}" specular="0"/></asset>
  <worldbody>
    <camera name="eye" pos="0 0 3" fovy="60"/>
    <light directional="true" pos="4 0 4" dir="-1 0 -1" diffuse="0.6 0.6 0.6" specular="0 0 0"/>
    <geom type="plane" size="3 3 0.1" rgba="0.8 0.8 0.8 1" material="mirror"/>
    {geoms}
  </worldbody>
</mujoco>
"""


class Picture:
    """Draws one model."""

    def __init__(self, xml: str, render: str = "fast", **options: Any) -> None:
        import mujoco

        find_driver()
        self.model = mujoco.MjModel.from_xml_string(xml)
        self.data = mujoco.MjData(self.model)
        mujoco.mj_forward(self.model, self.data)
        self.renderer = Renderer(self.model, render, **options)

    def __call__(
        self, box: tuple[float, ...] = WHOLE, height: int = 40, width: int = 40, ornaments: Any = (), **options: Any
    ) -> np.ndarray:
        view = View("eye", box, height, width, **options)  # type: ignore[arg-type]
        return self.renderer.draw(self.model, self.data, view, ornaments)


@pytest.fixture(scope="module")
def flag() -> Iterator[Picture]:
    picture = Picture(FLAG, hidden=(1,))
    yield picture
    picture.renderer.close()


def get_corners(picture: np.ndarray) -> list[tuple[int, ...]]:
    """Return the colors of the pixels at the top left, top right, bottom left and bottom right."""
    return [tuple(picture[row, column].tolist()) for row in (0, -1) for column in (0, -1)]


def test_pictures_are_upright_and_rgb(flag: Picture) -> None:
    picture = flag()
    assert (picture.shape, picture.dtype, picture.flags.c_contiguous) == ((40, 40, 3), np.uint8, True)
    assert get_corners(picture) == [RED, GREEN, BLUE, YELLOW]


def test_a_turned_picture_is_turned_by_half_and_not_mirrored(flag: Picture) -> None:
    assert get_corners(flag(turned=True)) == [YELLOW, BLUE, GREEN, RED]


def test_a_box_names_left_right_top_and_bottom_of_the_picture_that_is_shown(flag: Picture) -> None:
    quarters = [(0.0, 0.5, 0.0, 0.5), (0.5, 1.0, 0.0, 0.5), (0.0, 0.5, 0.5, 1.0), (0.5, 1.0, 0.5, 1.0)]
    for turned, colors in ((False, (RED, GREEN, BLUE, YELLOW)), (True, (YELLOW, BLUE, GREEN, RED))):
        for box, color in zip(quarters, colors, strict=True):
            assert get_corners(flag(box, turned=turned)) == [color] * 4
    wide = flag((0.25, 1.0, 0.4, 0.6), height=20, width=75)  # 75 columns from a quarter on: red until column 25
    assert wide.shape == (20, 75, 3)
    assert [tuple(wide[5, column].tolist()) for column in (24, 25)] == [RED, GREEN]
    assert [tuple(wide[row, 5].tolist()) for row in (9, 10)] == [RED, BLUE]


def test_oversampling_is_the_rounded_mean(flag: Picture) -> None:
    picture = flag(height=3, width=3, oversample=2)  # the pixel in the middle of a side is half of either color
    assert get_corners(picture) == [RED, GREEN, BLUE, YELLOW]
    assert picture[0, 1].tolist() == [128, 128, 0]
    assert picture[1, 0].tolist() == [128, 0, 128]
    assert picture[1, 1].tolist() == [128, 128, 64]  # (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def test_hidden_groups_are_not_drawn(flag: Picture) -> None:
    shown = Picture(FLAG)
    assert shown()[20, 20].tolist() == list(BLACK)
    assert flag()[20, 20].tolist() == list(YELLOW)
    shown.renderer.close()


def test_an_ornament_has_its_shape_size_position_and_color(flag: Picture) -> None:
    """200 pixels show 2 m: 1 cm each, at the height of the boxes."""

    def white(shape: str, size: tuple[float, float, float]) -> np.ndarray:
        drawn = flag(height=200, width=200, ornaments=[Ornament(shape, size, (0.5, 0.5, 0.0), (1, 1, 1))])
        rows, columns = np.nonzero((drawn == 255).all(-1))
        assert (rows.mean(), columns.mean()) == pytest.approx((49.5, 149.5), abs=1)
        return np.array([np.ptp(rows) + 1, np.ptp(columns) + 1, len(rows)])

    assert white("box", (0.2, 0.1, 0.001)) == pytest.approx([20, 40, 800], abs=2)
    assert white("cylinder", (0.2, 0.001, 0.001)) == pytest.approx([40, 40, np.pi * 20**2], rel=0.05)
    rows, columns, area = white("sphere", (0.1, 0.1, 0.1))
    assert (rows, columns) == pytest.approx((21, 21), abs=2)  # its top is nearer than the boxes
    assert area == pytest.approx(np.pi / 4 * rows * columns, rel=0.07)
    blue = flag(ornaments=[Ornament("box", (0.1, 0.1, 0.01), (-0.5, 0.5, 0.0), (0.0, 0.0, 1.0))])
    assert (blue[10, 10].tolist(), get_corners(blue)[0]) == (list(BLUE), RED)
    assert get_corners(flag()) == [RED, GREEN, BLUE, YELLOW]
    assert flag()[10, 10].tolist() == list(RED)  # the next picture has no ornament


def make_geoms() -> str:
    rng = np.random.default_rng(0)
    kinds = ("sphere", "box", "capsule")
    return "\n".join(
        f'<geom type="{kinds[i % 3]}" size="{a:.3f} {b:.3f} {c:.3f}" pos="{x:.3f} {y:.3f} {z:.3f}"'
        f' euler="{i} {2 * i} 0" rgba="{r:.2f} {g:.2f} {1 - r:.2f} 1"/>'
        for i, (a, b, c, r, g) in enumerate(rng.uniform(0.05, 0.25, (30, 5)) * (1, 1, 1, 4, 4))
        for x, y, z in [rng.uniform((-2, -2, 0.1), (2, 2, 3.2))]
    )


def test_fast_pictures_show_everything_that_reaches_into_them() -> None:
    """`fast` leaves out geoms that cannot show. Without shadows and the like, it must agree with `native`."""
    xml = SHADED.format(samples=0, shadows=0, reflectance=0, geoms=make_geoms())
    fast, native = Picture(xml), Picture(xml, "native")
    for left in np.arange(0, 1, 0.25):
        for top in np.arange(0, 1, 0.25):
            for turned in (False, True):
                box = (left, left + 0.25, top, top + 0.25)
                assert np.array_equal(fast(box, 24, 24, turned=turned), native(box, 24, 24, turned=turned))
    fast.renderer.close()
    native.renderer.close()


@pytest.mark.parametrize(("render", "shadow"), [("fast", False), ("native", True)])
def test_only_native_pictures_have_shadows(render: str, shadow: bool) -> None:
    xml = SHADED.format(samples=4, shadows=1024, reflectance=0, geoms='<geom type="sphere" size="0.2" pos="0 0 0.6"/>')
    picture = Picture(xml, render)
    drawn = picture(height=120, width=120)
    picture.renderer.close()
    shaded, lit = drawn[60, 60 - 21], drawn[60, 60 + 21]  # 0.6 m aside, at 120 pixels for 3.46 m
    assert (int(shaded.max()) < int(lit.max()) - 50) == shadow


@pytest.mark.parametrize(("render", "smooth"), [("fast", False), ("native", True)])
def test_only_native_pictures_are_multisampled(render: str, smooth: bool) -> None:
    geoms = '<geom type="box" size="0.5 0.5 0.1" pos="0 0 0.1" euler="0 0 20" rgba="1 0 0 1"/>'
    picture = Picture(SHADED.format(samples=4, shadows=0, reflectance=0, geoms=geoms), render)
    colors = np.unique(picture().reshape(-1, 3), axis=0)
    picture.renderer.close()
    assert (len(colors) > 2) == smooth  # the edges of the box are mixtures


@pytest.mark.parametrize(("render", "mirrored"), [("fast", False), ("native", True)])
def test_only_native_pictures_have_reflections(render: str, mirrored: bool) -> None:
    geoms = '<geom type="box" size="0.1 0.1 0.1" pos="0.9 0 1.2" rgba="1 0 0 1"/>'
    plain = Picture(SHADED.format(samples=0, shadows=0, reflectance=0, geoms=geoms), render)
    mirror = Picture(SHADED.format(samples=0, shadows=0, reflectance=0.8, geoms=geoms), render)
    assert np.array_equal(plain(), mirror()) == (not mirrored)
    plain.renderer.close()
    mirror.renderer.close()


def test_pictures_of_several_renderers_do_not_mix(flag: Picture) -> None:
    other = Picture(FLAG.replace("1 0 0 1", "1 1 1 1"))
    assert [get_corners(drawn)[0] for drawn in (flag(), other(), flag())] == [RED, (255, 255, 255), RED]
    other.renderer.close()
    assert get_corners(flag())[0] == RED


def test_pictures_have_bounds(flag: Picture) -> None:
    assert flag(height=640, width=16).shape == (640, 16, 3)
    with pytest.raises(ValueError, match="1 to 640 pixels a side, oversampling included; got 642 x 80"):
        flag(height=321, oversample=2)


def test_the_render_setting_is_the_argument_then_the_environment_then_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANYVLA_RENDER", raising=False)
    assert choose_render_setting(None) == "fast"
    assert choose_render_setting("native") == "native"
    monkeypatch.setenv("ANYVLA_RENDER", "native")
    assert choose_render_setting(None) == "native"
    assert choose_render_setting("fast") == "fast"
    with pytest.raises(ValueError, match="there is no render setting 'fsat': did you mean 'fast'"):
        choose_render_setting("fsat")


def test_the_driver_is_that_of_mujoco_gl_or_else_the_first_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def only_osmesa(code: str, environment: dict[str, str]) -> str:
        tried.append(environment["MUJOCO_GL"])
        if environment["MUJOCO_GL"] != "osmesa":
            raise TrialFailed("no eglQueryString")
        return ""

    monkeypatch.setattr(rendering, "run_trial", only_osmesa)
    monkeypatch.setattr(rendering.sys, "platform", "linux")
    monkeypatch.setenv("MUJOCO_GL", "EGL")
    assert (find_driver.__wrapped__(), tried) == ("egl", [])
    monkeypatch.delenv("MUJOCO_GL")
    assert (find_driver.__wrapped__(), tried) == ("osmesa", ["egl", "osmesa"])
    assert os.environ["MUJOCO_GL"] == "osmesa"  # for processes that are started from here


ADVICE = r"MuJoCo cannot draw here, no GL driver works \(.*sudo apt-get install -y libegl1 libgl1-mesa-dri"


def test_no_driver_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)

    def fail(code: str, environment: object) -> str:
        raise TrialFailed("AttributeError: no eglQueryString")

    monkeypatch.setattr(rendering, "run_trial", fail)
    monkeypatch.setattr(rendering.sys, "platform", "linux")
    with pytest.raises(RendererMissing, match=ADVICE) as raised:
        find_driver.__wrapped__()
    assert "egl: AttributeError: no eglQueryString; osmesa: " in str(raised.value)


@pytest.mark.simulator("metaworld")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="breaks the loader's path")
@pytest.mark.parametrize("driver", ["egl", "osmesa"])
def test_a_broken_driver_of_mujoco_gl_is_reported(driver: str, tmp_path: Path) -> None:
    for name in ("libEGL.so.1", "libEGL.so", "libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so", "libGL.so.1"):
        (tmp_path / name).touch()
    code = """
from anyvla_sim.metaworld.benchmark import MetaWorld
environment = MetaWorld().make("half-open")
environment.reset("door-open", 1)
environment.observe()
"""
    environment = os.environ | {"MUJOCO_GL": driver, "LD_LIBRARY_PATH": str(tmp_path)}
    environment.pop("PYOPENGL_PLATFORM", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert f"RendererMissing: MuJoCo cannot draw here, no GL driver works (MUJOCO_GL={driver}: " in last
    assert "sudo apt-get install -y libegl1" in last
