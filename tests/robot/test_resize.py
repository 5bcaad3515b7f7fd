from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from anyvla.robot.views import resize


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)


@pytest.mark.parametrize("fit", ["stretch", "pad"])
@pytest.mark.parametrize("size", [(32, 48), (96, 96), (17, 5)])
def test_an_image_is_resized_independently_of_its_neighbors(fit, size: tuple[int, int]):
    images = noise(2, 3, 40, 64)
    batch = resize(images, size, fit)
    assert (batch.shape, batch.dtype) == ((2, 3, *size, 3), np.uint8)
    for i, j in np.ndindex(2, 3):
        assert np.array_equal(resize(images[i, j], size, fit), batch[i, j])


@pytest.mark.parametrize(
    ("before", "after"),
    [((64, 96), (24, 24)), ((64, 96), (224, 224)), ((64, 96), (100, 20)), ((7, 5), (7, 9)), ((50, 50), (1, 1))],
)
def test_resizing_equals_pillow(before: tuple[int, int], after: tuple[int, int]):
    image = noise(*before)
    theirs = np.asarray(Image.fromarray(image).resize(after[::-1], Image.Resampling.BILINEAR))
    assert np.abs(resize(image, after, "stretch").astype(int) - theirs).max() <= 1


def test_an_image_of_the_right_size_is_unchanged():
    image = noise(30, 20)
    assert np.array_equal(resize(image, (30, 20), "stretch"), image)
    assert np.array_equal(resize(image, (30, 20), "pad"), image)


@pytest.mark.parametrize(
    ("before", "after", "inner"),  # inner: rows and columns that the image takes
    [
        ((40, 80), (32, 32), (slice(8, 24), slice(0, 32))),
        ((80, 40), (32, 32), (slice(0, 32), slice(8, 24))),
        ((10, 10), (21, 40), (slice(0, 21), slice(9, 30))),  # an odd column goes to the right
        ((10, 30), (32, 32), (slice(10, 21), slice(0, 32))),  # 10.67 rows are rounded to 11
        ((31, 10), (32, 32), (slice(0, 32), slice(11, 21))),  # 10.32 columns to 10
        ((400, 2), (16, 16), (slice(0, 16), slice(7, 8))),  # never less than a pixel
    ],
)
def test_pad_keeps_the_aspect_between_black_bars(before, after: tuple[int, int], inner: tuple[slice, slice]):
    white = np.full((*before, 3), 255, np.uint8)
    expected = np.zeros((*after, 3), np.uint8)
    expected[inner] = 255
    assert np.array_equal(resize(white, after, "pad"), expected)
    image = noise(*before)
    rows, columns = inner
    size = (rows.stop - rows.start, columns.stop - columns.start)
    assert np.array_equal(resize(image, after, "pad")[inner], resize(image, size, "stretch"))


def test_arrays_that_are_not_contiguous_are_resized_correctly():
    images = noise(2, 30, 40)
    for view in (images[:, ::-1, ::-1], images[..., ::-1], images[:, ::2, 1::3], images.transpose(0, 2, 1, 3)):
        assert not view.flags.c_contiguous
        assert np.array_equal(resize(view, (16, 16), "pad"), resize(view.copy("C"), (16, 16), "pad"))


def test_the_result_shares_no_memory_with_the_image():
    image = noise(12, 12)
    before = image.copy()
    for fit in ("stretch", "pad"):
        out = resize(image, (12, 12), fit)
        assert out.flags.c_contiguous
        out[:] = 0
        assert np.array_equal(image, before), fit


def test_an_empty_batch_stays_empty():
    assert resize(np.empty((0, 12, 12, 3), np.uint8), (6, 4), "stretch").shape == (0, 6, 4, 3)
