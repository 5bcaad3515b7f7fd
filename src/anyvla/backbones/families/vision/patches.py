"""Images for towers that read patches: rows of a matrix instead of a picture, in an order of each family's own.

A wrong order is silent (the model sees a shuffled picture), so the tests compare each function with the image
processor that `transformers` ships for the family. Functions as in `anyvla.backbones.families.vision.inputs`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from anyvla.backbones.families.vision.inputs import SequenceImages


def patches_thw(images: SequenceImages) -> dict[str, Tensor]:
    """Flat patches (N * patches, 3 * t * p * p), ordered by merged groups, and each image's grid (Qwen2-VL, GLM-4V)."""
    vision = images.config.vision_config
    p, t = vision.patch_size, getattr(vision, "temporal_patch_size", 1)
    merge = getattr(vision, "spatial_merge_size", 1)
    n, _, h, w = images.pixels.shape
    rows, columns = h // p, w // p
    groups = images.pixels.reshape(n, 3, rows // merge, merge, p, columns // merge, merge, p)
    groups = groups.permute(0, 2, 5, 3, 6, 1, 4, 7)  # (N, R, C, m, m, 3, p, p)
    patches = groups.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, t, -1, -1)  # a still image is t equal frames
    grid = torch.tensor([[1, rows, columns]], device=images.pixels.device)
    return {"pixel_values": patches.reshape(n * rows * columns, -1), "image_grid_thw": grid.repeat(n, 1)}


def patches_unmerged(images: SequenceImages) -> dict[str, Tensor]:
    """As `patches_thw`, row by row: nothing is merged (VideoLLaMA 3)."""
    given = patches_thw(images)
    return {**given, "image_merge_sizes": torch.ones_like(given["image_grid_thw"][:, 0])}


def patches_stacked(images: SequenceImages) -> dict[str, Tensor]:
    """Patches (N * patches, 3, p, p), row by row, and each image's grid (PaddleOCR-VL, Kimi K2.5)."""
    p = images.config.vision_config.patch_size
    n, _, h, w = images.pixels.shape
    patches = images.pixels.reshape(n, 3, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)  # (N, rows, columns, 3, p, p)
    grid = torch.tensor([[1, h // p, w // p]], device=images.pixels.device)
    return {"pixel_values": patches.reshape(-1, 3, p, p), "image_grid_thw": grid.repeat(n, 1)}


def patches_shaped(images: SequenceImages) -> dict[str, Tensor]:
    """Patches (N, patches, p * p * 3), row by row, channels last, and each image's rows and columns (SigLIP 2)."""
    p = images.config.vision_config.patch_size
    patches = patches_channels_last(images.pixels, p)
    n, _, h, w = images.pixels.shape
    shape = torch.tensor([[h // p, w // p]], device=patches.device)
    all_of_them = torch.ones(patches.shape[:2], dtype=torch.int32, device=patches.device)
    return {"pixel_values": patches, "spatial_shapes": shape.repeat(n, 1), "pixel_attention_mask": all_of_them}


def patches_placed(images: SequenceImages) -> dict[str, Tensor]:
    """Patches (N, patches, p * p * 3), row by row, channels last, and where each lies, x before y (Gemma 4)."""
    return _placed(images, images.config.vision_config.patch_size)


def patches_placed_whole(images: SequenceImages) -> dict[str, Tensor]:
    """As `patches_placed`, with patches as large as the pooled ones of Gemma 4 (Gemma 4 Unified)."""
    vision = images.config.vision_config
    return _placed(images, vision.patch_size * vision.pooling_kernel_size)


def _placed(images: SequenceImages, p: int) -> dict[str, Tensor]:
    patches = patches_channels_last(images.pixels, p)
    n, _, h, w = images.pixels.shape
    rows, columns = torch.arange(h // p, device=patches.device), torch.arange(w // p, device=patches.device)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    places = torch.stack([x, y], -1).flatten(0, 1)  # (patches, 2)
    return {"pixel_values": patches, "image_position_ids": places.expand(n, -1, -1)}


def patches_in_a_row(images: SequenceImages) -> dict[str, Tensor]:
    """All patches side by side, (1, 3, p, N * patches * p), and each image's rows and columns (MiniCPM-V 4.6)."""
    p = images.config.vision_config.patch_size
    n, _, h, w = images.pixels.shape
    strips = images.pixels.reshape(n, 3, h // p, p, w).permute(1, 3, 0, 2, 4)  # (3, p, N, rows, w)
    shape = torch.tensor([[h // p, w // p]], dtype=torch.int32, device=strips.device)
    return {"pixel_values": strips.reshape(1, 3, p, -1), "target_sizes": shape.repeat(n, 1)}


def patches_of_all(images: SequenceImages) -> dict[str, Tensor]:
    """The patches of all images as of one, (1, N * patches, p * p * 3), row by row, channels last (Fuyu)."""
    return {"pixel_values": patches_channels_last(images.pixels, images.config.patch_size).flatten(0, 1)[None]}


def sized(images: SequenceImages) -> dict[str, Tensor]:
    """(N, 3, h, w), and each image's height and width in pixels (Pixtral's tower)."""
    n, _, h, w = images.pixels.shape
    size = torch.tensor([[h, w]], device=images.pixels.device)
    return {"pixel_values": images.pixels, "image_sizes": size.repeat(n, 1)}


def patches_channels_last(pixels: Float[Tensor, "N 3 h w"], p: int) -> Float[Tensor, "N n d"]:
    """Patches (N, patches, p * p * 3), row by row."""
    n, _, h, w = pixels.shape
    patches = pixels.reshape(n, 3, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1)  # (N, rows, columns, p, p, 3)
    return patches.reshape(n, (h // p) * (w // p), -1)
