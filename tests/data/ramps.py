"""Images whose pixels encode their own positions, and crops of such images, computed by hand."""

from __future__ import annotations

import numpy as np

GREEN = 100


def ramp(height: int = 32, width: int = 32) -> np.ndarray:
    """Return (H, W, 3) uint8: red is 7 times the row, blue 3 times the column, green is `GREEN` everywhere."""
    image = np.full((height, width, 3), GREEN, np.uint8)
    image[..., 0] = 7 * np.arange(height)[:, None]
    image[..., 2] = 3 * np.arange(width)
    return image


def box_of_ramp(corner: tuple[int, int], box: tuple[int, int], height: int = 32, width: int = 32) -> np.ndarray:
    """Return the box of a ramp, enlarged to the ramp's size by bilinear interpolation between centers of pixels."""
    rows, columns = (
        start + np.clip((np.arange(size) + 0.5) * part / size - 0.5, 0, part - 1)
        for start, part, size in zip(corner, box, (height, width), strict=True)
    )
    image = np.full((height, width, 3), float(GREEN))
    image[..., 0] = 7 * rows[:, None]
    image[..., 2] = 3 * columns
    return image


def corner_of_box(image: np.ndarray, box: tuple[int, int]) -> tuple[int, int]:
    """Return the corner of the box that an enlarged part of a ramp shows. Raises AssertionError if it shows none."""
    height, width, _ = image.shape
    at_origin = box_of_ramp((0, 0), box, height, width)
    corner = (
        round((image[..., 0].mean() - at_origin[..., 0].mean()) / 7),
        round((image[..., 2].mean() - at_origin[..., 2].mean()) / 3),
    )
    assert np.abs(image - box_of_ramp(corner, box, height, width)).max() <= 1
    return corner
