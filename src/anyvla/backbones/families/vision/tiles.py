"""Sizes of images in families that cut them into tiles, of which one is read here, or that have towers of two sizes.

Functions as `anyvla.backbones.families.quirks.Quirk` wants them, for its `grid`, `multiple` and `vision`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from anyvla.backbones.families.vision.inputs import SequenceImages
from anyvla.backbones.images.resize import resize


def llama4_grid(config: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Patches, of which a pixel shuffle makes fewer."""
    vision = config.vision_config
    ratio = vision.pixel_shuffle_ratio
    return round(size[0] // vision.patch_size * ratio), round(size[1] // vision.patch_size * ratio)


def granite4_grid(config: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Windows of patches that queries summarize, and the embedding that ends an image; in one row."""
    rate = Fraction(config.downsample_rate)
    rows, columns = (int(side // config.vision_config.patch_size * rate) for side in size)
    return 1, rows * columns + 1


def aria_side(config: Any) -> int:
    """The smallest side in pixels whose number of patches the projector knows."""
    return math.isqrt(min(config.projector_patch_to_query_dict)) * config.vision_config.patch_size


def two_sizes(images: SequenceImages) -> dict[str, Tensor]:
    """Each image at the size of both towers (DeepSeek-VL 7B), from levels 0..255; the small one is made of the large.

    Shapes (N, 3, h, w). The towers' normalizations are those of preprocessor_config.json.
    """
    side, told = images.config.vision_config.image_size, images.preprocessor
    large = images.pixels.permute(0, 2, 3, 1).to(torch.uint8)
    small = resize(large, (side, side), told.get("resample", 3))
    return {
        "pixel_values": _normalized(small.to(images.pixels.dtype), told, "image"),
        "high_res_pixel_values": _normalized(images.pixels, told, "high_res_image"),
    }


def _normalized(pixels: Tensor, told: Mapping[str, Any], name: str) -> Tensor:
    numbers = told.get(f"{name}_mean", OPENAI_CLIP_MEAN), told.get(f"{name}_std", OPENAI_CLIP_STD)
    mean, std = torch.tensor(numbers, device=pixels.device).view(2, 3, 1, 1)
    return ((pixels.float() * told.get("rescale_factor", 1 / 255) - mean) / std).to(pixels.dtype)
