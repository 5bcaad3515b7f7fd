"""Image augmentation on uint8 windows: random shift and colour jitter, one draw per sample and view.

Over the steps of a window the draw stays the same, so that motion between frames is what the robot saw.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from pydantic.dataclasses import dataclass

from anyvla.config import STRICT

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AugmentConfig:
    """How strongly training images are varied."""

    shift: int | tuple[int, ...] = 3  # px at most in each direction, edges repeated; one number, or one per view
    brightness: float = 0.0  # 0.2: a factor in [0.8, 1.2]
    contrast: float = 0.0  # likewise, about the mean grey of the window
    saturation: float = 0.0  # likewise, about each pixel's grey

    def __post_init__(self) -> None:
        if min([self.shift] if isinstance(self.shift, int) else self.shift, default=0) < 0:
            raise ValueError(f"shift must not be negative, got {self.shift}")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")


def augment(
    images: UInt8[np.ndarray, "B W V H W 3"], config: AugmentConfig, rng: np.random.Generator
) -> UInt8[np.ndarray, "B W V H W 3"]:
    """Shift, then jitter. Returns `images` itself if the config asks for no change."""
    images = random_shift(images, config.shift, rng)
    return colour_jitter(images, config.brightness, config.contrast, config.saturation, rng)


def random_shift(
    images: UInt8[np.ndarray, "B W V H W 3"], pixels: Sequence[int] | int, rng: np.random.Generator
) -> UInt8[np.ndarray, "B W V H W 3"]:
    """Move each image by up to `pixels` in x and y, edges repeated. Raises ValueError for a wrong `pixels`."""
    batch, _, views, height, width, _ = images.shape
    limits = np.broadcast_to(np.atleast_1d(pixels), views) if np.size(pixels) in (1, views) else None
    if limits is None:
        raise ValueError(f"shift must be one number or one per view ({views} views), got {np.ravel(pixels).tolist()}")
    if limits.min() < 0 or limits.max() >= min(height, width):
        raise ValueError(f"shift must lie in [0, {min(height, width)}), got {limits.tolist()}")
    if not limits.any():
        return images
    moves = rng.integers(-limits[:, None], limits[:, None] + 1, size=(batch, views, 2)).tolist()
    out = np.empty_like(images)
    for b in range(batch):
        for v in range(views):
            dy, dx = moves[b][v]
            source, target = images[b, :, v], out[b, :, v]  # (W, H, W, 3)
            rows, columns = slice(max(dy, 0), height + min(dy, 0)), slice(max(dx, 0), width + min(dx, 0))
            target[:, rows, columns] = source[:, max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)]
            if dx > 0:
                target[:, rows, :dx] = target[:, rows, dx : dx + 1]
            elif dx < 0:
                target[:, rows, dx:] = target[:, rows, dx - 1 : dx]
            if dy > 0:
                target[:, :dy] = target[:, dy : dy + 1]
            elif dy < 0:
                target[:, dy:] = target[:, dy - 1 : dy]
    return out


def colour_jitter(
    images: UInt8[np.ndarray, "B W V H W 3"],
    brightness: float,
    contrast: float,
    saturation: float,
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "B W V H W 3"]:
    """Scale brightness, contrast and saturation by factors drawn from 1 +- the given amounts."""
    amounts = np.array([brightness, contrast, saturation], np.float32)
    if not amounts.any():
        return images
    factors = 1 + amounts * rng.uniform(-1, 1, size=(images.shape[0], images.shape[2], 3)).astype(np.float32)
    out = np.empty_like(images)
    grey_part = np.outer(np.ones(3, np.float32), _LUMA)
    for b, v in np.ndindex(*factors.shape[:2]):
        bright, contrasted, saturated = factors[b, v]
        pixels = images[b, :, v].astype(np.float32)  # (W, H, W, 3)
        mean_grey = pixels.mean(axis=(0, 1, 2)) @ _LUMA
        # all three are linear in the pixel, so they make one 3x3 matrix and an offset
        matrix = bright * contrasted * (saturated * np.eye(3, dtype=np.float32) + (1 - saturated) * grey_part)
        pixels = pixels @ matrix.T
        pixels += bright * (1 - contrasted) * mean_grey + 0.5
        out[b, :, v] = np.clip(pixels, 0, 255, out=pixels)
    return out
