from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anyvla.serving.arrays import read_image, read_vector
from anyvla.serving.limits import ServerLimits
from tests.serving.clients import image

LIMITS = ServerLimits(image_pixels=64 * 64, image_bytes=20000, array_bytes=1000)
PIXELS = np.random.default_rng(0).integers(0, 255, (8, 6, 3), np.uint8)


def sent(value: dict[str, Any]) -> dict[str, Any]:
    """Return a value as the server reads it from a message."""
    return {key: memoryview(v) if isinstance(v, bytes) else v for key, v in value.items()}


def array(value: np.ndarray, **change: Any) -> dict[str, Any]:
    whole = {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}
    return sent(whole | change)


def picture(pixels: np.ndarray, form: str = "png", change: dict[str, Any] | None = None, **options: Any) -> Any:
    return sent(image(pixels, form, **options) | (change or {}))


def encoded(form: str, mode: str, size: tuple[int, int] = (6, 8), **options: Any) -> Any:
    file = io.BytesIO()
    Image.new(mode, size).save(file, form, **options)
    return sent({"__image__": True, "format": form, "data": file.getvalue()})


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(head: bytes, *chunks: bytes) -> Any:
    return sent(
        {"__image__": True, "format": "png", "data": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks)}
    )


def header(width: int, height: int, bits: int = 8, color: int = 2) -> bytes:
    return struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)


def test_every_form_of_an_image_is_read() -> None:
    raw = {"__image__": True, "format": "raw", "data": PIXELS.tobytes(), "dtype": "|u1", "shape": [8, 6, 3]}
    for value in (array(PIXELS), sent(raw), picture(PIXELS)):
        assert np.array_equal(read_image(value, "top", LIMITS).decode(), PIXELS)
    for options in ({}, {"progressive": True}, {"quality": 95, "subsampling": 0}):
        read = read_image(picture(PIXELS, "jpeg", **options), "top", LIMITS)
        assert (read.height, read.width) == (8, 6)
        assert read.decode().shape == (8, 6, 3)


@pytest.mark.parametrize("form", ["png", "jpeg", "raw"])
def test_an_image_arrives_upright_in_rgb(form: str) -> None:
    """The image is red at the upper left, blue at the lower left and green on the right."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :16, 0] = pixels[:, 16:, 1] = pixels[16:, :16, 2] = 200
    value = array(pixels) if form == "raw" else picture(pixels, form, **({"quality": 95} if form == "jpeg" else {}))
    read = read_image(value, "top", LIMITS)
    assert (read.height, read.width) == (32, 48)
    shown = read.decode().astype(int)
    for at, color in (((4, 4), (200, 0, 0)), ((28, 4), (0, 0, 200)), ((4, 40), (0, 200, 0)), ((28, 40), (0, 200, 0))):
        assert np.abs(shown[at] - color).max() < 12


def test_an_image_with_channels_first_arrives_upright_in_rgb() -> None:
    """ALOHA's clients send CHW. An image that fits both orders is read as declared, or refused."""
    first = np.ascontiguousarray(PIXELS.transpose(2, 0, 1))
    for value in (array(first), first):
        for layout in (None, "CHW"):
            read = read_image(value, "top", LIMITS, layout)
            assert (read.height, read.width) == (8, 6)
            assert np.array_equal(read.decode(), PIXELS)
            assert read.decode().flags["C_CONTIGUOUS"]
            assert read.decode().flags["WRITEABLE"]
    both = np.random.default_rng(1).integers(0, 255, (3, 5, 3), np.uint8)
    assert np.array_equal(read_image(both, "top", LIMITS, "HWC").decode(), both)
    assert np.array_equal(read_image(both, "top", LIMITS, "CHW").decode(), both.transpose(1, 2, 0))
    with pytest.raises(ValueError, match=r"image 'top' \(3, 5, 3\) can be HWC or CHW: declare its layout"):
        read_image(both, "top", LIMITS)
    with pytest.raises(ValueError, match=r"uint8 \(8, 6, 3\); uint8 \(3, H, W\) is needed"):
        read_image(PIXELS, "top", LIMITS, "CHW")
    with pytest.raises(ValueError, match=r"uint8 \(3, 8, 6\); uint8 \(H, W, 3\) is needed"):
        read_image(first, "top", LIMITS, "HWC")


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        (PIXELS / 255, r"is needed: its numbers are in \[0, 1\]; send \(image \* 255\).round\(\).astype\(np.uint8\)"),
        (PIXELS.astype(np.float32), "is needed: send image.round"),
        (PIXELS / 127.5 - 1, "is needed: send image.round"),
        (PIXELS[None, None], r"is needed: send image\[0, 0\]"),
        (np.zeros((8, 6, 4), np.uint8), r"without its alpha channel, image\[..., :3\]"),
    ],
)
def test_the_error_of_an_array_says_how_to_send_it(value: np.ndarray, fix: str) -> None:
    for sent in (value, array(value)):
        with pytest.raises(ValueError, match=fix):
            read_image(sent, "top", LIMITS)


