"""Read the arrays and images of messages: check their declared sizes, and decode them when needed.

An array is a map with `__ndarray__`, as vla-eval, openpi and starVLA write it, an image is an array or a map with
`__image__`. Declared sizes are compared with the received bytes and with the limits before anything is decoded, so a
small message can't request much memory or time. An array that an adapter has read already is accepted as well.
"""

from __future__ import annotations

import io
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from anyvla.serving.limits import ServerLimits
from anyvla.serving.naming import join_names, quote

Layout = Literal["HWC", "CHW"]  # the order of an image's dims
_DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])|bool|u?int(8|16|32|64)|float(16|32|64)")
_DIMS = 8  # of an array
_CHUNKS = 4096  # of a PNG file
_MARKERS, _SCANS = 256, 32  # of a JPEG file; each scan passes over the whole image
_PNG_COLORS = {0: "gray", 2: "RGB", 3: "a palette", 4: "gray with alpha", 6: "RGB with alpha"}


@dataclass(frozen=True)
class EncodedImage:
    """An RGB image of a known size that is not decoded yet."""

    name: str
    format: str  # raw, png or jpeg
    data: memoryview
    height: int
    width: int
    layout: Layout = "HWC"  # of raw data

    def decode(self) -> UInt8[np.ndarray, "H W 3"]:
        """Return the pixels, independent of the message. Raises ValueError for damaged data."""
        if self.format == "raw":
            pixels = np.frombuffer(self.data, np.uint8)
            if self.layout == "CHW":
                return np.ascontiguousarray(pixels.reshape(3, self.height, self.width).transpose(1, 2, 0))
            return pixels.reshape(self.height, self.width, 3).copy()
        try:
            with Image.open(io.BytesIO(self.data), formats=("PNG", "JPEG")) as image:
                if (image.mode, image.size) != ("RGB", (self.width, self.height)):
                    raise ValueError(f"it has the mode {image.mode} and the size {image.size}")
                return np.array(image)
        except Exception as error:  # the libraries below raise anything for damaged data
            raise ValueError(f"image {quote(self.name)} cannot be decoded: {str(error)[:200]}") from None


def is_image(value: Any) -> bool:
    """Return whether a value of a message is meant as an image, valid or not."""
    if isinstance(value, Mapping):
        shape = value.get("shape")
        return bool(value.get("__image__")) or (
            bool(value.get("__ndarray__")) and isinstance(shape, list) and len(shape) > 2
        )
    return isinstance(value, EncodedImage) or (isinstance(value, np.ndarray) and value.ndim > 2)


def read_image(value: Any, name: str, limits: ServerLimits, layout: Layout | None = None) -> EncodedImage:
    """Return an image of a message, not decoded. Raises a ValueError that names it.

    `layout`: of arrays; None: as their shape says, and an array that can be read both ways is refused.
    """
    image = f"image {quote(name)}"
    if isinstance(value, EncodedImage):
        read = value
    elif isinstance(value, np.ndarray):
        read = _of_array(value, name, layout)
    elif not isinstance(value, Mapping):
        raise ValueError(f"{image} is of type {type(value).__name__}; a map with __image__ or __ndarray__ is needed")
    elif value.get("__ndarray__") or value.get("format") == "raw":
        read = _of_array(view_array(value, image, limits.image_bytes), name, layout)
    elif value.get("__image__"):
        form, data = value.get("format"), _data(value, image, limits.image_bytes)
        if form not in ("png", "jpeg"):
            raise ValueError(f"{image} has the format {quote(form)}; raw, png and jpeg are accepted")
        height, width = (_png_size if form == "png" else _jpeg_size)(data, image)
        declared = value.get("shape")
        if declared is not None and declared != [height, width, 3]:
            raise ValueError(f"{image} declares the shape {quote(declared)}, but it is {height} x {width} RGB")
        read = EncodedImage(name, form, data, height, width)
    else:
        raise ValueError(f"{image} is a map of {join_names(value)}; it must have __image__ or __ndarray__")
    if not 1 <= read.height * read.width <= limits.image_pixels:
        raise ValueError(
            f"{image} is {read.height} x {read.width} pixels; 1 to {limits.image_pixels} are accepted "
            "(--limits.image_pixels)"
        )
    return read


def _of_array(array: np.ndarray, name: str, layout: Layout | None) -> EncodedImage:
    """Return an array as an image. Raises a ValueError that names the line of code that fixes it."""
    shape, channels_of = array.shape, {"HWC": 2, "CHW": 0}
    if array.dtype == np.uint8 and array.ndim == 3:
        match [x for x in get_args(Layout) if shape[channels_of[x]] == 3 and layout in (None, x)]:
            case [fits]:
                return _raw(array, name, fits)
            case [_, _]:
                raise ValueError(f"image {quote(name)} {shape} can be HWC or CHW: declare its layout in --mapping")
    fix = ""
    if array.dtype.kind == "f" and array.size and array.min() >= 0 and array.max() <= 1:
        fix = ": its numbers are in [0, 1]; send (image * 255).round().astype(np.uint8)"
    elif array.dtype != np.uint8:
        fix = ": send image.round().astype(np.uint8), of numbers in [0, 255]"
    elif array.ndim > 3 and set(shape[:-3]) == {1}:
        fix = f": send image[{', '.join('0' * (array.ndim - 3))}]"
    elif array.ndim == 3 and 4 in (shape[0], shape[2]):
        fix = ": send it without its alpha channel, image[..., :3]" if shape[2] == 4 else ": send image[:3]"
    needed = "(3, H, W)" if layout == "CHW" else "(H, W, 3)"
    raise ValueError(f"image {quote(name)} is {array.dtype} {shape}; uint8 {needed} is needed{fix}")


