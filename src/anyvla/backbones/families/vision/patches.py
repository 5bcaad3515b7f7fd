"""Images for towers that read patches, in the order of each family. Functions are like the ones in `inputs`.

A wrong order raises no error (the model sees a shuffled picture), so the tests compare each function with the image
processor of `transformers` for the family.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from anyvla.backbones.families.vision.inputs import SequenceImages


def cut_patches_thw(images: SequenceImages) -> dict[str, Tensor]:
    """Flat patches (N * patches, 3 * t * p * p), ordered by merged groups, and each image's grid (Qwen2-VL, GLM-4V)."""
    vision = images.config.vision_config
    p, t = vision.patch_size, getattr(vision, "temporal_patch_size", 1)
    merge = getattr(vision, "spatial_merge_size", 1)
    n, _, h, w = images.pixels.shape
    rows, columns = h // p, w // p
    groups = images.pixels.reshape(n, 3, rows // merge, merge, p, columns // merge, merge, p)
    groups = groups.permute(0, 2, 5, 3, 6, 1, 4, 7)  # (N, R, C, m, m, 3, p, p)
    patches = groups.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, t, -1, -1)  # a still image is t equal frames
    return {
        "pixel_values": patches.reshape(n * rows * columns, -1),
        "image_grid_thw": images.repeat(1, rows, columns),
    }


def cut_patches_unmerged(images: SequenceImages) -> dict[str, Tensor]:
    """As `cut_patches_thw`, row by row: nothing is merged (VideoLLaMA 3)."""
    return {**cut_patches_thw(images), "image_merge_sizes": images.repeat(1)[:, 0]}


def cut_patches_stacked(images: SequenceImages) -> dict[str, Tensor]:
    """Patches (N * patches, 3, p, p), row by row, and each image's grid (PaddleOCR-VL, Kimi K2.5)."""
    p = images.config.vision_config.patch_size
    n, _, h, w = images.pixels.shape
    patches = images.pixels.reshape(n, 3, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)  # (N, rows, columns, 3, p, p)
    return {"pixel_values": patches.reshape(-1, 3, p, p), "image_grid_thw": images.repeat(1, h // p, w // p)}


def cut_patches_shaped(images: SequenceImages) -> dict[str, Tensor]:
    """Patches (N, patches, p * p * 3), row by row, channels last, and each image's rows and columns (SigLIP 2)."""
    p = images.config.vision_config.patch_size
    patches = cut_patches_channels_last(images.pixels, p)
    h, w = images.pixels.shape[2:]
    mask = torch.ones(patches.shape[:2], dtype=torch.int32, device=patches.device)
    return {
        "pixel_values": patches,
        "spatial_shapes": images.repeat(h // p, w // p),
        "pixel_attention_mask": mask,
    }


def cut_patches_placed(images: SequenceImages) -> dict[str, Tensor]:
    """Patches (N, patches, p * p * 3), row by row, channels last, and their positions, x before y (Gemma 4)."""
    return _cut_patches_at(images, images.config.vision_config.patch_size)


def cut_patches_placed_whole(images: SequenceImages) -> dict[str, Tensor]:
    """As `cut_patches_placed`, with patches as large as the pooled ones of Gemma 4 (Gemma 4 Unified)."""
    vision = images.config.vision_config
    return _cut_patches_at(images, vision.patch_size * vision.pooling_kernel_size)


def _cut_patches_at(images: SequenceImages, p: int) -> dict[str, Tensor]:
    patches = cut_patches_channels_last(images.pixels, p)
    n, _, h, w = images.pixels.shape
    positions = list_positions(h // p, w // p, patches.device).flip(1)
    return {"pixel_values": patches, "image_position_ids": positions.expand(n, -1, -1)}


def cut_patches_in_a_row(images: SequenceImages) -> dict[str, Tensor]:
    """All patches side by side, (1, 3, p, N * patches * p), and each image's rows and columns (MiniCPM-V 4.6)."""
    p = images.config.vision_config.patch_size
    n, _, h, w = images.pixels.shape
    strips = images.pixels.reshape(n, 3, h // p, p, w).permute(1, 3, 0, 2, 4)  # (3, p, N, rows, w)
    shapes = images.repeat(h // p, w // p, dtype=torch.int32)
    return {"pixel_values": strips.reshape(1, 3, p, -1), "target_sizes": shapes}


def cut_patches_of_all(images: SequenceImages) -> dict[str, Tensor]:
    """Patches of all images, (1, N * patches, p * p * 3), row by row, channels last (Fuyu)."""
    return {"pixel_values": cut_patches_channels_last(images.pixels, images.config.patch_size).flatten(0, 1)[None]}


def feed_with_sizes(images: SequenceImages) -> dict[str, Tensor]:
    """(N, 3, h, w), and each image's height and width in pixels (Pixtral's tower)."""
    return {"pixel_values": images.pixels, "image_sizes": images.repeat(*images.pixels.shape[2:])}


def cut_patches_channels_last(pixels: Float[Tensor, "N 3 h w"], p: int) -> Float[Tensor, "N n d"]:
    """Return patches (N, patches, p * p * 3), row by row."""
    n, _, h, w = pixels.shape
    patches = pixels.reshape(n, 3, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1)  # (N, rows, columns, p, p, 3)
    return patches.reshape(n, (h // p) * (w // p), -1)


def list_positions(rows: int, columns: int, device: torch.device) -> Int64[Tensor, "n 2"]:
    """Return the row and column of each patch of an image, row by row."""
    return torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(columns, device=device))
