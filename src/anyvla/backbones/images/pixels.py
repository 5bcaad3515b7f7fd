"""Preprocesses camera images for a vision tower, as batched tensor operations on the model's device.

The numbers come from the model folder's preprocessor JSON; no processor class is built. The whole image is scaled to
the tower's size. It is never cropped, as a robot's workspace reaches to the edges of its images. Optionally it is also
read in finer tiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from anyvla.backbones.images.resize import BILINEAR, FILTERS, resize

_NOT_ZERO = 1e-6  # of a normalized pixel
_SPAN = (1e-3, 1e5)  # between black and white, for any model; some expect numbers up to 255 and more


class Pixels(nn.Module):
    """uint8 (N, H, W, 3) -> normalized float (N * per_image, 3, h, w)."""

    scale: Tensor
    shift: Tensor

    def __init__(
        self, preprocessor: Mapping[str, Any], image_size: int | None, exact: int | None = None, tiles: int = 1
    ) -> None:
        """Read size, filter and normalization from the preprocessor.

        `image_size`: the vision tower's, used if the preprocessor gives no exact size. `exact` overrides both. With
        `tiles` of n > 1, an image becomes n * n + 1 images: it is scaled to n times the size and cut into n x n tiles,
        in raster order; the whole image follows.

        Raises ValueError if no size is given, the mean or standard deviation is missing, or the filter is unknown.
        """
        super().__init__()
        self.size = _size(preprocessor, image_size) if exact is None else (exact, exact)  # (h, w)
        self.tiles = tiles
        self.per_image = 1 if tiles == 1 else tiles * tiles + 1
        self.filter = BILINEAR if preprocessor.get("resample") is None else int(preprocessor["resample"])
        if not 0 <= self.filter < len(FILTERS):
            known = ", ".join(f"{number} {name}" for number, name in enumerate(FILTERS))
            raise ValueError(f"the preprocessor's resample is {self.filter}, which is not a filter of Pillow: {known}")
        factor = float(preprocessor.get("rescale_factor", 1 / 255)) if preprocessor.get("do_rescale", True) else 1.0
        mean, std = torch.zeros(3), torch.ones(3)
        if preprocessor.get("do_normalize", True):
            if "image_mean" not in preprocessor or "image_std" not in preprocessor:
                raise ValueError(
                    "the preprocessor normalizes, but has no image_mean and image_std: "
                    "add both to preprocessor_config.json, three numbers each"
                )
            given = (torch.tensor(preprocessor[name]) for name in ("image_mean", "image_std"))
            mean, std = (value.expand(3) for value in given)  # Fuyu has one number for all channels
        scale, shift = (factor / std).view(3, 1, 1), (-mean / std).view(3, 1, 1)
        span = 255 * scale.abs()  # from black to white
        if not ((span > _SPAN[0]) & (span < _SPAN[1]) & (shift.abs() < _SPAN[1])).all():
            raise ValueError(
                f"the preprocessor's rescale_factor {factor:g}, image_mean {mean.tolist()} and image_std "
                f"{std.tolist()} give pixels in a range that no model expects: correct preprocessor_config.json"
            )
        zero = torch.addcmul(shift, torch.arange(256.0), scale).abs() < _NOT_ZERO / 10  # (3, 1, 256)
        if zero.any(-1).all():  # some families take an image of zeros (a dark camera) for padding and drop it
            shift[0] += _NOT_ZERO
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, images: UInt8[Tensor, "N H W 3"]) -> Float[Tensor, "N_images 3 h w"]:
        pixels = resize(images, self.size, self.filter)
        if self.tiles > 1:
            n, (h, w) = self.tiles, self.size
            fine = resize(images, (n * h, n * w), self.filter).unflatten(3, (n, w)).unflatten(2, (n, h))
            cut = fine.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (N, n*n, 3, h, w)
            pixels = torch.cat([cut, pixels[:, None]], 1).flatten(0, 1)
        out = pixels.float()
        rows = out.permute(0, 2, 3, 1)
        if rows.is_contiguous():  # channels-last: broadcasting whole rows is faster than broadcasting three numbers
            width = rows.shape[2]
            rows.flatten(2).mul_(self.scale.flatten().repeat(width)).add_(self.shift.flatten().repeat(width))
            return out
        return out.mul_(self.scale).add_(self.shift)


def _size(preprocessor: Mapping[str, Any], image_size: int | None) -> tuple[int, int]:
    cropped = preprocessor.get("crop_size") if preprocessor.get("do_center_crop", True) else None
    for size in (cropped, preprocessor.get("size")):
        if isinstance(size, int):
            return size, size
        if isinstance(size, Mapping) and "height" in size and "width" in size:
            return int(size["height"]), int(size["width"])
        if isinstance(size, Mapping) and "shortest_edge" in size and "longest_edge" not in size:
            return int(size["shortest_edge"]), int(size["shortest_edge"])
    if image_size is None:
        raise ValueError(
            f"the preprocessor gives no image size (size: {preprocessor.get('size')}) and the model's vision "
            'configuration has no image_size; add "size": {"height": ..., "width": ...} to preprocessor_config.json'
        )
    return image_size, image_size
