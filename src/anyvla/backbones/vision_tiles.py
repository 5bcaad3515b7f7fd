"""How many tokens an image takes as one tile, for families whose `get_image_features` does not tell.

Functions as `anyvla.backbones.quirks.Quirk.grid` wants them.
"""

from __future__ import annotations

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
