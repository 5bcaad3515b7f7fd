"""From camera images to what a vision tower reads, as batched tensor operations on the device of the model.

The numbers come from the model folder's preprocessor JSON; no processor class is built. An image gives one tile: it is
scaled to the tower's size, whole (never cropped: a robot's workspace reaches to the edges of its images).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

_FILTERS = {0: "nearest-exact", 1: "bicubic", 2: "bilinear", 3: "bicubic"}  # PIL's numbers; torch has no Lanczos


class Pixels(nn.Module):
    """uint8 (N, H, W, 3) -> normalised float (N, 3, h, w), channels-last in memory."""

    scale: Tensor
    shift: Tensor

    def __init__(self, preprocessor: Mapping[str, Any], image_size: int | None, exact: int | None = None) -> None:
        """`image_size`: the vision tower's, used where the preprocessor gives no exact size. `exact` overrules both.

        Raises ValueError if neither gives a size, or there is no mean to normalise with.
        """
        super().__init__()
        self.size = _size(preprocessor, image_size) if exact is None else (exact, exact)  # (h, w)
        self.filter = _FILTERS.get(preprocessor.get("resample", 2), "bilinear")
        factor = float(preprocessor.get("rescale_factor", 1 / 255)) if preprocessor.get("do_rescale", True) else 1.0
        mean, std = torch.zeros(3), torch.ones(3)
        if preprocessor.get("do_normalize", True):
            if "image_mean" not in preprocessor or "image_std" not in preprocessor:
                raise ValueError(
                    "the preprocessor normalises but does not say with which image_mean and image_std: "
                    "add both to preprocessor_config.json, three numbers each"
                )
            mean, std = torch.tensor(preprocessor["image_mean"]), torch.tensor(preprocessor["image_std"])
        self.register_buffer("scale", (factor / std).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).view(3, 1, 1), persistent=False)

    def forward(self, images: UInt8[Tensor, "N H W 3"]) -> Float[Tensor, "N 3 h w"]:
        pixels = images.permute(0, 3, 1, 2).float()  # a view: channels-last stays
        if pixels.shape[-2:] != self.size:
            smooth = self.filter != "nearest-exact"
            pixels = F.interpolate(pixels, self.size, mode=self.filter, antialias=smooth)
            pixels = pixels.round_().clamp_(0, 255)  # as an image library would store it
        return torch.addcmul(self.shift, pixels, self.scale)


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
