"""Augments the images of a batch of windows: shift, crop and color jitter.

The random numbers of a window and view are the same for all steps of the window, so that augmentation adds no motion.
Each window has its own generator, and its images depend on no other window of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from anyvla.config import STRICT
from anyvla.robot.views import Pixels, crop_views, numbers_per_view

Amount = Annotated[float, Field(ge=0, lt=1)]
Turn = Annotated[float, Field(ge=0, le=0.5)]

# Luma, and two color axes perpendicular to gray (ITU-R BT.601 luma; NTSC's I and Q).
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AugmentConfig:
    """The strength of each augmentation: one number, or one per view."""

    shift: Pixels | tuple[Pixels, ...] = 3  # px at most in each direction, edges repeated
    brightness: Amount | tuple[Amount, ...] = 0.0  # 0.2: a factor in [0.8, 1.2]
    contrast: Amount | tuple[Amount, ...] = 0.0  # likewise, about the mean gray of the window
    saturation: Amount | tuple[Amount, ...] = 0.0  # likewise, about each pixel's gray
    hue: Turn | tuple[Turn, ...] = 0.0  # 0.05: colors turn by up to a twentieth of the color circle


def augment(
    images: UInt8[Tensor, "B T V H W 3"],
    config: AugmentConfig,
    crop: Sequence[float] | float,
    generators: Sequence[torch.Generator],
    counts: Sequence[int],
) -> UInt8[Tensor, "B T V h w 3"]:
    """Shift, crop and jitter images. Return `images` itself if nothing is to be changed.

    `crop` is the fraction of each side that is kept, one number or one per view. `generators`: one for each window, on
    the CPU. `counts`: the valid steps of each window, which are its first ones. Raises ValueError for a list of numbers
    whose length is not the number of views.
    """
    views = images.shape[2]
    # A number keeps its meaning whatever is changed, so that an option affects no other.
    random = torch.stack([torch.rand(views, 8, generator=g) for g in generators])  # (B, V, 8)
    images = _shift(images, numbers_per_view(config.shift, images, "shift"), random[..., :2])
    images = crop_views(images, numbers_per_view(crop, images, "crop"), random[..., 2:4])
    amounts = [numbers_per_view(getattr(config, n), images, n) for n in ("brightness", "contrast", "saturation", "hue")]
    return _jitter(images, torch.tensor(amounts), random[..., 4:], counts)


def _shift(images: Tensor, pixels: Sequence[float], random: Float[Tensor, "B V 2"]) -> Tensor:
    """Move each image by up to `pixels` in x and y, and repeat its edges."""
    height, width = images.shape[3:5]
    if not any(pixels):
        return images
    if max(pixels) >= min(height, width):
        raise ValueError(f"shift must be less than the size of an image, {height}x{width}, got {list(pixels)}")
    limits = torch.tensor(pixels)[:, None]  # (V, 1)
    moves = (random * (2 * limits + 1)).floor() - limits  # (B, V, 2)
    out = torch.empty_like(images)
    for b, of_sample in enumerate(moves.int().tolist()):
        for v, (dy, dx) in enumerate(of_sample):
            source, target = images[b, :, v], out[b, :, v]  # (T, H, W, 3)
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


def _jitter(
    images: Tensor, amounts: Float[Tensor, "4 V"], random: Float[Tensor, "B V 4"], counts: Sequence[int]
) -> Tensor:
    """Change brightness, contrast, saturation and hue, in this order, by random factors of 1 +- amount (hue: turns).

    All four are linear in the pixel, so they combine into one 3x3 matrix and one offset. Values are clipped once. Steps
    that are not valid keep their zeros.
    """
    if not amounts.any():
        return images
    luma = _YIQ[0].to(images.device)
    matrices, kept = (x.to(images.device) for x in _color_matrices(amounts.T * (random * 2 - 1)))
    out = torch.zeros_like(images)
    for source, target, matrix, share, steps in zip(images, out, matrices, kept, counts, strict=True):
        # one window at a time fits a CPU's cache
        pixels = source[:steps].transpose(0, 1).flatten(1, 3).float()  # (V, T*H*W, 3)
        gray = share * (pixels.mean(1) @ luma)  # (V,); equal in all channels: saturation and hue keep gray
        # baddbmm takes several times as long on a CPU when the offset is broadcast over the pixels
        pixels = (pixels @ matrix.mT).add_(gray[:, None, None] + 0.5).clamp_(0, 255)
        target[:steps].copy_(pixels.unflatten(1, (steps, *images.shape[3:5])).transpose(0, 1))  # cut to whole levels
    return out


def _color_matrices(random: Float[Tensor, "B V 4"]) -> tuple[Float[Tensor, "B V 3 3"], Float[Tensor, "B V"]]:
    """Return the matrices that multiply pixels, and the fraction of the mean gray that is added to them."""
    bright, contrast, saturation = (1 + random[..., i] for i in range(3))
    angle = random[..., 3] * 2 * math.pi
    one, zero = torch.ones_like(angle), torch.zeros_like(angle)
    colors = torch.stack(  # in Y, I, Q: scales and turns the chroma, keeps the luma
        [
            torch.stack([one, zero, zero], -1),
            torch.stack([zero, saturation * angle.cos(), -saturation * angle.sin()], -1),
            torch.stack([zero, saturation * angle.sin(), saturation * angle.cos()], -1),
        ],
        -2,
    )
    matrix = torch.linalg.inv(_YIQ) @ colors @ _YIQ
    return (bright * contrast)[..., None, None] * matrix, bright * (1 - contrast)
