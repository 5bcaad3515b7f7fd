"""Scales batches of uint8 images with the same result as the image library Pillow, except for halfway levels.

Pillow weights the pixels of each row with a filter that widens when it scales down, rounds, and then does the same for
each column (since version 13 in the other order if the height shrinks much more than the width). Here both are matrix
products, on any device and for all of Pillow's filters. On a CPU, bilinear and bicubic use torch's integer kernels,
which are several times faster.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional as F

NEAREST, LANCZOS, BILINEAR, BICUBIC, BOX, HAMMING = range(6)  # Pillow's numbers, as used in preprocessors
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_NATIVE = {BILINEAR: "bilinear", BICUBIC: "bicubic"}
_BAND = 32  # outputs per product: a filter reaches only a few pixels, so most of the whole matrix is zero
_CACHED = 256  # pairs of side lengths


def resize(images: UInt8[Tensor, "N H W 3"], size: tuple[int, int], filter: int) -> UInt8[Tensor, "N 3 h w"]:
    """Scale images to `size` (h, w). `filter` is one of Pillow's numbers, 0 to 5."""
    pixels = images.permute(0, 3, 1, 2)  # (N, 3, H, W), a view: channels-last in memory
    if pixels.shape[-2:] == size:
        return pixels
    if filter == NEAREST:
        rows, columns = (_nearest(n, m, pixels.device) for n, m in zip(pixels.shape[-2:], size, strict=True))
        return images[:, rows[:, None], columns].permute(0, 3, 1, 2)
    if pixels.device.type == "cpu" and filter in _NATIVE:
        return F.interpolate(pixels, size, mode=_NATIVE[filter], antialias=True)
    with torch.autocast(pixels.device.type, enabled=False):  # bfloat16 cannot represent 255 levels
        if pixels.device.type != "cpu":
            return _scale(pixels, size, filter)
        return torch.cat([_scale(one, size, filter) for one in pixels.split(1)])  # one image fits in the CPU cache


def _scale(pixels: UInt8[Tensor, "N 3 H W"], size: tuple[int, int], filter: int) -> UInt8[Tensor, "N 3 h w"]:
    count, _, height, width = pixels.shape
    x = pixels.contiguous().float().view(-1, width)  # (N*3*H, W)
    if width != size[1]:
        bands = _bands(width, size[1], filter, x.device)
        x = _round_half_up(torch.cat([x[:, first:last] @ weights.T for first, last, weights in bands], 1))
    x = x.view(-1, height, size[1])  # (N*3, H, w)
    if height != size[0]:
        bands = _bands(height, size[0], filter, x.device)
        x = _round_half_up(torch.cat([weights @ x[:, first:last] for first, last, weights in bands], 1))
    return x.to(torch.uint8).view(count, 3, *size)


def _round_half_up(levels: Tensor) -> Tensor:
    return levels.add_(0.5).floor_().clamp_(0, 255)


Band = tuple[int, int, Tensor]  # first and last + 1 input pixel; weights (outputs, last - first)


@functools.lru_cache(maxsize=_CACHED)
def _bands(inputs: int, outputs: int, filter: int, device: torch.device) -> list[Band]:
    """Return the matrix that scales a line, in bands of rows; on GPUs in one band, as launches dominate."""
    weights, first, last = line_weights(inputs, outputs, filter)
    step = _BAND if device.type == "cpu" else outputs
    bands = []
    for i in range(0, outputs, step):
        low, high = int(first[i]), int(last[min(i + step, outputs) - 1])
        bands.append((low, high, weights[i : i + step, low:high].float().to(device)))
    return bands


def line_weights(inputs: int, outputs: int, filter: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights (outputs, inputs) of a line, float64, and the first and last + 1 input of each output."""
    shape, reach = _SHAPES[filter]
    scale = inputs / outputs
    wide = max(scale, 1.0)  # a filter never gets narrower than a pixel
    center = (torch.arange(outputs, dtype=torch.float64) + 0.5) * scale
    first = (center - reach * wide + 0.5).long().clamp(min=0)
    last = (center + reach * wide + 0.5).long().clamp(max=inputs)
    pixel = torch.arange(inputs, dtype=torch.float64)
    weights = shape((pixel - center[:, None] + 0.5) / wide)
    weights = weights * ((pixel >= first[:, None]) & (pixel < last[:, None]))
    return weights / weights.sum(1, keepdim=True), first, last


@functools.lru_cache(maxsize=_CACHED)
def _nearest(inputs: int, outputs: int, device: torch.device) -> Tensor:
    return ((torch.arange(outputs, dtype=torch.float64) + 0.5) * (inputs / outputs)).long().to(device)


def _lanczos(x: Tensor) -> Tensor:
    return torch.where((x >= -3) & (x < 3), torch.sinc(x) * torch.sinc(x / 3), 0)


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _bicubic(x: Tensor) -> Tensor:
    x, a = x.abs(), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


def _box(x: Tensor) -> Tensor:
    return ((x > -0.5) & (x <= 0.5)).double()


def _hamming(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 1, torch.sinc(x) * (0.54 + 0.46 * torch.cos(torch.pi * x)), 0)


_SHAPES: dict[int, tuple[Callable[[Tensor], Tensor], float]] = {  # with the reach of each in pixels
    LANCZOS: (_lanczos, 3),
    BILINEAR: (_bilinear, 1),
    BICUBIC: (_bicubic, 2),
    BOX: (_box, 0.5),
    HAMMING: (_hamming, 1),
}
