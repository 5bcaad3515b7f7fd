"""Sizes of families that cut images into tiles, of which one, the whole image, is read here.

Functions as `anyvla.backbones.quirks.Quirk` wants them, for its `grid` and `multiple`.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any


def llama4_grid(config: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Patches, of which a pixel shuffle makes fewer."""
    vision = config.vision_config
    ratio = vision.pixel_shuffle_ratio
    return round(size[0] // vision.patch_size * ratio), round(size[1] // vision.patch_size * ratio)


def granite4_grid(config: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Windows of patches that queries summarise, and the embedding that ends an image; in one row."""
    rate = Fraction(config.downsample_rate)
    rows, columns = (int(side // config.vision_config.patch_size * rate) for side in size)
    return 1, rows * columns + 1


def aria_side(config: Any) -> int:
    """The smallest side in pixels whose number of patches the projector knows."""
    return math.isqrt(min(config.projector_patch_to_query_dict)) * config.vision_config.patch_size