def _raw(array: np.ndarray, name: str, layout: Layout) -> EncodedImage:
    height, width = array.shape[:2] if layout == "HWC" else array.shape[1:]
    return EncodedImage(name, "raw", array.reshape(-1).data, height, width, layout)


def read_scalar(value: Any) -> Any:
    """Return the value of a NumPy scalar of a message, and binary that is UTF-8 as text; other values as they are."""
    if isinstance(value, Mapping) and value.get("__npgeneric__"):
        return value.get("data")
    if isinstance(value, memoryview):
        try:
            return str(value, "utf-8")
        except UnicodeDecodeError:
            return value
    return value


def read_vector(value: Any, name: str, limits: ServerLimits) -> np.ndarray:
    """Return an array, a list of numbers or a number of a message, flat. Raises a ValueError that names it."""
    return read_numbers(value, name, limits).ravel()


def read_numbers(value: Any, name: str, limits: ServerLimits) -> np.ndarray:
    """Return an array, a list of numbers or a number of a message, which is a list of one, in its shape.

    Raises a ValueError that names it.
    """
    value = read_scalar(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = [value]
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        array = value
    elif isinstance(value, Mapping) and value.get("__ndarray__"):
        array = view_array(value, quote(name), limits.array_bytes)
    elif isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
        array = np.array(value, np.float64)
    else:
        kind = "list, of other values" if isinstance(value, list) else type(value).__name__
        raise ValueError(f"{quote(name)} is of type {kind}; an array or a list of numbers is needed")
    if array.dtype.kind == "b":
        raise ValueError(f"{quote(name)} has booleans; numbers are needed")
    return array


def view_array(value: Mapping[str, Any], name: str, most: int) -> np.ndarray:
    """Return an array over the bytes of a message, after checking its declared type and shape."""
    missing = [key for key in ("dtype", "shape", "data") if key not in value]
    if missing:
        raise ValueError(f"{name} came without its {missing[0]!r}")
    declared, shape, data = value["dtype"], value["shape"], _data(value, name, most)
    if not isinstance(declared, str) or not _DTYPE.fullmatch(declared):
        kinds = "booleans, integers and floats of up to 8 bytes"
        raise ValueError(f"{name} has the dtype {quote(declared)}; {kinds} are accepted")
    dtype = np.dtype(declared)
    if (
        not isinstance(shape, list)
        or len(shape) > _DIMS
        or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape)
    ):
        raise ValueError(f"{name} has the shape {quote(shape)}; a list of at most {_DIMS} sizes is needed")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{name} declares {dtype} {quote(shape)}, but has {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape)


def _data(value: Mapping[str, Any], name: str, most: int) -> memoryview:
    data = value.get("data")
    if not isinstance(data, memoryview):
        raise ValueError(f"{name} has no 'data' in binary, but {quote(data)}")
    if len(data) > most:
        raise ValueError(f"{name} has {len(data)} bytes; at most {most} are accepted")
    return data


def _png_size(data: memoryview, image: str) -> tuple[int, int]:
    """Return the height and width of an RGB PNG file. Raises ValueError for another file."""
    if len(data) < 33 or data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR":
        raise ValueError(f"{image} cannot be decoded: it is no PNG file")
    width, height, bits, color = struct.unpack(">IIBB", data[16:26])
    if (bits, color) != (8, 2):
        kind = _PNG_COLORS.get(color, f"color type {color}")
        raise ValueError(f"{image} is a PNG file of {bits} bits, {kind}; 8 bits, RGB are needed")
    at = 8
    for _ in range(_CHUNKS):  # PIL reads chunks one by one in Python
        if at + 8 > len(data):
            return height, width
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    raise ValueError(f"{image} has more than {_CHUNKS} chunks")


def _jpeg_size(data: memoryview, image: str) -> tuple[int, int]:
    """Return the height and width of an RGB JPEG file. Raises ValueError for another file."""
    if data[:2] != b"\xff\xd8":
        raise ValueError(f"{image} cannot be decoded: it is no JPEG file")
    if bytes(data).count(b"\xff\xda") > _SCANS:
        raise ValueError(f"{image} has more than {_SCANS} scans")
    at = 2
    for _ in range(_MARKERS):  # PIL reads markers one by one in Python
        if at + 10 > len(data) or data[at] != 0xFF:
            break
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, channels = struct.unpack(">BHHB", data[at + 4 : at + 10])
            if (bits, channels) != (8, 3):
                raise ValueError(f"{image} is a JPEG file of {bits} bits and {channels} channels; 8 and 3 are needed")
            return height, width
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise ValueError(f"{image} cannot be decoded: it is a JPEG file without a size")


def write_array(value: Any) -> dict[str, Any]:
    """Return the map that writes an array into a message. Raises TypeError for another value."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"no form for {type(value).__name__}")
    return {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}
