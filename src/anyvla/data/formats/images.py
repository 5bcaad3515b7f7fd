"""Converts an image, encoded or an array, to uint8 RGB, or refuses it with the reason.

Image libraries convert silently: 16-bit depth becomes white, floats black, transparent pixels get an arbitrary color.
Only unambiguous colors are accepted here: 8-bit gray or color, black and white, palettes, and opaque alpha.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from anyvla.files.inside import check_regular

MAX_PIXELS = 100_000_000  # 300 MB as RGB; a 4K camera has 8 million
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # others run programs (EPS) or are never needed
_EXACT = ("RGB", "L", "1", "P")  # modes that Pillow converts to RGB exactly
_ALPHA = ("RGBA", "LA", "PA")
_HINT = "a camera shows color or gray of 8 bits: leave a camera of depth out of the embodiment, or store color as uint8"


class _RefusedImageError(ValueError):
    """The image is intact, but its colors are uncertain or it is too large."""


def decode_image(
    source: bytes | bytearray | memoryview | Path, where: str, *, upright: bool = False
) -> UInt8[np.ndarray, "H W 3"]:
    """Return an encoded image as RGB. `upright`: rotate it as its EXIF data says.

    Raises a ValueError that begins with `where` if the image is missing, damaged, too large, or no 8-bit gray or color.
    """
    try:
        file = check_regular(source).open("rb") if isinstance(source, Path) else io.BytesIO(source)
        with file, Image.open(file, formats=_FORMATS) as image:
            check_image_size(*image.size, where)
            coded = " ".join(str(tile[3]) for tile in getattr(image, "tile", []))
            if ";16" in coded or image.mode not in (*_EXACT, *_ALPHA):
                depth = " with 16 bits" if ";16" in coded else ""
                raise _RefusedImageError(f"{where}: the image is {image.format} of mode {image.mode}{depth}; {_HINT}")
            turned = (ImageOps.exif_transpose(image) or image) if upright else image
            if turned.mode in _ALPHA or "transparency" in turned.info:
                _check_opaque(np.asarray(turned.convert("RGBA")), where)
            return np.array(turned.convert("RGB"), np.uint8)
    except _RefusedImageError:
        raise
    except FileNotFoundError as error:
        raise ValueError(f"{where}: there is no image at {error.filename}") from None
    except UnidentifiedImageError:
        raise ValueError(f"{where}: the image is damaged (it is of no known kind); copy the data again") from None
    except Exception as error:  # a damaged image makes Pillow raise almost anything
        raise ValueError(f"{where}: the image is damaged ({error}); copy the data again") from None


def as_rgb(images: np.ndarray, where: str, *, channels_first: bool = False) -> UInt8[np.ndarray, "... H W 3"]:
    """Return an array of images as RGB. `channels_first`: the array is (..., C, H, W).

    Raises a ValueError that begins with `where` unless the images are uint8 with 1, 3 or 4 channels.
    """
    images = np.moveaxis(images, -3, -1) if channels_first and images.ndim >= 3 else images
    check_image_array(images.dtype, images.shape, where)
    if images.shape[-1] == 4:
        _check_opaque(images, where)
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images[..., :3]


def check_image_array(dtype: np.dtype, shape: tuple[int, ...], where: str) -> None:
    """Raise ValueError unless arrays of this type and shape (..., H, W, C) are images."""
    if dtype != np.uint8:
        raise ValueError(f"{where}: the images are {dtype} {shape}, not uint8; {_HINT}")
    if len(shape) < 3 or shape[-1] not in (1, 3, 4):
        raise ValueError(f"{where}: the images have shape {shape}, expected (H, W, 3) each, or one channel of gray")
    check_image_size(shape[-2], shape[-3], where)


def check_image_size(width: int, height: int, where: str) -> None:
    """Raise ValueError for an image that is empty or would fill the memory."""
    if not 0 < width * height <= MAX_PIXELS:
        raise _RefusedImageError(f"{where}: the image promises {width}x{height} pixels; expected 1 to {MAX_PIXELS:,}")


def _check_opaque(images: UInt8[np.ndarray, "... H W 4"], where: str) -> None:
    if np.any(images[..., 3] != 255):
        raise _RefusedImageError(
            f"{where}: the image has transparent pixels, whose color is unknown; store it without alpha"
        )
