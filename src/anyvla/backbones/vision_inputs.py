"""From normalised pixels to the arguments under which a family of models takes its images.

Each function takes `Images` and gives arguments of the model's forward (and of its `get_image_features`). A row of
`anyvla.backbones.quirks` names one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from anyvla.types import TokenSequence


@dataclass(frozen=True)
class Images:
    """N images and the sequences in which they stand."""

    pixels: Float[Tensor, "N 3 h w"]  # all of one size, in the order of their places
    sequence: TokenSequence
    places: Bool[Tensor, "S L"]  # of image tokens
    config: Any  # of the model


def flat(images: Images) -> dict[str, Tensor]:
    """(N, 3, h, w)."""
    return {"pixel_values": images.pixels}


def nested(images: Images) -> dict[str, Tensor]:
    """(1, N, 3, h, w): one sample that holds every image, as the features are laid out flat anyway."""
    return {"pixel_values": images.pixels[None]}


def patches_thw(images: Images) -> dict[str, Tensor]:
    """Flat patches (N * patches, 3 * t * p * p), ordered by merged groups, and each image's grid (Qwen2-VL)."""
    vision = images.config.vision_config
    p, merge, t = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    n, _, h, w = images.pixels.shape
    rows, columns = h // p, w // p
    groups = images.pixels.view(n, 3, rows // merge, merge, p, columns // merge, merge, p)
    groups = groups.permute(0, 2, 5, 3, 6, 1, 4, 7)  # (N, R, C, m, m, 3, p, p)
    patches = groups.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, t, -1, -1)  # a still image is t equal frames
    grid = torch.tensor([[1, rows, columns]], device=images.pixels.device)
    return {"pixel_values": patches.reshape(n * rows * columns, -1), "image_grid_thw": grid.repeat(n, 1)}
