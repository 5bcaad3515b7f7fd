"""Write images and arrays into messages."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np

FORMS = ("raw", "png", "jpeg")


def write_array(array: np.ndarray) -> dict[str, Any]:
    """Return an array in the form of messages, without a copy of its data if it is contiguous."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return {"__ndarray__": True, "dtype": flat.dtype.str, "shape": list(array.shape), "data": flat.view(np.uint8).data}


def write_image(image: np.ndarray, form: str) -> dict[str, Any]:
    """Return an image, uint8 (H, W, 3), in the form of messages. Only jpeg loses detail."""
    if form == "raw":
        return write_array(image)
    data = write_png(image) if form == "png" else _write_jpeg(image)
    return {"__image__": True, "format": form, "shape": list(image.shape), "data": data}


def read_array(value: Any) -> np.ndarray:
    """Return an array of a message. Raises ValueError for anything else."""
    try:
        dtype = np.dtype(value["dtype"])
        if dtype.kind not in "biuf":
            raise ValueError(f"it has the dtype {dtype}")
        return np.frombuffer(value["data"], dtype).reshape(value["shape"]).copy()
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"a message has no array where one is needed: {error}") from None


def write_png(image: np.ndarray) -> bytes:
    """Return a PNG file of an image, uint8 (H, W, 3).

    Each row is the difference to the row above (filter 2), compressed at level 1: a quarter to three
    quarters of the size of camera images, in about half of the time that Pillow takes at its level 1.
    """
    height, width, _ = image.shape
    flat = image.reshape(height, 3 * width)
    rows = np.full((height, 1 + 3 * width), 2, np.uint8)
    rows[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.data, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _write_jpeg(image: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return file.getvalue()
