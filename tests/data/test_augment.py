from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyvla.data.augment import AugmentConfig, augment, colour_jitter, random_shift


def random_images(shape=(3, 2, 2, 12, 10, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@given(pixels=st.integers(0, 9), seed=st.integers(0, 1000))
def test_a_shift_is_a_crop_of_the_padded_image(pixels, seed):
    images = random_images()
    shifted = random_shift(images, pixels, np.random.default_rng(seed))
    assert shifted.shape == images.shape
    for b, v in np.ndindex(3, 2):
        padded = np.pad(images[b, :, v], ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode="edge")
        crops = [
            np.array_equal(padded[:, y : y + 12, x : x + 10], shifted[b, :, v])  # one crop for the whole window
            for y, x in np.ndindex(2 * pixels + 1, 2 * pixels + 1)
        ]
        assert any(crops)


def test_shifts_differ_by_sample_and_view_and_reach_the_limit():
    ramp = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None], (200, 1, 2, 40, 40, 3))
    moves = random_shift(ramp, [4, 1], np.random.default_rng(0))[:, 0, :, 20, 20, 0].astype(int) - 20
    assert set(moves[:, 0]) == set(range(-4, 5))
    assert set(moves[:, 1]) == {-1, 0, 1}


def test_no_shift_is_no_change():
    images = random_images()
    assert random_shift(images, 0, np.random.default_rng(0)) is images
    still, moved = 0, 1
    shifted = random_shift(images, [0, 3], np.random.default_rng(0))
    assert np.array_equal(shifted[:, :, still], images[:, :, still])
    assert not np.array_equal(shifted[:, :, moved], images[:, :, moved])
    config = AugmentConfig(shift=0)
    assert augment(images, config, np.random.default_rng(0)) is images


def test_the_same_generator_gives_the_same_images():
    config = AugmentConfig(shift=2, brightness=0.2, contrast=0.2, saturation=0.2)
    a, b = (augment(random_images(), config, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(a, b)
    assert a.dtype == np.uint8


def test_brightness_scales_all_pixels_of_a_window_alike():
    images = np.full((50, 2, 1, 4, 4, 3), 100, np.uint8)
    images[:, :, :, 0] = 50
    out = colour_jitter(images, 0.2, 0, 0, np.random.default_rng(0)).astype(float)
    factors = out[:, 0, 0, 1, 0, 0] / 100
    assert factors.min() < 0.85
    assert factors.max() > 1.15
    assert (np.abs(factors - 1) <= 0.2 + 0.01).all()
    assert np.abs(out - images * factors[:, None, None, None, None, None]).max() <= 1


def test_contrast_keeps_the_mean_and_saturation_keeps_grey():
    images = random_images((20, 1, 1, 16, 16, 3)) // 2 + 64  # far from clipping
    contrasted = colour_jitter(images, 0, 0.3, 0, np.random.default_rng(0))
    weights = np.array([0.299, 0.587, 0.114])
    assert np.abs((contrasted @ weights).mean((2, 3, 4)) - (images @ weights).mean((2, 3, 4))).max() < 1
    spread = contrasted.std(axis=(1, 2, 3, 4, 5)) / images.std(axis=(1, 2, 3, 4, 5))
    assert spread.min() < 0.8
    assert spread.max() > 1.2
    grey = np.repeat(images[..., :1], 3, axis=-1)
    assert np.array_equal(colour_jitter(grey, 0, 0, 0.5, np.random.default_rng(0)), grey)


def test_bright_pixels_are_clipped_not_wrapped():
    white = np.full((30, 1, 1, 4, 4, 3), 250, np.uint8)
    out = colour_jitter(white, 0.5, 0, 0, np.random.default_rng(0))
    assert out.max() == 255
    assert out.min() >= 124


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": -1}, "shift must not be negative"),
        ({"shift": (2, -1)}, "shift must not be negative"),
        ({"contrast": 1.0}, r"contrast must lie in \[0, 1\), got 1\.0"),
    ],
)
def test_config_is_checked(options, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**options)


def test_shift_must_fit_the_images():
    with pytest.raises(ValueError, match=r"one per view \(2 views\), got \[1, 2, 3\]"):
        random_shift(random_images(), [1, 2, 3], np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"must lie in \[0, 10\), got \[10, 10\]"):
        random_shift(random_images(), 10, np.random.default_rng(0))