def test_an_image_may_have_as_many_pixels_as_its_limit() -> None:
    """The limit of other arrays, which is lower, does not apply to images."""
    for height, width in ((64, 64), (1, 4096), (4096, 1)):
        pixels = np.zeros((height, width, 3), np.uint8)
        assert read_image(array(pixels), "top", LIMITS).decode().shape == (height, width, 3)
    with pytest.raises(ValueError, match="1 x 4097 pixels; 1 to 4096"):
        read_image(array(np.zeros((1, 4097, 3), np.uint8)), "top", LIMITS)
    exact = ServerLimits(image_bytes=144)
    assert read_image(array(PIXELS), "top", exact)
    with pytest.raises(ValueError, match="has 144 bytes; at most 143"):
        read_image(array(PIXELS), "top", ServerLimits(image_bytes=143))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "image 'top' is of type int"),
        ([1, 2], "image 'top' is of type list"),
        ({"a": 1}, "it must have __image__ or __ndarray__"),
        (array(PIXELS.astype(np.float32)), "float32 .8, 6, 3.; uint8"),
        (array(PIXELS.astype(np.uint16)), "uint16"),
        (array(PIXELS[..., :1]), r"uint8 \(8, 6, 1\)"),
        (array(np.zeros((8, 6, 4), np.uint8)), r"\(8, 6, 4\)"),
        (array(PIXELS[0]), r"uint8 \(6, 3\)"),
        (array(np.zeros((1, 8, 6, 3), np.uint8)), "uint8"),
        (array(PIXELS[:0]), "0 x 6 pixels; 1 to 4096"),
        (array(PIXELS[:, :0]), "8 x 0 pixels"),
        (array(np.zeros((65, 64, 3), np.uint8)), "65 x 64 pixels"),
        (array(PIXELS, shape=[8, 6, 30]), r"declares uint8 \[8, 6, 30\], but has 144 bytes"),
        (array(PIXELS, shape=[-1, 6, 3]), r"has the shape \[-1, 6, 3\]"),
        (array(PIXELS, shape=[2**40, 2**40, 3]), "but has 144 bytes"),
        (array(PIXELS, shape=[True, 48, 3]), "has the shape"),
        (array(PIXELS, shape=[8.0, 6, 3]), "has the shape"),
        (array(PIXELS, shape="8,6,3"), "has the shape '8,6,3'"),
        (array(PIXELS, shape=[1] * 9), "has the shape"),
        (array(PIXELS, dtype="|O"), r"the dtype '\|O'"),
        (array(PIXELS, dtype="O"), "the dtype 'O'"),
        (array(PIXELS, dtype="V3"), "dtype"),
        (array(PIXELS, dtype="u1,u1"), "dtype"),
        (array(PIXELS, dtype="(1000000000,)u1"), "dtype"),
        (array(PIXELS, dtype="datetime64[s]"), "dtype"),
        (array(PIXELS, dtype="c8"), "dtype"),
        (array(PIXELS, dtype="U3"), "dtype"),
        (array(PIXELS, dtype="u1," * 1000), "dtype"),
        (array(PIXELS, dtype="nonsense"), "dtype 'nonsense'"),
        (array(PIXELS, dtype="V99999999999"), "dtype"),
        (array(PIXELS, dtype="|u1\n"), "dtype"),
        (array(PIXELS, dtype="f16"), "dtype"),
        (array(PIXELS, dtype=17), "dtype 17"),
        (array(PIXELS, dtype=None), "dtype None"),
        (array(PIXELS, data="text"), "has no 'data' in binary, but 'text'"),
        (array(np.zeros((80, 90, 3), np.uint8)), "has 21600 bytes; at most 20000"),
        (sent({"__ndarray__": True, "shape": [1]}), "without its 'dtype'"),
        (sent({"__image__": True, "format": "gif", "data": b"GIF89a"}), "the format 'gif'; raw, png and jpeg"),
        (sent({"__image__": True, "data": b"x"}), "the format None"),
        (sent({"__image__": True, "format": "png"}), "has no 'data'"),
        (sent({"__image__": True, "format": "png", "data": b"x", "shape": [1]}), "cannot be decoded"),
        (sent({"__image__": True, "format": "jpeg", "data": b"\xff\xd8\xff"}), "cannot be decoded"),
        (sent({"__image__": True, "format": "jpeg", "data": b"BM" + b"\0" * 99}), "no JPEG file"),
        (picture(PIXELS, change={"shape": [8, 7, 3]}), r"declares the shape \[8, 7, 3\], but it is 8 x 6 RGB"),
        (picture(PIXELS, change={"shape": [8, 6]}), "declares the shape"),
        (png(header(0, 0)), "0 x 0 pixels"),
        (png(header(2**31 - 1, 2**31 - 1)), "pixels; 1 to 4096"),
        (png(header(6, 8, bits=16)), "16 bits, RGB; 8 bits, RGB are needed"),
        (png(header(6, 8), chunk(b"tEXt", b"") * 1600), "cannot be decoded"),
        (encoded("png", "RGBA"), "RGB with alpha"),
        (encoded("png", "L"), "gray"),
        (encoded("png", "I;16"), "16 bits, gray"),
        (encoded("png", "P"), "a palette"),
        (encoded("png", "1"), "1 bits, gray"),
        (encoded("jpeg", "L"), "8 bits and 1 channels"),
        (encoded("jpeg", "CMYK"), "8 bits and 4 channels"),
        (encoded("jpeg", "RGB", (6000, 6000)), "bytes; at most 20000|6000 x 6000 pixels"),
        (encoded("png", "RGB", (3000, 3000)), "bytes; at most 20000|3000 x 3000 pixels"),
    ],
)  # fmt: skip
def test_bad_images_are_refused_by_name(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_image(value, "top", LIMITS).decode()


def test_damaged_images_are_refused_by_name() -> None:
    whole = bytes(picture(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8))["data"])
    for end in range(0, len(whole) - 12, 97):
        with pytest.raises(ValueError, match="image 'top'"):
            read_image(sent({"__image__": True, "format": "png", "data": whole[:end]}), "top", LIMITS).decode()


