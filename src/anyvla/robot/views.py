"""Camera views: one size and one crop, the same in training and in acting.

Training resizes the images of windows with `resize_to_view` and takes a random crop; acting takes the center of the
same crop. Both read the `ViewConfig` in the checkpoint, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from anyvla.config import STRICT
from anyvla.limits import PIXELS
from anyvla.robot.embodiment import Embodiment
from anyvla.robot.shared_layout import RobotIndices
from anyvla.types import Observation

Pixels = Annotated[int, Field(ge=0, le=PIXELS)]
Side = Annotated[int, Field(ge=1, le=PIXELS)]
Share = Annotated[float, Field(gt=0, le=1)]
Fit = Literal["stretch", "pad"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ViewConfig:
    """The section `model.view` of a recipe."""

    # (H, W) that every image is brought to when it is read; None: as they come, then all must have one size.
    size: tuple[Side, Side] | None = None
    fit: Fit = "stretch"  # pad keeps the aspect and adds black bars
    # Share of each side that is seen, at a random place in training, in the center in acting; one number or one a view.
    crop: Share | tuple[Share, ...] = 1.0


def resize_to_view(images: UInt8[np.ndarray, "... H W 3"], view: ViewConfig) -> UInt8[np.ndarray, "... h w 3"]:
    """Return images in the size of the view, unchanged if they have it."""
    if view.size is None or images.shape[-3:-1] == view.size:
        return images
    return resize(images, view.size, view.fit)


def resize(images: UInt8[np.ndarray, "... H W 3"], size: tuple[int, int], fit: Fit) -> UInt8[np.ndarray, "... h w 3"]:
    """Resize images bilinearly to `size` (h, w), with antialiasing where they shrink.

    stretch ignores the aspect, as Octo and OpenVLA do; pad keeps it and centers the image between black bars, as
    openpi does. Other libraries' filters differ by several gray levels, so reading data and acting share this one.
    """
    height, width = images.shape[-3:-1]
    inner = size
    if fit == "pad":
        share = min(size[0] / height, size[1] / width)
        inner = (max(1, round(height * share)), max(1, round(width * share)))
    planes = torch.from_numpy(np.ascontiguousarray(images)).reshape(-1, height, width, 3).permute(0, 3, 1, 2)
    out = F.interpolate(planes, inner, mode="bilinear", antialias=True, align_corners=False).permute(0, 2, 3, 1)
    if inner != size:
        top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
        whole = torch.zeros(len(out), *size, 3, dtype=torch.uint8)
        whole[:, top : top + inner[0], left : left + inner[1]] = out
        out = whole
    return out.reshape(*images.shape[:-3], *size, 3).contiguous().numpy()


def camera_views(
    observation: Observation, robot: Embodiment, indices: RobotIndices, count: int, view: ViewConfig
) -> UInt8[np.ndarray, "V H W 3"]:
    """Return the `count` views of an observation before the crop, black where the robot has no camera.

    Raises a ValueError that names the camera for an image that is missing or is no uint8 RGB array, and for images of
    different sizes where the view has none.
    """
    missing = [c for c in robot.cameras if c not in observation.images]
    if missing:
        raise ValueError(
            f"the observation lacks camera {', '.join(map(repr, missing))}; this policy was trained with "
            f"{', '.join(robot.cameras)} and the observation has {', '.join(observation.images) or 'none'}"
        )
    images = [resize_to_view(_image(c, observation.images[c]), view) for c in robot.cameras]
    if len({image.shape for image in images}) > 1:
        shapes = {c: image.shape for c, image in zip(robot.cameras, images, strict=True)}
        raise ValueError(f"the images of all cameras must have one size, got {shapes}: train with model.view.size")
    out = np.zeros((count, *images[0].shape), np.uint8)
    out[indices.views] = images
    return out


def _image(camera: str, image: Any) -> UInt8[np.ndarray, "H W 3"]:
    """Return the image of a camera. Raises ValueError with the fault and the line of code that fixes it."""
    if not isinstance(image, np.ndarray):
        got, fix = type(image).__name__, "np.asarray(image)"
    elif not image.size:
        got, fix = f"an empty one, {image.dtype} {image.shape}", "the frame that the camera shows"
    elif image.ndim == 3 and image.shape[-1] != 3 and image.shape[0] in (1, 3, 4):
        got, fix = f"{image.dtype} {image.shape}, channels first", "image.transpose(1, 2, 0)"
    elif image.ndim == 3 and image.shape[-1] == 4:
        got, fix = f"{image.dtype} {image.shape}, with an alpha channel", "image[..., :3]"
    elif image.ndim != 3 or image.shape[-1] != 3:
        got, fix = f"{image.dtype} {image.shape}", "one RGB frame; a gray one as np.stack([image] * 3, -1)"
    elif image.dtype != np.uint8:
        unit = image.size and np.issubdtype(image.dtype, np.floating) and image.max() <= 1
        scaled = "(image * 255)" if unit else "image"
        got, fix = f"{image.dtype} {image.shape}", f"{scaled}.round().astype(np.uint8)"
    else:
        return image
    raise ValueError(f"camera {camera!r}: expected a uint8 array (H, W, 3), RGB, 0..255, got {got}: give {fix}")


def center_crop_views(images: UInt8[Tensor, "B V H W 3"], crop: Sequence[float] | float) -> UInt8[Tensor, "B V H W 3"]:
    """Return the views for acting: the crop of training, in the center instead of at random."""
    return crop_views(images[:, None], numbers_per_view(crop, images[:, None], "crop"), None)[:, 0]


def numbers_per_view(value: Sequence[float] | float, images: Tensor, name: str) -> list[float]:
    """Return one number for each view of `images` (V is dim 2). Raises ValueError for another count of numbers."""
    views = images.shape[2]
    values = [value] * views if isinstance(value, int | float) else list(value)
    if len(values) != views:
        raise ValueError(f"{name} must be one number or one per view ({views} views), got {values}")
    return values


def crop_views(
    images: UInt8[Tensor, "B T V H W 3"], shares: Sequence[float], places: Float[Tensor, "B V 2"] | None
) -> UInt8[Tensor, "B T V H W 3"]:
    """Cut a box of each view and bring it back to the view's size.

    `places`: of each box, from 0 (top, left) to below 1 (bottom, right). None: all boxes are in the center.
    """
    if all(share == 1 for share in shares):
        return images
    batch, steps, views, height, width, _ = images.shape
    places = torch.full((batch, views, 2), 0.5) if places is None else places
    out = images.clone()
    for v, share in enumerate(shares):
        h, w = max(1, round(height * share)), max(1, round(width * share))
        if (h, w) == (height, width):
            continue
        corners = (places[:, v] * torch.tensor([height - h + 1, width - w + 1])).int().tolist()  # (B, 2)
        boxes = torch.stack([images[b, :, v, y : y + h, x : x + w] for b, (y, x) in enumerate(corners)])
        planes = boxes.flatten(0, 1).permute(0, 3, 1, 2)  # (B*T, 3, h, w)
        sized = F.interpolate(planes, (height, width), mode="bilinear", antialias=True, align_corners=False)
        out[:, :, v] = sized.permute(0, 2, 3, 1).unflatten(0, (batch, steps))
    return out
