"""Tests of converting images of any kind to uint8 RGB, or refusing them with the reason."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anyvla.data.formats.images import as_rgb, decode_image

COLORS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
GRAY = COLORS[..., 0]


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(width: int, height: int, bits: int, color: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


RGB = Image.fromarray(COLORS)
OPAQUE = Image.fromarray(np.concatenate([COLORS, np.full((6, 8, 1), 255, np.uint8)], -1))
PALETTE = Image.fromarray(GRAY // 32).convert("P")
EXACT = {
    "png": (encoded(RGB), COLORS),
    "bmp": (encoded(RGB, "BMP"), COLORS),
    "webp": (encoded(RGB, "WEBP", lossless=True), COLORS),
    "tiff": (encoded(RGB, "TIFF"), COLORS),
    "gray": (encoded(Image.fromarray(GRAY)), np.stack([GRAY] * 3, -1)),
    "black and white": (encoded(Image.fromarray(GRAY > 99)), np.stack([(GRAY > 99) * np.uint8(255)] * 3, -1)),
    "opaque": (encoded(OPAQUE), COLORS),
    "palette": (encoded(PALETTE), np.stack([GRAY // 32] * 3, -1)),
    "palette, no color of which is transparent": (
        encoded(PALETTE, transparency=200),
        np.stack([GRAY // 32] * 3, -1),
    ),
}
DEPTH = np.full((6, 8), 900, np.uint16)
REFUSED = {
    "depth of 16 bits": (encoded(Image.fromarray(DEPTH)), "16 bits.*leave a camera of depth out"),
    "depth of 16 bits in TIFF": (encoded(Image.fromarray(DEPTH), "TIFF"), "mode I;16"),
    "color of 16 bits": (png(8, 8, 16, 2, bytes(8 * 49)), "16 bits"),
    "gray and alpha of 16 bits": (png(8, 8, 16, 4, bytes(8 * 33)), "16 bits"),
    "depth of 32 bits": (encoded(Image.fromarray(DEPTH.astype(np.int32)), "TIFF"), "mode I"),
    "depth in floats": (encoded(Image.fromarray(DEPTH.astype(np.float32)), "TIFF"), "mode F"),
    "ink": (encoded(RGB.convert("CMYK"), "JPEG"), "mode CMYK"),
    "transparent": (encoded(Image.fromarray(np.dstack([COLORS, GRAY]))), "transparent"),
    "transparent gray": (encoded(Image.fromarray(np.dstack([GRAY, GRAY]))), "transparent"),
    "transparent palette": (encoded(PALETTE, transparency=int(GRAY[0, 0] // 32)), "transparent"),
    "bomb": (png(60_000, 60_000, 8, 2, b""), "60000x60000 pixels|decompression bomb"),
    "large": (png(12_000, 12_000, 1, 0, b""), "12000x12000 pixels"),
    "cut": (encoded(RGB)[:80], "damaged"),
    "cut in the pixels": (encoded(RGB)[:-30], "damaged"),
    "nothing": (b"", "damaged"),
    "text": (b"hello", "damaged"),
    "a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "damaged"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", EXACT)
def test_images_whose_colors_are_known_are_read_exactly(kind: str) -> None:
    data, expected = EXACT[kind]
    image = decode_image(data, "here")
    assert image.dtype == np.uint8
    assert np.array_equal(image, expected)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_other_images_are_refused_with_the_reason(kind: str) -> None:
    data, reason = REFUSED[kind]
    with pytest.raises(ValueError, match=f"episode 3, step 4: .*({reason})"):
        decode_image(data, "episode 3, step 4")


def test_missing_and_special_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(RGB))
    os.mkfifo(tmp_path / "b.png")
    assert np.array_equal(decode_image(tmp_path / "a.png", "here"), COLORS)
    with pytest.raises(ValueError, match=r"here.*b\.png is a pipe"):
        decode_image(tmp_path / "b.png", "here")
    with pytest.raises(ValueError, match=r"here: there is no image at .*c\.png"):
        decode_image(tmp_path / "c.png", "here")


def test_the_exif_rotation_is_applied_on_request(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(RGB, exif=exif)
    assert decode_image(data, "here").shape == (6, 8, 3)
    assert decode_image(data, "here", upright=True).shape == (8, 6, 3)


def test_arrays_are_converted_or_refused(tmp_path: Path) -> None:
    assert np.array_equal(as_rgb(COLORS, "x"), COLORS)
    assert np.array_equal(as_rgb(COLORS.transpose(2, 0, 1), "x", channels_first=True), COLORS)
    assert np.array_equal(as_rgb(GRAY[..., None], "x"), np.stack([GRAY] * 3, -1))
    assert np.array_equal(as_rgb(np.asarray(OPAQUE), "x"), COLORS)
    for wrong in (DEPTH[..., None], COLORS / np.float32(255), COLORS.astype(np.int32), COLORS > 9):
        with pytest.raises(ValueError, match=r"x: the images are .* not uint8; .*leave a camera of depth out"):
            as_rgb(wrong, "x")
    for wrong in (GRAY, COLORS[..., :2], COLORS[:0]):
        with pytest.raises(ValueError, match=r"x: the image"):
            as_rgb(wrong, "x")
    with pytest.raises(ValueError, match="transparent"):
        as_rgb(np.dstack([COLORS, GRAY]), "x")


def test_one_transparent_pixel_is_enough_to_refuse_an_image():
    pixels = np.asarray(OPAQUE).copy()
    pixels[1, 2, 3] = 254
    for read in (lambda: as_rgb(pixels, "x"), lambda: decode_image(encoded(Image.fromarray(pixels)), "x")):
        with pytest.raises(ValueError, match="x: the image has transparent pixels"):
            read()
