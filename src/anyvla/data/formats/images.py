"""Turns an image of any origin, encoded or an array, into uint8 RGB, or refuses it with the reason.

Libraries convert what they cannot show: depth of 16 bits turns white, floats turn black, transparent pixels take any
color. Only images whose colors are known are read here: 8 bits of gray or color, black and white, palettes, and
opaque alpha.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from anyvla.files.inside import regular

MAX_PIXELS = 100_000_000  # 300 MB as RGB; a camera of 4K has 8 million
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # others run programs (EPS) or are never needed
_EXACT = ("RGB", "L", "1", "P")  # modes that Pillow turns into RGB without a loss or a guess
_ALPHA = ("RGBA", "LA", "PA")
_HINT = (
    "a camera shows color or gray of 8 bits: leave a camera of depth out of the embodiment's cameras, or store color "
    "as uint8"
)


def decode_image(
    source: bytes | bytearray | memoryview | Path, where: str, *, upright: bool = False
) -> UInt8[np.ndarray, "H W 3"]:
    """Return an encoded image as RGB. `upright`: apply the turn that a phone noted in EXIF.

    Raise ValueError that begins with `where` if the image is missing, damaged, too large, or is not uint8 gray or
    color.
    """
    try:
        file = regular(source).open("rb") if isinstance(source, Path) else io.BytesIO(source)
        with file, Image.open(file, formats=_FORMATS) as image:
            fault = _fault(image)
            if not fault:
                turned = (ImageOps.exif_transpose(image) or image) if upright else image
                fault = _transparency(turned)
                if not fault:
                    return np.array(turned.convert("RGB"), np.uint8)
    except FileNotFoundError as error:
        raise ValueError(f"{where}: there is no image at {error.filename}") from None
    except UnidentifiedImageError:
        raise ValueError(f"{where}: the image is damaged (it is of no known kind); copy the data again") from None
    except Exception as error:  # a damaged image makes Pillow raise almost anything
        raise ValueError(f"{where}: the image is damaged ({error}); copy the data again") from None
    raise ValueError(f"{where}: the image {fault}")


def as_rgb(images: np.ndarray, where: str, *, channels_first: bool = False) -> UInt8[np.ndarray, "... H W 3"]:
    """Return images that are arrays as RGB. `channels_first`: they are (..., C, H, W).

    Raise ValueError that begins with `where` if they are not uint8, or have neither 1, 3 nor 4 channels.
    """
    images = np.moveaxis(images, -3, -1) if channels_first and images.ndim >= 3 else images
    check_image_array(images.dtype, images.shape, where)
    if images.shape[-1] == 4 and np.any(images[..., 3] != 255):
        raise ValueError(f"{where}: the image has transparent pixels, whose color is unknown; store it without alpha")
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images[..., :3]


def check_image_array(dtype: np.dtype, shape: tuple[int, ...], where: str) -> None:
    """Raise ValueError if arrays of this type and shape (..., H, W, C) are no images."""
    if dtype != np.uint8:
        raise ValueError(f"{where}: the images are {dtype} {shape}, not uint8; {_HINT}")
    if len(shape) < 3 or shape[-1] not in (1, 3, 4):
        raise ValueError(f"{where}: the images have shape {shape}, expected (H, W, 3) each, or one channel of gray")
    check_image_size(shape[-2], shape[-3], where)


def check_image_size(width: int, height: int, where: str) -> None:
    """Raise ValueError for an image that is empty or would fill the memory."""
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"{where}: the image promises {width}x{height} pixels; expected 1 to {MAX_PIXELS:,}")


def _fault(image: Image.Image) -> str:
    """Return the reason why an image is refused before it is decoded; "": none."""
    width, height = image.size
    if not 0 < width * height <= MAX_PIXELS:
        return f"promises {width}x{height} pixels; expected 1 to {MAX_PIXELS:,}"
    coded = " ".join(str(tile[3]) for tile in getattr(image, "tile", []))
    if ";16" in coded or image.mode not in (*_EXACT, *_ALPHA):
        return f"is {image.format} of mode {image.mode}{' with 16 bits' if ';16' in coded else ''}; {_HINT}"
    return ""


def _transparency(image: Image.Image) -> str:
    if image.mode in _ALPHA or "transparency" in image.info:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        if np.any(alpha != 255):
            return "has transparent pixels, whose color is unknown; store it without alpha"
    return ""
