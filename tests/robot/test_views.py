from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from anyvla.config import ConfigError, build, to_dict
from anyvla.robot.shared_layout import SharedLayout
from anyvla.robot.views import ViewConfig, camera_views, resize_to_view
from anyvla.types import Observation
from tests.data.demonstrations import ROBOT, scene

PLACES = SharedLayout([ROBOT]).robots["arm"]
CORNER, WRIST = (scene(1, seed=s)[0] for s in (0, 1))


def shown(**images: np.ndarray) -> Observation:
    return Observation(images, np.zeros(4, np.float32))


def test_views_are_in_the_order_of_the_layout():
    got = camera_views(shown(wrist=WRIST, corner=CORNER, other=WRIST), ROBOT, PLACES, 2, ViewConfig())
    assert np.array_equal(got, np.stack([CORNER, WRIST]))


def test_a_camera_that_the_robot_lacks_is_black():
    two = dataclasses.replace(ROBOT, name="other", cameras=("head", "corner"))
    places = SharedLayout([ROBOT, two]).robots["other"]
    got = camera_views(shown(head=WRIST, corner=CORNER), two, places, 3, ViewConfig())
    assert np.array_equal(got[0], CORNER)
    assert not got[1].any()
    assert np.array_equal(got[2], WRIST)


@pytest.mark.parametrize("size", [(16, 24), (16, 64), (64, 16)])
def test_every_image_is_resized_to_the_view(size: tuple[int, int]):
    """As Pillow does it, both in acting and where data is read."""
    view, large = ViewConfig(size=size), scene(1, 64)[0]
    got = camera_views(shown(corner=CORNER, wrist=large), ROBOT, PLACES, 2, view)
    read = [resize_to_view(image[None], view)[0] for image in (CORNER, large)]
    for view_of, image in ((got, CORNER), (read, CORNER), (got[1:], large), (read[1:], large)):
        theirs = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
        assert view_of[0].shape == (*size, 3)
        assert np.abs(view_of[0].astype(int) - theirs).max() <= 1


def test_a_padded_view_has_black_bars():
    """A white square of 32 x 32 in 16 x 24: 16 x 16 in the middle."""
    white = np.full((32, 32, 3), 255, np.uint8)
    expected = np.zeros((16, 24, 3), np.uint8)
    expected[:, 4:20] = 255
    got = camera_views(shown(corner=white, wrist=white), ROBOT, PLACES, 2, ViewConfig(size=(16, 24), fit="pad"))
    assert np.array_equal(got, np.stack([expected, expected]))


def test_images_of_the_size_of_the_view_are_unchanged():
    assert resize_to_view(CORNER, ViewConfig(size=(32, 32))) is CORNER
    assert resize_to_view(CORNER, ViewConfig(size=(32, 32), fit="pad")) is CORNER
    assert resize_to_view(CORNER, ViewConfig()) is CORNER


def test_a_view_neither_resizes_nor_crops_unless_a_recipe_says_so():
    assert to_dict(ViewConfig()) == {"size": None, "fit": "stretch", "crop": 1.0}


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (CORNER.transpose(2, 0, 1), r"uint8 \(3, 32, 32\), channels first: give image\.transpose\(1, 2, 0\)"),
        (np.concatenate([CORNER, CORNER[..., :1]], -1), r"with an alpha channel: give image\[\.\.\., :3\]"),
        (CORNER[..., 0], r"uint8 \(32, 32\): give one RGB frame"),
        (CORNER / np.float32(255), r"float32 \(32, 32, 3\): give \(image \* 255\)\.round\(\)"),
        (CORNER.astype(np.int64), r"int64 \(32, 32, 3\): give image\.round\(\)"),
        (CORNER.tolist(), r"got list: give np\.asarray\(image\)"),
    ],
)
def test_an_invalid_image_is_refused_with_the_line_that_fixes_it(image: object, message: str):
    with pytest.raises(ValueError, match=r"camera 'corner': expected a uint8 array .*" + message):
        camera_views(shown(corner=image, wrist=WRIST), ROBOT, PLACES, 2, ViewConfig())  # type: ignore[arg-type]


def test_missing_cameras_and_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"lacks camera 'wrist'; .* trained with corner, wrist and .* has corner"):
        camera_views(shown(corner=CORNER), ROBOT, PLACES, 2, ViewConfig())
    with pytest.raises(ValueError, match=r"must have one size, got .*'wrist': \(48, 48, 3\)"):
        camera_views(shown(corner=CORNER, wrist=scene(1, 48)[0]), ROBOT, PLACES, 2, ViewConfig())


def test_the_config_is_checked():
    view = build(ViewConfig, {"size": [224, 224], "fit": "pad", "crop": [0.9, 1]})
    assert build(ViewConfig, to_dict(view)) == view
    for data, message in (
        ({"crop": 0}, "greater than 0"),
        ({"crop": 1.2}, "less than or equal to 1"),
        ({"size": [0, 4]}, "greater than or equal to 1"),
        ({"fit": "crop"}, "'stretch' or 'pad'"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(ViewConfig, data)
