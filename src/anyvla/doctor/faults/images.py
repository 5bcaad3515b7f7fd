"""Known faults of images: swapped cameras, other colors, orientations, sizes, crops and compression."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations, permutations
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch.nn import functional as F

from anyvla.backbones.images import resize as pillow
from anyvla.doctor.faults.base import Family, Fault, Images
from anyvla.robot.views import resize

Pixels = UInt8[np.ndarray, "H W 3"]
Size = tuple[int, int]

_CROPS = (0.95, 0.9, 0.875, 0.8, 0.75, 0.5)  # shares of a side; 0.95 is 90 % of the area, 0.875 is 224 of 256 pixels
_QUALITIES = (95, 90, 85, 80, 75, 50)
_USUAL_SIDES = (84, 96, 128, 224, 256, 384)
_MOST_PERMUTED = 3  # cameras; of more, pairs are swapped


def list_image_faults(cameras: Sequence[str], sizes: dict[str, Size], view: Size | None) -> Iterator[Fault]:
    """Yield the faults of images of these cameras. `sizes`: as recorded; `view`: of the policy, if it has one."""
    yield from _list_camera_faults(cameras)
    yield from _of_each(
        cameras, "colors", "red and blue swapped (BGR)", _swap_red_and_blue, "Send RGB: image[..., ::-1]."
    )
    yield from _of_each(cameras, "colors", "gray images", _to_gray, "Send the camera's colors.")
    for name, turn in _TURNS.items():
        yield from _of_each(cameras, "orientation", name, turn, "Send images upright, as they were recorded.")
    for name, change in _VALUES.items():
        yield from _of_each(
            cameras, "colors", name, change, "Send uint8 images, 0 to 255: (image * 255).round().astype(np.uint8)."
        )
    for quality in _QUALITIES:
        yield Fault(
            f"JPEG compression of quality {quality}",
            "compression",
            "Send PNG or raw images, or train on compressed ones.",
            images=(_on(cameras, partial(_compress, quality=quality)),),
        )
    yield from _list_sizes(cameras, sizes, view)
    for share in _CROPS:
        text = f"a center crop of {100 * share:g} % of each side"
        change = partial(_crop, share=share)
        yield from _of_each(cameras, "crop", text, change, "Send whole images: the policy crops.")


def _list_camera_faults(cameras: Sequence[str]) -> Iterator[Fault]:
    fix = "Correct the cameras in the client or in the mapping."
    orders: list[tuple[str, ...]] = []
    if len(cameras) <= _MOST_PERMUTED:
        orders = [order for order in permutations(cameras) if order != tuple(cameras)]
    else:
        for a, b in combinations(range(len(cameras)), 2):
            swapped = list(cameras)
            swapped[a], swapped[b] = swapped[b], swapped[a]
            orders.append(tuple(swapped))
    for order in orders:
        moved = [(own, shown) for own, shown in zip(cameras, order, strict=True) if own != shown]
        name = (
            f"cameras {moved[0][0]} and {moved[1][0]} swapped"
            if len(moved) == 2
            else "cameras mixed up: " + ", ".join(f"{own} shows {shown}" for own, shown in moved)
        )
        yield Fault(name, "cameras", fix, images=(partial(_show, shown=dict(moved)),))
    for camera in cameras:
        yield Fault(
            f"camera {camera} missing (black)",
            "cameras",
            f"Send the image of {camera}.",
            images=(_on([camera], np.zeros_like),),
        )
        for other in cameras:
            if other != camera:
                yield Fault(
                    f"camera {camera} repeats {other}", "cameras", fix, images=(partial(_show, shown={camera: other}),)
                )


def _list_sizes(cameras: Sequence[str], sizes: dict[str, Size], view: Size | None) -> Iterator[Fault]:
    """Yield faults of clients that resize images before they send them."""
    fix = "Send images as they were recorded: the server resizes as training does."
    recorded = set(sizes.values())
    for size in dict.fromkeys([*([view] if view else []), *((side, side) for side in _USUAL_SIDES)]):
        other_aspect = any(h * size[1] != w * size[0] for h, w in recorded)
        ways: dict[str, Callable[..., Pixels]] = {**_FILTERS, **(_FITS if other_aspect else {})}
        if recorded == {size}:
            continue
        for name, scale in ways.items():
            change = _on(cameras, partial(scale, size=size))
            yield Fault(f"images resized to {size[0]}x{size[1]} ({name})", "resize", fix, images=(change,))


def _of_each(
    cameras: Sequence[str], family: Family, name: str, change: Callable[[Pixels], Pixels], fix: str
) -> Iterator[Fault]:
    """Yield a fault of all cameras, and of each one if there are several."""
    yield Fault(name, family, fix, images=(_on(cameras, change),))
    for camera in cameras if len(cameras) > 1 else ():
        yield Fault(f"{name}, camera {camera} only", family, fix, images=(_on([camera], change),))


def _on(cameras: Sequence[str], change: Callable[[Pixels], Pixels]) -> Callable[[Images], Images]:
    """Return a change of the images of some cameras."""
    return lambda images: {c: change(image) if c in cameras else image for c, image in images.items()}


def _show(images: Images, shown: dict[str, str]) -> Images:
    """Return images in which some cameras show another one, in their own size."""
    out = dict(images)
    for camera, other in shown.items():
        own, image = images[camera].shape[:2], images[other]
        out[camera] = image if image.shape[:2] == own else resize(image, own, "stretch")
    return out


def _swap_red_and_blue(image: Pixels) -> Pixels:
    return np.ascontiguousarray(image[..., ::-1])


def _to_gray(image: Pixels) -> Pixels:
    return np.array(Image.fromarray(image).convert("L").convert("RGB"))


_TURNS: dict[str, Callable[[Pixels], Pixels]] = {
    "images rotated by 180 degrees": lambda image: np.ascontiguousarray(image[::-1, ::-1]),
    "images upside down (flipped)": lambda image: np.ascontiguousarray(image[::-1]),
    "images mirrored left to right": lambda image: np.ascontiguousarray(image[:, ::-1]),
    "images rotated by 90 degrees counterclockwise": lambda image: np.ascontiguousarray(np.rot90(image)),
    "images rotated by 90 degrees clockwise": lambda image: np.ascontiguousarray(np.rot90(image, -1)),
}
_VALUES: dict[str, Callable[[Pixels], Pixels]] = {
    "images as [0, 1] floats cast to uint8 (almost black)": lambda image: (image / 255).astype(np.uint8),
    "images as [-1, 1] floats scaled to 0..255 again": lambda image: np.clip((image / 127.5 - 1) * 255, 0, 255).astype(
        np.uint8
    ),
    "images as 16-bit floats in [0, 1], truncated to uint8": lambda image: (
        (image / 255).astype(np.float16) * np.float16(255)
    ).astype(np.uint8),
}


def _compress(image: Pixels, quality: int) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))  # np.asarray: read-only, of which PyTorch warns


def _crop(image: Pixels, share: float) -> Pixels:
    """Cut out the center and bring it back to the size of the image."""
    height, width = image.shape[:2]
    h, w = max(1, round(height * share)), max(1, round(width * share))
    top, left = (height - h) // 2, (width - w) // 2
    return resize(image[top : top + h, left : left + w], (height, width), "stretch")


def _crop_to_aspect(image: Pixels, size: Size) -> Pixels:
    """Cut out the largest center of the aspect of `size`, and resize it."""
    height, width = image.shape[:2]
    share = min(height / size[0], width / size[1])
    h, w = round(size[0] * share), round(size[1] * share)
    top, left = (height - h) // 2, (width - w) // 2
    return resize(image[top : top + h, left : left + w], size, "stretch")


def _interpolate(image: Pixels, size: Size, mode: str) -> Pixels:
    """Resize without antialiasing, as OpenCV does: pixel centers, rounded."""
    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    aligned: dict[str, Any] = {} if mode in ("nearest", "area") else {"align_corners": False}
    out = F.interpolate(planes, size, mode=mode, **aligned)
    return out[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()


def _pillow(image: Pixels, size: Size, number: int) -> Pixels:
    planes = pillow.resize(torch.from_numpy(np.ascontiguousarray(image))[None], size, number)
    return planes[0].permute(1, 2, 0).contiguous().numpy()


_FILTERS: dict[str, Callable[[Pixels, Size], Pixels]] = {
    "bilinear with antialiasing": lambda image, size: resize(image, size, "stretch"),
    "bilinear without antialiasing": lambda image, size: _interpolate(image, size, "bilinear"),
    "nearest, as Pillow": lambda image, size: _pillow(image, size, pillow.NEAREST),
    "nearest, as OpenCV": lambda image, size: _interpolate(image, size, "nearest"),
    "area": lambda image, size: _interpolate(image, size, "area"),
    "bicubic with antialiasing": lambda image, size: _pillow(image, size, pillow.BICUBIC),
    "lanczos": lambda image, size: _pillow(image, size, pillow.LANCZOS),
}
_FITS: dict[str, Callable[[Pixels, Size], Pixels]] = {
    "padded with black bars": lambda image, size: resize(image, size, "pad"),
    "cropped to the aspect": _crop_to_aspect,
}