def test_files_of_many_parts_are_refused_before_they_are_decoded() -> None:
    """Decoding them would take long: PIL reads each part in Python, and each JPEG scan covers the whole image."""
    many = png(header(6, 8), chunk(b"tEXt", b"") * 5000)
    with pytest.raises(ValueError, match="more than 4096 chunks"):
        read_image(many, "top", ServerLimits())
    jpeg = bytes(picture(PIXELS, "jpeg", progressive=True)["data"])
    markers = sent({"__image__": True, "format": "jpeg", "data": jpeg[:2] + b"\xff\xe5\0\x02" * 300 + jpeg[2:]})
    with pytest.raises(ValueError, match="without a size"):
        read_image(markers, "top", ServerLimits())
    scan = jpeg[jpeg.index(b"\xff\xda") :]
    scans = sent({"__image__": True, "format": "jpeg", "data": jpeg[:-2] + scan[:-2] * 40 + scan[-2:]})
    with pytest.raises(ValueError, match="more than 32 scans"):
        read_image(scans, "top", ServerLimits())


def test_a_declared_size_costs_nothing_before_it_is_refused() -> None:
    """Decoding the file, of 12,000 x 12,000 pixels in a few bytes, would take 430 MB."""
    with pytest.raises(ValueError, match="12000 x 12000 pixels"):
        read_image(png(header(12000, 12000), chunk(b"IDAT", zlib.compress(b"\0" * 9000))), "top", ServerLimits())


def test_vectors_are_arrays_or_lists_of_numbers() -> None:
    for value in (array(np.array([1, 2.5])), array(np.array([[1, 2.5]], ">f4")), [1, 2.5]):
        assert read_vector(value, "states", LIMITS).tolist() == [1, 2.5]
    assert read_vector(array(np.arange(3)), "states", LIMITS).tolist() == [0, 1, 2]
    for dtype in (">f8", "<f8", ">i2", "<i2", ">i4", "|i1", "float32", "int64"):  # two rows: one after the other
        rows = np.array([[1, -2, 3], [4, 5, 100]], dtype)
        assert read_vector(array(rows), "states", LIMITS).tolist() == [1, -2, 3, 4, 5, 100]
    assert read_vector([0.1, 1e-7, 123456.789], "states", LIMITS).tolist() == [0.1, 1e-7, 123456.789]
    assert read_vector(array(np.zeros(125)), "states", LIMITS).size == 125  # 1000 bytes
    for value in (2.5, np.array([2.5], np.float32), {"__npgeneric__": True, "data": 2.5, "dtype": "<f8"}):
        assert read_vector(value, "gripper", LIMITS).tolist() == [2.5]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"x": 1.0}, "'states' is of type dict"),
        ({"__npgeneric__": True, "data": "2"}, "'states' is of type str"),
        (True, "'states' is of type bool"),
        (np.array(["a"]), "'states' is of type ndarray"),
        (np.zeros(2, np.complex64), "'states' is of type ndarray"),
        (np.array([True]), "'states' has booleans"),
        ({}, "'states' is of type dict"),
        ("abc", "'states' is of type str"),
        (memoryview(b"abc"), "'states' is of type str"),
        (memoryview(b"\xff"), "'states' is of type memoryview"),
        (None, "'states' is of type NoneType"),
        ([1, "a"], "'states' is of type list, of other values"),
        ([[1], [2]], "'states' is of type list, of other values"),
        ([True, False], "'states' is of type list, of other values"),
        (array(np.array([True])), "'states' has booleans"),
        (array(np.zeros(200)), "has 1600 bytes; at most 1000"),
        (array(np.zeros(2), shape=[3]), r"declares float64 \[3\], but has 16 bytes"),
    ],
)
def test_bad_vectors_are_refused_by_name(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_vector(value, "states", LIMITS)
