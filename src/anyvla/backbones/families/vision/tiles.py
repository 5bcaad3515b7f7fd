"""Sizes of images in families that cut them into tiles (one is read here) or have two towers.

The functions are values of `grid`, `size_multiple` and `image_inputs` of `anyvla.backbones.families.quirks.Quirk`.
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


def count_llama4_tokens(config: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns of patches after the pixel shuffle."""
    vision = config.vision_config
    ratio = vision.pixel_shuffle_ratio
    return round(size[0] // vision.patch_size * ratio), round(size[1] // vision.patch_size * ratio)


def count_granite4_tokens(config: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Return one row: the queries that summarize windows of patches, and the embedding that ends an image."""
    rate = Fraction(config.downsample_rate)
    rows, columns = (int(side // config.vision_config.patch_size * rate) for side in size)
    return 1, rows * columns + 1


def find_aria_side(config: Any) -> int:
    """Return the smallest side in pixels for whose number of patches the projector has queries."""
    return math.isqrt(min(config.projector_patch_to_query_dict)) * config.vision_config.patch_size


def feed_two_sizes(images: SequenceImages) -> dict[str, Tensor]:
    """Return each image (N, 3, h, w) at the sizes of both towers (DeepSeek-VL 7B), from levels 0..255.

    The small image is scaled from the large one. preprocessor_config.json gives the towers' normalizations.
    """
    side, numbers = images.config.vision_config.image_size, images.preprocessor
    large = images.pixels.permute(0, 2, 3, 1).to(torch.uint8)
    small = resize(large, (side, side), numbers.get("resample", 3))
    return {
        "pixel_values": _normalize(small.to(images.pixels.dtype), numbers, "image"),
        "high_res_pixel_values": _normalize(images.pixels, numbers, "high_res_image"),
    }


def _normalize(pixels: Tensor, numbers: Mapping[str, Any], name: str) -> Tensor:
    given = numbers.get(f"{name}_mean", OPENAI_CLIP_MEAN), numbers.get(f"{name}_std", OPENAI_CLIP_STD)
    mean, std = torch.tensor(given, device=pixels.device).view(2, 3, 1, 1)
    return ((pixels.float() * numbers.get("rescale_factor", 1 / 255) - mean) / std).to(pixels.dtype)
